// Package server is the gRPC face of a store: it decodes requests, checks their shape and size,
// calls the storage, and sorts errors into region errors, messages and RPC statuses. One file per
// group of RPCs.
package server

import (
	"net"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/latches"
	"github.com/tinykv/tinykv/kv/transport"
	"github.com/tinykv/tinykv/pkg/clustermode"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Server implements tinykvpb.TinyKvServer. RPCs that this version does not serve answer
// Unimplemented.
type Server struct {
	admin
	cfg     *config.Config
	storage storage.Storage
	// stores takes what other stores send.
	stores *transport.Receiver
	// local and async are the storage, if it can do that.
	local storage.LocalGetter
	async storage.AsyncWriter
	gate  *gate.Gate
	// mode is the cluster's; txn carries out transactions and is nil where they are refused.
	mode clustermode.Mode
	txn  *commands.Executor
	// Latches are set by NewServer only, and then are what its commands are checked with.
	Latches *latches.Latches
	// forward passes requests on to other stores.
	forward forwarder
	// answers bounds answers that clients have not taken; nil: nothing does.
	answers *rpc.Budget
	// timings count requests by kind, those on streams too; nil: nobody does.
	timings struct{ get, put, del, scan *rpc.Timing }
}

// New makes the service; raft and snaps are nil for an unreplicated store.
func New(
	cfg *config.Config, st storage.Storage, raft transport.RaftHandler, snaps *snap.Manager, logger *zap.Logger,
) *Server {
	s := &Server{cfg: cfg, storage: st, gate: new(gate.Gate)}
	s.stores = transport.NewReceiver(raft, snaps, logger)
	s.local, _ = st.(storage.LocalGetter)
	s.async, _ = st.(storage.AsyncWriter)
	return s
}

// SetPeers lets the service pass requests on to other stores. To be called before it serves.
func (s *Server) SetPeers(p Peers) {
	s.forward.peers = p
	if d, ok := s.storage.(storage.Destroyer); ok {
		d.SetOthers(others{p})
	}
}

// Gate is what decides which gets are answered at once; the store's other face shares it.
func (s *Server) Gate() *gate.Gate { return s.gate }

// MinKeepAlive is how long a client must leave between two pings of an idle connection. Known
// clients ping every 10 s, also without a call.
const MinKeepAlive = 2 * time.Second

// Options are the limits of the gRPC server that the service relies on.
func Options(cfg *config.Config) rpc.Options {
	limit := int(cfg.Server.GRPCMaxMessage)
	return rpc.Options{
		MaxRecv: limit, MaxSend: limit, MaxStreams: cfg.Server.GRPCMaxStreams,
		MinPing: MinKeepAlive, Codec: codec.New(),
		MaxConns: cfg.Server.MaxConns, MaxConnsPerHost: cfg.Server.MaxConnsPerHost,
		MaxRequests: int64(cfg.Server.MaxRequestBytes),
		MaxAnswers:  int64(cfg.Server.MaxAnswerBytes), Stall: cfg.Server.StallTimeout.Duration,
	}
}

// busyAnswers are those to calls that were not carried out because the store is busy.
var busyAnswers = map[string]func(e *errorpb.Error) any{
	"RawGet":    func(e *errorpb.Error) any { return &kvrpcpb.RawGetResponse{RegionError: e} },
	"RawPut":    func(e *errorpb.Error) any { return &kvrpcpb.RawPutResponse{RegionError: e} },
	"RawDelete": func(e *errorpb.Error) any { return &kvrpcpb.RawDeleteResponse{RegionError: e} },
	"RawScan":   func(e *errorpb.Error) any { return &kvrpcpb.RawScanResponse{RegionError: e} },

	"RawBatchGet": func(e *errorpb.Error) any {
		return &kvrpcpb.RawBatchGetResponse{RegionError: e}
	},
	"RawBatchPut": func(e *errorpb.Error) any {
		return &kvrpcpb.RawBatchPutResponse{RegionError: e}
	},
	"RawBatchDelete": func(e *errorpb.Error) any {
		return &kvrpcpb.RawBatchDeleteResponse{RegionError: e}
	},
	"RawChecksum": func(e *errorpb.Error) any {
		return &kvrpcpb.RawChecksumResponse{RegionError: e}
	},
	"RawGetKeyTTL": func(e *errorpb.Error) any {
		return &kvrpcpb.RawGetKeyTTLResponse{RegionError: e}
	},
	"RawCAS": func(e *errorpb.Error) any { return &kvrpcpb.RawCASResponse{RegionError: e} },
	"RawDeleteRange": func(e *errorpb.Error) any {
		return &kvrpcpb.RawDeleteRangeResponse{RegionError: e}
	},
}

// Register makes a gRPC server serve svc. Calls that need not wait for anyone are answered where
// they are read.
func Register(g *rpc.Server, svc *Server) {
	tinykvpb.RegisterTinyKvServer(g, svc)
	for _, m := range []string{"Raft", "RaftBatch", "Snapshot"} {
		g.Internal("/tinykvpb.TinyKv/" + m)
	}
	for _, m := range []string{
		"Raft", "RaftBatch", "Snapshot", "CollectGarbage", "DetectDeadlock", "DestroyRange",
	} {
		g.Guard("/tinykvpb.TinyKv/"+m, storesOnly)
	}
	g.Guard("/tinykvpb.TinyKv/StoreSettings", adminsOnly)
	for _, m := range []string{"RawCAS", "RawDeleteRange", "Forward"} {
		g.Always("/tinykvpb.TinyKv/" + m)
	}
	g.OnBusy("/tinykvpb.TinyKv/Forward", func(string) any {
		return &kvrpcpb.ForwardResponse{NotSent: true}
	})
	svc.answers = g.Answers()
	t := &svc.timings
	t.get, t.put = g.Timing("/tinykvpb.TinyKv/RawGet"), g.Timing("/tinykvpb.TinyKv/RawPut")
	t.del, t.scan = g.Timing("/tinykvpb.TinyKv/RawDelete"), g.Timing("/tinykvpb.TinyKv/RawScan")
	svc.registerInline(g)
	for name, answer := range busyAnswers {
		g.OnBusy("/tinykvpb.TinyKv/"+name, func(reason string) any {
			region, _, _ := outcome(&regionerr.BusyError{Reason: reason})
			return answer(region)
		})
	}
}

// storesOnly refuses what a certificate is not for.
func storesOnly(nc net.Conn) error {
	if !security.MayConn(nc, security.RoleNode) {
		cs := security.StateOf(nc)
		return status.Errorf(codes.PermissionDenied,
			"this is for stores; the certificate of %q is for something else",
			cs.PeerCertificates[0].Subject.CommonName)
	}
	return nil
}

// Raft implements tinykvpb.TinyKvServer.
func (s *Server) Raft(stream tinykvpb.TinyKv_RaftServer) error { return s.stores.Raft(stream) }

// RaftBatch implements tinykvpb.TinyKvServer.
func (s *Server) RaftBatch(stream tinykvpb.TinyKv_RaftBatchServer) error {
	return s.stores.RaftBatch(stream)
}

// Snapshot implements tinykvpb.TinyKvServer.
func (s *Server) Snapshot(stream tinykvpb.TinyKv_SnapshotServer) error {
	return s.stores.Snapshot(stream)
}
