package tikv

import (
	"context"
	"math"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/pkg/clustermode"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// Service answers TiKV's calls over a storage. Safe for concurrent use.
type Service struct {
	cfg     *config.Config
	storeID uint64
	storage storage.Storage
	gate    *gate.Gate
	// local, async and split are the storage, if it can do that.
	local storage.LocalGetter
	async storage.AsyncWriter
	split storage.Splitter
	// answers bounds answers that clients have not taken; nil: nothing does.
	answers *rpc.Budget
	// timings count requests on streams, by the type of their command, as calls of their methods.
	timings map[reflect.Type]*rpc.Timing
	mode    clustermode.Mode
	// txn carries out transactions; nil where they are refused.
	txn *commands.Executor
	// feedback numbers the answers to GetHealthFeedback.
	feedback atomic.Uint64
}

// New makes the service of a store.
func New(cfg *config.Config, storeID uint64, st storage.Storage, g *gate.Gate) *Service {
	s := &Service{cfg: cfg, storeID: storeID, storage: st, gate: g}
	s.local, _ = st.(storage.LocalGetter)
	s.async, _ = st.(storage.AsyncWriter)
	s.split, _ = st.(storage.Splitter)
	s.feedback.Store(uint64(time.Now().UnixMilli()))
	return s
}

// SetMode has the service refuse raw calls in a cluster of transactions. To be called before it
// serves.
func (s *Service) SetMode(m clustermode.Mode) { s.mode = m }

const (
	serviceName = "tikvpb.Tikv"
	// MaxMessage bounds one message of a client and one answer. Clients of TiKV put up to 128
	// requests into one message without a look at its size, and rely on scans that are not cut.
	MaxMessage = 256 << 20
	// maxScanBytes bounds what one scan reads, with room for the rest of the message.
	maxScanBytes = MaxMessage / 2
)

// unary is the description of a call that is no stream.
func unary[Req, Resp any](
	name string,
	call func(*Service, context.Context, *Req) (*Resp, error),
) grpc.MethodDesc {
	handler := func(
		srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor,
	) (any, error) {
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err
		}
		return call(srv.(*Service), ctx, req)
	}
	return grpc.MethodDesc{MethodName: name, Handler: handler}
}

// serviceDesc stands for the generated one, which its package keeps for itself.
func serviceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: serviceName, HandlerType: (*any)(nil), Metadata: "tikvpb.proto",
		Methods: append(txnMethods(),
			unary("RawGet", (*Service).RawGet),
			unary("RawBatchGet", (*Service).RawBatchGet),
			unary("RawPut", (*Service).RawPut),
			unary("RawBatchPut", (*Service).RawBatchPut),
			unary("RawDelete", (*Service).RawDelete),
			unary("RawBatchDelete", (*Service).RawBatchDelete),
			unary("RawScan", (*Service).RawScan),
			unary("RawBatchScan", (*Service).RawBatchScan),
			unary("RawGetKeyTTL", (*Service).RawGetKeyTTL),
			unary("RawChecksum", (*Service).RawChecksum),
			unary("RawCompareAndSwap", (*Service).RawCompareAndSwap),
			unary("RawDeleteRange", (*Service).RawDeleteRange),
			unary("UnsafeDestroyRange", (*Service).UnsafeDestroyRange),
			unary("RawCoprocessor", (*Service).RawCoprocessor),
			unary("SplitRegion", (*Service).SplitRegion),
			unary("GetStoreSafeTS", (*Service).GetStoreSafeTS),
			unary("GetHealthFeedback", (*Service).GetHealthFeedback),
		),
		Streams: []grpc.StreamDesc{{
			StreamName: "BatchCommands", ServerStreams: true, ClientStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				return srv.(*Service).batchCommands(stream)
			},
		}},
	}
}

