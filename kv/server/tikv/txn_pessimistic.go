package tikv

import (
	"bytes"
	"context"

	"github.com/dgryski/go-farm"
	deadlockpb "github.com/pingcap/kvproto/pkg/deadlock"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/kv/transaction/commands"
)

var pessimisticChecks = map[kvrpcpb.PrewriteRequest_PessimisticAction]commands.PessimisticCheck{
	kvrpcpb.PrewriteRequest_SKIP_PESSIMISTIC_CHECK: commands.Unlocked,
	kvrpcpb.PrewriteRequest_DO_PESSIMISTIC_CHECK:   commands.LockedBefore,
	kvrpcpb.PrewriteRequest_DO_CONSTRAINT_CHECK:    commands.CheckConflict,
}

// pessimistic adds to a prewrite what it relies on.
func pessimistic(req *kvrpcpb.PrewriteRequest, p *commands.Prewrite) error {
	for i, action := range req.PessimisticActions {
		check, ok := pessimisticChecks[action]
		switch {
		case !ok || i >= len(p.Mutations):
			return &requestError{"pessimistic actions do not fit the mutations"}
		case check != commands.Unlocked && req.ForUpdateTs == 0:
			return &requestError{"pessimistic actions need a for_update_ts"}
		}
		p.Mutations[i].Check = check
	}
	for _, c := range req.ForUpdateTsConstraints {
		if int(c.GetIndex()) >= len(p.Mutations) {
			return &requestError{"for_update_ts constraints do not fit the mutations"}
		}
		p.Mutations[c.GetIndex()].ExpectedForUpdateTS = c.GetExpectedForUpdateTs()
	}
	return nil
}

// lockRequest translates a request for pessimistic locks.
func lockRequest(
	s *Service, req *kvrpcpb.PessimisticLockRequest,
) (*commands.PessimisticLock, error) {
	switch {
	case req.WakeUpMode != kvrpcpb.PessimisticLockWakeUpMode_WakeUpModeNormal:
		return nil, errFairLocking
	case len(req.Mutations) > rawops.MaxKeys:
		return nil, tooMany(len(req.Mutations))
	case req.LockOnlyIfExists && !req.ReturnValues:
		return nil, &requestError{"lock_only_if_exists needs return_values"}
	}
	p := &commands.PessimisticLock{
		Primary: bytes.Clone(req.PrimaryLock), StartTS: req.StartVersion, TTL: req.LockTtl,
		ForUpdateTS: req.ForUpdateTs,
		MinCommitTS: req.MinCommitTs, ReturnValues: req.ReturnValues, Exists: req.CheckExistence,
		OnlyIfExists: req.LockOnlyIfExists, First: req.IsFirstLock,
		Wait: commands.LockWait(req.WaitTimeout),
		Tag:  bytes.Clone(req.Context.GetResourceGroupTag()),
	}
	for _, m := range req.Mutations {
		if m.GetOp() != kvrpcpb.Op_PessimisticLock {
			return nil,
				&requestError{"a pessimistic lock cannot be of the operation " + m.GetOp().String()}
		}
		if err := s.checkKey(m.Key); err != nil {
			return nil, err
		}
		p.Keys = append(p.Keys,
			commands.LockedKey{Key: m.Key, Absent: m.Assertion == kvrpcpb.Assertion_NotExist})
	}
	if len(p.Keys) > 0 {
		if err := s.checkKey(req.PrimaryLock); err != nil {
			return nil, &requestError{"primary: " + err.Error()}
		}
	}
	return p, nil
}

// KvPessimisticLock implements tikvpb.Tikv.
func (s *Service) KvPessimisticLock(
	ctx context.Context, req *kvrpcpb.PessimisticLockRequest,
) (*kvrpcpb.PessimisticLockResponse, error) {
	resp := &kvrpcpb.PessimisticLockResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context)
	var p *commands.PessimisticLock
	if err == nil {
		p, err = lockRequest(s, req)
	}
	var values []commands.Value
	if err == nil {
		values, err = s.txn.AcquireLocks(ctx, to, p)
	}
	for _, v := range values {
		if req.ReturnValues {
			resp.Values = append(resp.Values, v.Data)
		}
		if req.ReturnValues || req.CheckExistence {
			resp.NotFounds = append(resp.NotFounds, !v.Found)
		}
	}
	region, key, rpc := txnOutcome(err)
	if resp.RegionError = region; key != nil {
		resp.Errors = []*kvrpcpb.KeyError{key}
	}
	return resp, rpc
}

// KVPessimisticRollback implements tikvpb.Tikv.
func (s *Service) KVPessimisticRollback(
	ctx context.Context, req *kvrpcpb.PessimisticRollbackRequest,
) (*kvrpcpb.PessimisticRollbackResponse, error) {
	resp := &kvrpcpb.PessimisticRollbackResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.Keys...)
	if err == nil {
		err = s.txn.ReleaseLocks(ctx, to, req.Keys, req.StartVersion, req.ForUpdateTs)
	}
	region, key, rpc := txnOutcome(err)
	if resp.RegionError = region; key != nil {
		resp.Errors = []*kvrpcpb.KeyError{key}
	}
	return resp, rpc
}

// GetLockWaitInfo implements tikvpb.Tikv: at the store that keeps it, who waits for whom.
func (s *Service) GetLockWaitInfo(
	context.Context, *kvrpcpb.GetLockWaitInfoRequest,
) (*kvrpcpb.GetLockWaitInfoResponse, error) {
	resp := &kvrpcpb.GetLockWaitInfoResponse{}
	if s.txn == nil {
		resp.Error = errTxnRefused.Error()
		return resp, nil
	}
	resp.Entries = waits(s.txn.Waits())
	return resp, nil
}

func waits(edges []commands.Edge) (out []*deadlockpb.WaitForEntry) {
	for _, e := range edges {
		out = append(out, &deadlockpb.WaitForEntry{
			Txn: e.Waiter, WaitForTxn: e.Holder, Key: e.Key, KeyHash: keyHash(e.Key),
			ResourceGroupTag: e.Tag,
		})
	}
	return out
}

// keyHash is what clients compare with those of their own keys.
func keyHash(key []byte) uint64 { return farm.Fingerprint64(key) }

// deadlockOf tells a deadlock. The last wait of the chain is the one for the transaction itself, at
// a key that it has.
func deadlockOf(err *commands.DeadlockError) *kvrpcpb.Deadlock {
	out := &kvrpcpb.Deadlock{LockTs: err.HolderTS, LockKey: err.Key, WaitChain: waits(err.Chain)}
	if n := len(err.Chain); n > 0 {
		out.DeadlockKey = err.Chain[n-1].Key
		out.DeadlockKeyHash = keyHash(out.DeadlockKey)
	}
	return out
}
