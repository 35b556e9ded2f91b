package tikv

import (
	"bytes"
	"context"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
)

// mutation translates what a transaction is about to do to a key.
func mutation(
	m *kvrpcpb.Mutation, level kvrpcpb.AssertionLevel,
) (out commands.Mutation, err error) {
	out = commands.Mutation{Key: m.GetKey(), Value: m.GetValue()}
	switch m.GetOp() {
	case kvrpcpb.Op_Put:
		out.Kind = mvcc.WriteKindPut
	case kvrpcpb.Op_Insert:
		out.Kind, out.Insert = mvcc.WriteKindPut, true
	case kvrpcpb.Op_Del:
		out.Kind = mvcc.WriteKindDelete
	case kvrpcpb.Op_Lock:
		out.Kind = mvcc.WriteKindLock
	case kvrpcpb.Op_CheckNotExists:
		out.Kind, out.CheckOnly = mvcc.WriteKindLock, true
	default:
		return out,
			&requestError{"a transaction cannot prewrite the operation " + m.GetOp().String()}
	}
	if level != kvrpcpb.AssertionLevel_Off {
		out.Strict = level == kvrpcpb.AssertionLevel_Strict
		switch m.GetAssertion() {
		case kvrpcpb.Assertion_Exist:
			out.Assert = commands.AssertExists
		case kvrpcpb.Assertion_NotExist:
			out.Assert = commands.AssertAbsent
		case kvrpcpb.Assertion_None:
		}
	}
	return out, nil
}

// prewriteOf translates a prewrite.
func (s *Service) prewriteOf(req *kvrpcpb.PrewriteRequest) (*commands.Prewrite, error) {
	switch {
	case len(req.TxnFileChunks) > 0:
		return nil, &requestError{"transactions in files are not served"}
	case len(req.Mutations)+len(req.Secondaries) > rawops.MaxKeys:
		return nil, tooMany(len(req.Mutations) + len(req.Secondaries))
	}
	if len(req.Mutations) > 0 {
		if err := s.checkKey(req.PrimaryLock); err != nil {
			return nil, &requestError{"primary: " + err.Error()}
		}
	}
	p := &commands.Prewrite{
		Primary: bytes.Clone(req.PrimaryLock), StartTS: req.StartVersion, TTL: req.LockTtl,
		TxnSize:     req.TxnSize,
		MinCommitTS: req.MinCommitTs, TxnSource: req.Context.GetTxnSource(),
		AsyncCommit: req.UseAsyncCommit, Secondaries: req.Secondaries, OnePC: req.TryOnePc,
		MaxCommitTS: req.MaxCommitTs,
		ForUpdateTS: req.ForUpdateTs, Retry: req.Context.GetIsRetryRequest(),
	}
	for _, k := range req.Secondaries {
		if err := s.checkKey(k); err != nil {
			return nil, &requestError{"secondary: " + err.Error()}
		}
	}
	for _, m := range req.Mutations {
		out, err := mutation(m, req.AssertionLevel)
		if err == nil {
			err = s.checkKey(out.Key)
		}
		if err != nil {
			return nil, err
		}
		p.Mutations = append(p.Mutations, out)
	}
	return p, pessimistic(req, p)
}

// KvPrewrite implements tikvpb.Tikv.
func (s *Service) KvPrewrite(
	ctx context.Context, req *kvrpcpb.PrewriteRequest,
) (*kvrpcpb.PrewriteResponse, error) {
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context)
	var p *commands.Prewrite
	if err == nil {
		p, err = s.prewriteOf(req)
	}
	var res commands.Prewritten
	if err == nil {
		res, err = s.txn.Prewrite(ctx, to, p)
	}
	return prewriteAnswer(req, res, err)
}

// prewriteNow is KvPrewrite by deadline, if it waits for nothing but its write: then answer is
// called once. False: nothing was done, and KvPrewrite must be asked.
func prewriteNow(
	s *Service, req *kvrpcpb.PrewriteRequest, deadline time.Time,
	answer func(*kvrpcpb.PrewriteResponse, error),
) bool {
	if s.txn == nil {
		return false
	}
	to, err := s.txnTarget(req.Context)
	if err != nil {
		return false // KvPrewrite says so
	}
	p, err := s.prewriteOf(req)
	if err != nil {
		return false
	}
	var res commands.Prewritten
	w := &asyncWrite{done: func(err error) {
		var out commands.Prewritten
		if err == nil { // else the outcome may come meanwhile
			out = res
		}
		answer(prewriteAnswer(req, out, err))
	}}
	if !s.txn.PrewriteNow(to, p, deadline, func(r commands.Prewritten, err error) {
		res = r
		w.finish(err)
	}) {
		return false
	}
	w.limit(deadline)
	return true
}

func prewriteAnswer(
	req *kvrpcpb.PrewriteRequest, res commands.Prewritten, err error,
) (*kvrpcpb.PrewriteResponse, error) {
	resp := &kvrpcpb.PrewriteResponse{}
	resp.Errors = keyErrors(res.InWay)
	// A client that has not asked for one of them dies of it.
	switch {
	case req.TryOnePc:
		resp.OnePcCommitTs = max(res.CommitTS, res.Committed)
	case req.UseAsyncCommit:
		resp.MinCommitTs = max(res.MinCommitTS, res.Committed)
	}
	region, key, rpc := txnOutcome(err)
	if resp.RegionError = region; key != nil {
		resp.Errors = []*kvrpcpb.KeyError{key}
	}
	return resp, rpc
}