// txnMethods are the calls of transactions.
func txnMethods() []grpc.MethodDesc {
	return []grpc.MethodDesc{
		unary("KvGet", (*Service).KvGet),
		unary("KvBatchGet", (*Service).KvBatchGet),
		unary("KvScan", (*Service).KvScan),
		unary("KvPrewrite", (*Service).KvPrewrite),
		unary("KvCommit", (*Service).KvCommit),
		unary("KvBatchRollback", (*Service).KvBatchRollback),
		unary("KvCleanup", (*Service).KvCleanup),
		unary("KvCheckTxnStatus", (*Service).KvCheckTxnStatus),
		unary("KvResolveLock", (*Service).KvResolveLock),
		unary("KvScanLock", (*Service).KvScanLock),
		unary("KvTxnHeartBeat", (*Service).KvTxnHeartBeat),
		unary("KvDeleteRange", (*Service).KvDeleteRange),
		unary("MvccGetByKey", (*Service).MvccGetByKey),
		unary("MvccGetByStartTs", (*Service).MvccGetByStartTs),
		unary("KvPessimisticLock", (*Service).KvPessimisticLock),
		unary("KVPessimisticRollback", (*Service).KVPessimisticRollback),
		unary("GetLockWaitInfo", (*Service).GetLockWaitInfo),
		unary("KvCheckSecondaryLocks", (*Service).KvCheckSecondaryLocks),
	}
}

// busyAnswers are those to calls that were not carried out because the store is busy.
var busyAnswers = map[string]func(e *errorpb.Error) any{
	"RawGet": func(e *errorpb.Error) any { return &kvrpcpb.RawGetResponse{RegionError: e} },
	"RawBatchGet": func(e *errorpb.Error) any {
		return &kvrpcpb.RawBatchGetResponse{RegionError: e}
	},
	"RawPut": func(e *errorpb.Error) any { return &kvrpcpb.RawPutResponse{RegionError: e} },
	"RawBatchPut": func(e *errorpb.Error) any {
		return &kvrpcpb.RawBatchPutResponse{RegionError: e}
	},
	"RawDelete": func(e *errorpb.Error) any {
		return &kvrpcpb.RawDeleteResponse{RegionError: e}
	},
	"RawBatchDelete": func(e *errorpb.Error) any {
		return &kvrpcpb.RawBatchDeleteResponse{RegionError: e}
	},
	"RawScan": func(e *errorpb.Error) any {
		return &kvrpcpb.RawScanResponse{RegionError: e}
	},
	"RawBatchScan": func(e *errorpb.Error) any {
		return &kvrpcpb.RawBatchScanResponse{RegionError: e}
	},
	"RawGetKeyTTL": func(e *errorpb.Error) any {
		return &kvrpcpb.RawGetKeyTTLResponse{RegionError: e}
	},
	"RawChecksum": func(e *errorpb.Error) any {
		return &kvrpcpb.RawChecksumResponse{RegionError: e}
	},
	"RawDeleteRange": func(e *errorpb.Error) any {
		return &kvrpcpb.RawDeleteRangeResponse{RegionError: e}
	},

	"RawCompareAndSwap": func(e *errorpb.Error) any {
		return &kvrpcpb.RawCASResponse{RegionError: e}
	},

	"KvGet": func(e *errorpb.Error) any { return &kvrpcpb.GetResponse{RegionError: e} },
	"KvBatchGet": func(e *errorpb.Error) any {
		return &kvrpcpb.BatchGetResponse{RegionError: e}
	},
	"KvScan": func(e *errorpb.Error) any { return &kvrpcpb.ScanResponse{RegionError: e} },
	"KvPrewrite": func(e *errorpb.Error) any {
		return &kvrpcpb.PrewriteResponse{RegionError: e}
	},
	"KvCommit": func(e *errorpb.Error) any {
		return &kvrpcpb.CommitResponse{RegionError: e}
	},
	"KvBatchRollback": func(e *errorpb.Error) any {
		return &kvrpcpb.BatchRollbackResponse{RegionError: e}
	},
	"KvCleanup": func(e *errorpb.Error) any {
		return &kvrpcpb.CleanupResponse{RegionError: e}
	},
	"KvCheckTxnStatus": func(e *errorpb.Error) any {
		return &kvrpcpb.CheckTxnStatusResponse{RegionError: e}
	},
	"KvResolveLock": func(e *errorpb.Error) any {
		return &kvrpcpb.ResolveLockResponse{RegionError: e}
	},
	"KvScanLock": func(e *errorpb.Error) any {
		return &kvrpcpb.ScanLockResponse{RegionError: e}
	},
	"KvTxnHeartBeat": func(e *errorpb.Error) any {
		return &kvrpcpb.TxnHeartBeatResponse{RegionError: e}
	},
	"KvDeleteRange": func(e *errorpb.Error) any {
		return &kvrpcpb.DeleteRangeResponse{RegionError: e}
	},
	"MvccGetByKey": func(e *errorpb.Error) any {
		return &kvrpcpb.MvccGetByKeyResponse{RegionError: e}
	},
	"MvccGetByStartTs": func(e *errorpb.Error) any {
		return &kvrpcpb.MvccGetByStartTsResponse{RegionError: e}
	},
}

