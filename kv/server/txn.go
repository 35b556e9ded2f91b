package server

import (
	"bytes"
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// SetMode chooses what the service serves: raw requests, which is the default, or transactions. To
// be called before it serves.
func (s *Server) SetMode(m clustermode.Mode) {
	s.mode = m
	if st, ok := s.storage.(storage.BoundStorage); ok && m == clustermode.Txn {
		s.txn = commands.New(st, commands.Disk(), s.cfg.Server.RequestTimeout.Duration)
	}
}

// Transactions carries out the commands of transactions, those of the store's other face too: two
// faces with latches of their own would miss each other's decisions. It is nil where transactions
// are refused.
func (s *Server) Transactions() *commands.Executor { return s.txn }

// SetSafePoints has the service refuse transactions that are too old, and collect garbage. To be
// called after SetMode and before it serves.
func (s *Server) SetSafePoints(p *commands.SafePoints) {
	if s.txn != nil {
		s.txn.SetSafePoints(p)
	}
}

// SetTimestamps lets the service choose the timestamps at which transactions commit. To be called
// after SetMode and before it serves.
func (s *Server) SetTimestamps(t *commands.Timestamps) {
	if s.txn != nil {
		s.txn.SetTimestamps(t)
	}
}

// checkRaw refuses raw requests where transactions are served.
func (s *Server) checkRaw() error {
	if s.mode == clustermode.Txn {
		return errRawRefused
	}
	return nil
}

var (
	errRawRefused = &requestError{clustermode.Txn.Refusal()}
	errTxnRefused = &requestError{clustermode.Raw.Refusal()}
)

// checkTxn refuses what cannot be a request of a transaction.
func (s *Server) checkTxn(keys ...[]byte) error {
	if s.txn == nil {
		return errTxnRefused
	}
	for _, k := range keys {
		if err := s.checkKey(k); err != nil {
			return err
		}
	}
	return nil
}

// keyError is an error's place in an answer, if it speaks of a key.
func keyError(err error) *kvrpcpb.KeyError {
	var (
		locked   *commands.LockedError
		conflict *commands.ConflictError
		notFound *commands.LockNotFoundError
		early    *commands.CommitTooEarlyError
		dead     *commands.DeadlockError
		unknown  *commands.TxnNotFoundError
		abort    *commands.AbortError
		invalid  *requestError
	)
	switch {
	case errors.As(err, &locked):
		info := lockInfo(&locked.KeyLock)
		info.Type = ""
		return &kvrpcpb.KeyError{Locked: info}
	case errors.As(err, &conflict):
		return &kvrpcpb.KeyError{Conflict: &kvrpcpb.WriteConflict{
			Key: conflict.Key, Primary: conflict.Primary, StartTs: conflict.StartTS,
			ConflictTs: conflict.ConflictTS,
		}}
	case errors.As(err, &early):
		return &kvrpcpb.KeyError{Retryable: err.Error(), CommitTsExpired: &kvrpcpb.CommitTsExpired{
			StartTs: early.StartTS, AttemptedCommitTs: early.CommitTS, Key: early.Key,
			MinCommitTs: early.MinCommitTS,
		}}
	case errors.As(err, &dead):
		return &kvrpcpb.KeyError{
			Deadlock: &kvrpcpb.Deadlock{LockTs: dead.HolderTS, LockKey: dead.Key},
		}
	case errors.As(err, &unknown):
		return &kvrpcpb.KeyError{Retryable: err.Error()}
	case errors.As(err, &notFound):
		return &kvrpcpb.KeyError{Retryable: err.Error()}
	case errors.As(err, &abort), errors.As(err, &invalid), errors.Is(err, mvcc.ErrCorrupt):
		return &kvrpcpb.KeyError{Abort: err.Error()}
	}
	return nil
}

// txnOutcome sorts an error into the three places where a client finds it.
func txnOutcome(err error) (region *errorpb.Error, key *kvrpcpb.KeyError, rpc error) {
	if err == nil {
		return nil, nil, nil
	}
	if key = keyError(err); key != nil {
		return nil, key, nil
	}
	if commands.NoPlacement(err) {
		err = &regionerr.BusyError{Reason: err.Error()}
	}
	region, _, rpc = outcome(err)
	return region, nil, rpc
}

// bareOutcome is txnOutcome for answers that have no place for an error of a key.
func bareOutcome(err error) (*errorpb.Error, error) {
	region, key, rpc := txnOutcome(err)
	if key != nil {
		rpc = status.Error(codes.FailedPrecondition, err.Error())
	}
	return region, rpc
}

// KvGet implements tinykvpb.TinyKvServer.
func (s *Server) KvGet(ctx context.Context, req *kvrpcpb.GetRequest) (*kvrpcpb.GetResponse, error) {
	err := s.checkTxn(req.Key)
	var v commands.Value
	if err == nil {
		v, err = s.txn.Get(ctx, req.Context, req.Key, commands.At(req.Version))
	}
	return txnGetAnswer(v, err)
}

func txnGetAnswer(v commands.Value, err error) (*kvrpcpb.GetResponse, error) {
	resp := &kvrpcpb.GetResponse{Value: v.Data, NotFound: err == nil && !v.Found}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvScan implements tinykvpb.TinyKvServer. Fewer pairs than the limit mean that the region has no
// more; an answer that would be too large is an error.
func (s *Server) KvScan(
	ctx context.Context, req *kvrpcpb.ScanRequest,
) (*kvrpcpb.ScanResponse, error) {
	resp := &kvrpcpb.ScanResponse{}
	err := s.checkTxn()
	if limit := s.cfg.Server.MaxScanLimit; err == nil && req.Limit > limit {
		return nil,
			status.Errorf(codes.InvalidArgument,
				"the limit of %d pairs exceeds the most allowed, %d", req.Limit, limit)
	}
	if err == nil {
		room := int(s.cfg.Server.GRPCMaxMessage) * 3 / 4
		scan := &commands.Scan{
			Read: commands.At(req.Version), Start: req.StartKey, End: req.EndKey,
			Limit:   int(req.Limit),
			Reverse: req.Reverse, KeyOnly: req.KeyOnly,
		}
		err = s.txn.Scan(ctx, req.Context, scan, gatherInto(&resp.Pairs, room))
	}
	if err == errScanTooLarge {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	if err != nil {
		resp.Pairs = nil
	}
	var rpc error
	resp.RegionError, rpc = bareOutcome(err)
	return resp, rpc
}

// gatherInto appends what is read to the pairs of an answer of at most room bytes.
func gatherInto(pairs *[]*kvrpcpb.KvPair, room int) func(p commands.Pair) error {
	return func(p commands.Pair) error {
		pair := &kvrpcpb.KvPair{Key: p.Key, Value: p.Value}
		if p.Err != nil {
			pair.Error = keyError(p.Err)
		}
		if room -= pair.Size() + 8; room < 0 {
			return errScanTooLarge
		}
		*pairs = append(*pairs, pair)
		return nil
	}
}

var errScanTooLarge = errors.New(
	"the pairs do not fit into one answer; lower the limit, or ask for fewer keys")

// mutations reads what a transaction is about to do.
func mutations(req *kvrpcpb.PrewriteRequest) ([]commands.Mutation, error) {
	kinds := map[kvrpcpb.Op]mvcc.WriteKind{
		kvrpcpb.Op_Put: mvcc.WriteKindPut, kvrpcpb.Op_Del: mvcc.WriteKindDelete,
		kvrpcpb.Op_Lock: mvcc.WriteKindLock,
	}
	out := make([]commands.Mutation, len(req.Mutations))
	for i, m := range req.Mutations {
		kind, ok := kinds[m.GetOp()]
		if m == nil || !ok {
			return nil, &requestError{"a mutation is neither a put, nor a delete, nor a lock"}
		}
		out[i] = commands.Mutation{Kind: kind, Key: m.Key, Value: m.Value}
		if req.ForUpdateTs > 0 {
			out[i].Check = commands.CheckConflict
			if i < len(req.IsPessimisticLock) && req.IsPessimisticLock[i] {
				out[i].Check = commands.LockedBefore
			}
		}
	}
	return out, nil
}

// KvPrewrite implements tinykvpb.TinyKvServer.
func (s *Server) KvPrewrite(
	ctx context.Context, req *kvrpcpb.PrewriteRequest,
) (*kvrpcpb.PrewriteResponse, error) {
	p, err := s.prewriteOf(req)
	var res commands.Prewritten
	if err == nil {
		res, err = s.txn.Prewrite(ctx, req.Context, p)
	}
	return prewriteAnswer(res, err)
}

func prewriteAnswer(res commands.Prewritten, err error) (*kvrpcpb.PrewriteResponse, error) {
	resp := &kvrpcpb.PrewriteResponse{}
	for _, e := range res.InWay {
		resp.Errors = append(resp.Errors, keyError(e))
	}
	resp.MinCommitTs, resp.OnePcCommitTs, resp.CommittedTs = res.MinCommitTS, res.CommitTS,
		res.Committed
	region, key, rpc := txnOutcome(err)
	if resp.RegionError = region; key != nil {
		resp.Errors = []*kvrpcpb.KeyError{key}
	}
	return resp, rpc
}

// prewriteOf checks and translates a prewrite.
func (s *Server) prewriteOf(req *kvrpcpb.PrewriteRequest) (*commands.Prewrite, error) {
	muts, err := mutations(req)
	if err != nil {
		return nil, err
	}
	keys := make([][]byte, len(muts))
	for i, m := range muts {
		keys[i] = m.Key
	}
	if err := s.checkTxn(append(keys, req.Secondaries...)...); err != nil {
		return nil, err
	}
	if len(muts) > 0 {
		if err := s.checkKey(req.PrimaryLock); err != nil {
			return nil, &requestError{"primary: " + err.Error()}
		}
	}
	return &commands.Prewrite{
		Mutations: muts, Primary: bytes.Clone(req.PrimaryLock), StartTS: req.StartVersion,
		TTL:         req.LockTtl,
		MinCommitTS: req.MinCommitTs, AsyncCommit: req.UseAsyncCommit, Secondaries: req.Secondaries,
		OnePC:       req.TryOnePc,
		ForUpdateTS: req.ForUpdateTs,
	}, nil
}

// KvCommit implements tinykvpb.TinyKvServer.
func (s *Server) KvCommit(
	ctx context.Context, req *kvrpcpb.CommitRequest,
) (*kvrpcpb.CommitResponse, error) {
	resp := &kvrpcpb.CommitResponse{}
	err := s.checkTxn(req.Keys...)
	if err == nil {
		err = s.txn.Commit(ctx, req.Context, req.Keys, req.StartVersion, req.CommitVersion)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvBatchRollback implements tinykvpb.TinyKvServer.
func (s *Server) KvBatchRollback(
	ctx context.Context, req *kvrpcpb.BatchRollbackRequest,
) (*kvrpcpb.BatchRollbackResponse, error) {
	resp := &kvrpcpb.BatchRollbackResponse{}
	err := s.checkTxn(req.Keys...)
	if err == nil {
		err = s.txn.Rollback(ctx, req.Context, req.Keys, req.StartVersion)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvCheckTxnStatus implements tinykvpb.TinyKvServer.
func (s *Server) KvCheckTxnStatus(
	ctx context.Context, req *kvrpcpb.CheckTxnStatusRequest,
) (*kvrpcpb.CheckTxnStatusResponse, error) {
	resp := &kvrpcpb.CheckTxnStatusResponse{}
	err := s.checkTxn(req.PrimaryKey)
	if err == nil {
		var st commands.Status
		st, err = s.txn.CheckTxnStatus(ctx, req.Context, &commands.StatusQuery{
			Primary: req.PrimaryKey, LockTS: req.LockTs, CurrentTS: req.CurrentTs,
			RollbackIfMissing: !req.KeepMissing,
			ForceSyncCommit:   req.ForceSyncCommit,
		})
		if missing := (*commands.TxnNotFoundError)(nil); errors.As(err, &missing) {
			st, err = commands.Status{LockTTL: 1, Action: commands.LockNotExistDoNothing}, nil
		}
		resp.LockTtl, resp.CommitVersion, resp.Action = st.LockTTL, st.CommitTS,
			kvrpcpb.Action(st.Action)
		if st.Lock != nil {
			resp.LockInfo = lockInfo(st.Lock)
		}
	}
	var rpc error
	resp.RegionError, rpc = bareOutcome(err)
	return resp, rpc
}

// KvCheckSecondaryLocks implements tinykvpb.TinyKvServer.
func (s *Server) KvCheckSecondaryLocks(
	ctx context.Context, req *kvrpcpb.CheckSecondaryLocksRequest,
) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	resp := &kvrpcpb.CheckSecondaryLocksResponse{}
	err := s.checkTxn(req.Keys...)
	if err == nil {
		var res commands.SecondaryLocks
		res, err = s.txn.CheckSecondaryLocks(ctx, req.Context, req.Keys, req.StartVersion)
		resp.CommitTs = res.CommitTS
		for i := range res.Locks {
			resp.Locks = append(resp.Locks, lockInfo(&res.Locks[i]))
		}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvResolveLock implements tinykvpb.TinyKvServer.
func (s *Server) KvResolveLock(
	ctx context.Context, req *kvrpcpb.ResolveLockRequest,
) (*kvrpcpb.ResolveLockResponse, error) {
	resp := &kvrpcpb.ResolveLockResponse{}
	err := s.checkTxn()
	if err == nil {
		err = s.txn.ResolveLocks(ctx, req.Context,
			commands.Outcomes{req.StartVersion: req.CommitVersion})
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}
