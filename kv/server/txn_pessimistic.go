package server

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// SetDetector replaces how deadlocks are found, which is among the transactions of this store
// alone. To be called after SetMode and before it serves.
func (s *Server) SetDetector(d commands.Detector) {
	if s.txn != nil {
		s.txn.SetDetector(d)
	}
}

// KvPessimisticLock implements tinykvpb.TinyKvServer.
func (s *Server) KvPessimisticLock(
	ctx context.Context, req *kvrpcpb.PessimisticLockRequest,
) (*kvrpcpb.PessimisticLockResponse, error) {
	resp := &kvrpcpb.PessimisticLockResponse{}
	err := s.checkTxn(append([][]byte{req.PrimaryLock}, req.Keys...)...)
	if err == nil {
		p := &commands.PessimisticLock{
			Primary: bytes.Clone(req.PrimaryLock), StartTS: req.StartVersion, TTL: req.LockTtl,
			ForUpdateTS: req.ForUpdateTs,
			First:       req.IsFirstLock, ReturnValues: req.ReturnValues,
			Wait: commands.LockWait(req.WaitTimeout),
		}
		for _, k := range req.Keys {
			p.Keys = append(p.Keys, commands.LockedKey{Key: k})
		}
		var values []commands.Value
		values, err = s.txn.AcquireLocks(ctx, req.Context, p)
		for _, v := range values {
			if req.ReturnValues {
				resp.Values, resp.NotFounds = append(resp.Values, v.Data),
					append(resp.NotFounds, !v.Found)
			}
		}
	}
	region, key, rpc := txnOutcome(err)
	if resp.RegionError = region; key != nil {
		resp.Errors = []*kvrpcpb.KeyError{key}
	}
	return resp, rpc
}

// KvPessimisticRollback implements tinykvpb.TinyKvServer.
func (s *Server) KvPessimisticRollback(
	ctx context.Context, req *kvrpcpb.PessimisticRollbackRequest,
) (*kvrpcpb.PessimisticRollbackResponse, error) {
	resp := &kvrpcpb.PessimisticRollbackResponse{}
	err := s.checkTxn(req.Keys...)
	if err == nil {
		err = s.txn.ReleaseLocks(ctx, req.Context, req.Keys, req.StartVersion, req.ForUpdateTs)
	}
	region, key, rpc := txnOutcome(err)
	if resp.RegionError = region; key != nil {
		resp.Errors = []*kvrpcpb.KeyError{key}
	}
	return resp, rpc
}

// KvTxnHeartBeat implements tinykvpb.TinyKvServer.
func (s *Server) KvTxnHeartBeat(
	ctx context.Context, req *kvrpcpb.TxnHeartBeatRequest,
) (*kvrpcpb.TxnHeartBeatResponse, error) {
	resp := &kvrpcpb.TxnHeartBeatResponse{}
	err := s.checkTxn(req.PrimaryLock)
	if err == nil {
		resp.LockTtl, err = s.txn.HeartBeat(ctx, req.Context, req.PrimaryLock, req.StartVersion,
			req.AdviseLockTtl)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// DetectDeadlock implements tinykvpb.TinyKvServer.
func (s *Server) DetectDeadlock(
	ctx context.Context, req *kvrpcpb.DetectDeadlockRequest,
) (*kvrpcpb.DetectDeadlockResponse, error) {
	resp := &kvrpcpb.DetectDeadlockResponse{}
	err := s.checkTxn(req.GetEntry().GetKey())
	if err == nil {
		e := req.Entry
		var chain []commands.Edge
		chain, err = s.txn.DetectDeadlock(ctx, req.Context, commands.Edge{
			Waiter: e.Txn, Holder: e.WaitForTxn, Key: bytes.Clone(e.Key), Tag: bytes.Clone(e.Tag),
		}, req.Remove)
		for _, c := range chain {
			resp.Chain = append(resp.Chain,
				&kvrpcpb.WaitForEntry{Txn: c.Waiter, WaitForTxn: c.Holder, Key: c.Key, Tag: c.Tag})
		}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}