// Register makes a gRPC server serve the service.
func Register(g *rpc.Server, s *Service) {
	desc := serviceDesc()
	g.RegisterService(desc, s)
	s.answers = g.Answers()
	s.timings = timings(g)
	for _, m := range desc.Methods {
		g.Limit("/"+serviceName+"/"+m.MethodName, MaxMessage, MaxMessage)
	}
	g.Limit("/"+serviceName+"/BatchCommands", MaxMessage, MaxMessage)
	for _, name := range []string{"RawCompareAndSwap", "RawDeleteRange"} {
		g.Always("/" + serviceName + "/" + name)
	}
	for name, answer := range busyAnswers {
		g.OnBusy("/"+serviceName+"/"+name, func(reason string) any {
			return answer(&errorpb.Error{
				Message: reason, ServerIsBusy: &errorpb.ServerIsBusy{Reason: reason},
			})
		})
	}
	if s.local != nil {
		g.HandleInline("/"+serviceName+"/RawGet", s.inlineGet)
	}
	g.HandleInline("/"+serviceName+"/KvGet", func(c *rpc.Call, req []byte) bool {
		return inlineTxnGet(s, c, req)
	})
	g.HandleInline("/"+serviceName+"/KvPrewrite", func(c *rpc.Call, req []byte) bool {
		return inlinePrewrite(s, c, req)
	})
	if s.async != nil {
		g.HandleInline("/"+serviceName+"/RawPut", s.inlinePut)
		g.HandleInline("/"+serviceName+"/RawDelete", s.inlineDelete)
	}
}

// timings finds for each command of a stream the method that does the same: RawGet, or with another
// name KvGet.
func timings(g *rpc.Server) map[reflect.Type]*rpc.Timing {
	out := map[reflect.Type]*rpc.Timing{}
	for _, cmd := range (*request)(nil).XXX_OneofWrappers() {
		t := reflect.TypeOf(cmd)
		_, name, _ := strings.Cut(t.Elem().Name(), "BatchCommandsRequest_Request_")
		for _, prefix := range []string{"", "Kv"} {
			if timing := g.Timing("/" + serviceName + "/" + prefix + name); timing != nil {
				out[t] = timing
			}
		}
	}
	return out
}

// GetStoreSafeTS says that no timestamp is safe to read at without asking a leader.
func (s *Service) GetStoreSafeTS(
	context.Context,
	*kvrpcpb.StoreSafeTSRequest,
) (*kvrpcpb.StoreSafeTSResponse, error) {
	return &kvrpcpb.StoreSafeTSResponse{}, nil
}

// GetHealthFeedback says that the store is as quick as ever: a slow one loses its leaders to the
// placement service's orders, and clients need not find out.
func (s *Service) GetHealthFeedback(
	context.Context,
	*kvrpcpb.GetHealthFeedbackRequest,
) (*kvrpcpb.GetHealthFeedbackResponse, error) {
	return &kvrpcpb.GetHealthFeedbackResponse{HealthFeedback: &kvrpcpb.HealthFeedback{
		StoreId: s.storeID, FeedbackSeqNo: s.feedback.Add(1), SlowScore: 1,
	}}, nil
}

// RawCoprocessor is not there.
func (s *Service) RawCoprocessor(
	context.Context,
	*kvrpcpb.RawCoprocessorRequest,
) (*kvrpcpb.RawCoprocessorResponse, error) {
	return &kvrpcpb.RawCoprocessorResponse{Error: "this store has no coprocessors"}, nil
}

// timeout is how long a request may take.
func (s *Service) timeout(c *kvrpcpb.Context) time.Duration {
	limit := s.cfg.Server.RequestTimeout.Duration
	if ms := c.GetMaxExecutionDurationMs(); ms > 0 && ms < math.MaxInt32 {
		limit = min(limit, time.Duration(ms)*time.Millisecond)
	}
	return limit
}