// keyErrors are the locks in the way, or the first one of other errors: clients do not look for
// more.
func keyErrors(inWay []error) (out []*kvrpcpb.KeyError) {
	for _, err := range inWay {
		e := keyError(err)
		if e.GetLocked() == nil {
			return []*kvrpcpb.KeyError{e}
		}
		out = append(out, e)
	}
	return out
}

// KvCommit implements tikvpb.Tikv.
func (s *Service) KvCommit(
	ctx context.Context, req *kvrpcpb.CommitRequest,
) (*kvrpcpb.CommitResponse, error) {
	resp := &kvrpcpb.CommitResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.Keys...)
	if err == nil {
		err = s.txn.Commit(ctx, to, req.Keys, req.StartVersion, req.CommitVersion)
	}
	if err == nil {
		resp.CommitVersion = req.CommitVersion
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvBatchRollback implements tikvpb.Tikv.
func (s *Service) KvBatchRollback(
	ctx context.Context, req *kvrpcpb.BatchRollbackRequest,
) (*kvrpcpb.BatchRollbackResponse, error) {
	resp := &kvrpcpb.BatchRollbackResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.Keys...)
	if err == nil {
		err = s.txn.Rollback(ctx, to, req.Keys, req.StartVersion)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvCleanup implements tikvpb.Tikv.
func (s *Service) KvCleanup(
	ctx context.Context, req *kvrpcpb.CleanupRequest,
) (*kvrpcpb.CleanupResponse, error) {
	resp := &kvrpcpb.CleanupResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.Key)
	if err == nil {
		resp.CommitVersion, err = s.txn.Cleanup(ctx, to, req.Key, req.StartVersion, req.CurrentTs)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvCheckTxnStatus implements tikvpb.Tikv.
func (s *Service) KvCheckTxnStatus(
	ctx context.Context, req *kvrpcpb.CheckTxnStatusRequest,
) (*kvrpcpb.CheckTxnStatusResponse, error) {
	resp := &kvrpcpb.CheckTxnStatusResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.PrimaryKey)
	if err == nil {
		var st commands.Status
		st, err = s.txn.CheckTxnStatus(ctx, to, &commands.StatusQuery{
			Primary: req.PrimaryKey, LockTS: req.LockTs, CurrentTS: req.CurrentTs,
			CallerTS:          req.CallerStartTs,
			RollbackIfMissing: req.RollbackIfNotExist, ForceSyncCommit: req.ForceSyncCommit,
			Pessimistic: req.ResolvingPessimisticLock, VerifyPrimary: req.VerifyIsPrimary,
		})
		resp.LockTtl, resp.CommitVersion, resp.Action = st.LockTTL, st.CommitTS,
			kvrpcpb.Action(st.Action)
		if st.Lock != nil {
			resp.LockInfo = lockInfo(st.Lock)
		}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvCheckSecondaryLocks implements tikvpb.Tikv.
func (s *Service) KvCheckSecondaryLocks(
	ctx context.Context, req *kvrpcpb.CheckSecondaryLocksRequest,
) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	resp := &kvrpcpb.CheckSecondaryLocksResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.Keys...)
	if err == nil && len(req.Keys) > rawops.MaxKeys {
		err = tooMany(len(req.Keys))
	}
	if err == nil {
		var res commands.SecondaryLocks
		res, err = s.txn.CheckSecondaryLocks(ctx, to, req.Keys, req.StartVersion)
		resp.CommitTs = res.CommitTS
		for i := range res.Locks {
			resp.Locks = append(resp.Locks, lockInfo(&res.Locks[i]))
		}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvResolveLock implements tikvpb.Tikv: at the keys that are named, or all locks of the
// transactions in the region.
func (s *Service) KvResolveLock(
	ctx context.Context, req *kvrpcpb.ResolveLockRequest,
) (*kvrpcpb.ResolveLockResponse, error) {
	resp := &kvrpcpb.ResolveLockResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.Keys...)
	switch {
	case err != nil:
	case len(req.Keys) > 0:
		err = s.txn.ResolveKeys(ctx, to, req.Keys, req.StartVersion, req.CommitVersion)
	default:
		of := commands.Outcomes{}
		if req.StartVersion > 0 {
			of[req.StartVersion] = req.CommitVersion
		} else {
			for _, t := range req.TxnInfos {
				of[t.GetTxn()] = t.GetStatus()
			}
		}
		err = s.txn.ResolveLocks(ctx, to, of)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvTxnHeartBeat implements tikvpb.Tikv.
func (s *Service) KvTxnHeartBeat(
	ctx context.Context, req *kvrpcpb.TxnHeartBeatRequest,
) (*kvrpcpb.TxnHeartBeatResponse, error) {
	resp := &kvrpcpb.TxnHeartBeatResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.PrimaryLock)
	if err == nil {
		resp.LockTtl, err = s.txn.HeartBeat(ctx, to, req.PrimaryLock, req.StartVersion,
			req.AdviseLockTtl)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// KvDeleteRange implements tikvpb.Tikv: what of the range lies in the region.
func (s *Service) KvDeleteRange(
	ctx context.Context, req *kvrpcpb.DeleteRangeRequest,
) (*kvrpcpb.DeleteRangeResponse, error) {
	resp := &kvrpcpb.DeleteRangeResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context)
	if err == nil {
		err = s.checkBounds(req.StartKey, req.EndKey)
	}
	if err == nil && !req.NotifyOnly {
		err = s.txn.DeleteRange(ctx, to, req.StartKey, req.EndKey)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = textOutcome(err)
	return resp, rpc
}
