package server

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// KvBatchGet implements tinykvpb.TinyKvServer. An answer that would be too large is an error.
func (s *Server) KvBatchGet(
	ctx context.Context, req *kvrpcpb.BatchGetRequest,
) (*kvrpcpb.BatchGetResponse, error) {
	resp := &kvrpcpb.BatchGetResponse{}
	err := s.checkTxn(req.Keys...)
	if err == nil {
		room := int(s.cfg.Server.GRPCMaxMessage) * 3 / 4
		err = s.txn.BatchGet(ctx, req.Context, req.Keys, commands.At(req.Version),
			gatherInto(&resp.Pairs, room))
	}
	if err == errScanTooLarge {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	if err != nil {
		resp.Pairs = nil
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// maxLocks bounds the locks of one answer.
const maxLocks = 10240

// KvScanLock implements tinykvpb.TinyKvServer. Fewer locks than the limit mean that the region has
// no more.
func (s *Server) KvScanLock(
	ctx context.Context, req *kvrpcpb.ScanLockRequest,
) (*kvrpcpb.ScanLockResponse, error) {
	resp := &kvrpcpb.ScanLockResponse{}
	err := s.checkTxn()
	if err == nil && (req.Limit == 0 || req.Limit > maxLocks) {
		err = &requestError{
			fmt.Sprintf("the limit of %d locks is not between 1 and %d", req.Limit, maxLocks),
		}
	}
	if err == nil {
		var locks []mvcc.KeyLock
		list := s.txn.ScanLocks
		if req.RefuseOlder {
			list = s.txn.OldLocks
		}
		locks, err = list(ctx, req.Context, req.MaxVersion, bound(req.StartKey), bound(req.EndKey),
			int(req.Limit))
		for i := range locks {
			resp.Locks = append(resp.Locks, lockInfo(&locks[i]))
		}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// CollectGarbage implements tinykvpb.TinyKvServer.
func (s *Server) CollectGarbage(
	ctx context.Context, req *kvrpcpb.CollectGarbageRequest,
) (*kvrpcpb.CollectGarbageResponse, error) {
	resp := &kvrpcpb.CollectGarbageResponse{}
	err := s.checkTxn()
	if err == nil {
		var done commands.Collected
		done, err = s.txn.Collect(ctx, req.Context, bound(req.StartKey), req.SafePoint)
		resp.NextKey, resp.Done = done.Next, err == nil && done.Next == nil
		resp.Versions, resp.Bytes, resp.Locked = uint64(done.Versions), uint64(done.Bytes),
			uint64(done.Locked)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// bound is a bound of a range; an empty one is none.
func bound(key []byte) []byte {
	if len(key) == 0 {
		return nil
	}
	return key
}

func lockInfo(l *mvcc.KeyLock) *kvrpcpb.LockInfo {
	return &kvrpcpb.LockInfo{
		Key: l.Key, PrimaryLock: l.Primary, LockVersion: l.Ts, LockTtl: l.Ttl, TxnSize: l.TxnSize,
		MinCommitTs: l.MinCommitTS, Type: l.Kind.String(), UseAsyncCommit: l.AsyncCommit,
		Secondaries: l.Secondaries,
	}
}

// MvccGetByKey implements tinykvpb.TinyKvServer.
func (s *Server) MvccGetByKey(
	ctx context.Context, req *kvrpcpb.MvccGetByKeyRequest,
) (*kvrpcpb.MvccGetByKeyResponse, error) {
	resp := &kvrpcpb.MvccGetByKeyResponse{}
	err := s.checkTxn(req.Key)
	if err == nil {
		var all *mvcc.Records
		if all, err = s.txn.Inspect(ctx, req.Context, req.Key); err == nil {
			if all.Cut {
				err = &requestError{"the key has more records than one answer holds"}
			} else {
				resp.Info = mvccInfo(all)
			}
		}
	}
	region, key, rpc := txnOutcome(err)
	if resp.RegionError = region; key != nil {
		resp.Error = err.Error()
	}
	return resp, rpc
}

func mvccInfo(all *mvcc.Records) *kvrpcpb.MvccInfo {
	out := &kvrpcpb.MvccInfo{}
	if l := all.Lock; l != nil {
		out.Lock, out.LockValue = lockInfo(&mvcc.KeyLock{Key: all.Key, Lock: *l}), l.ShortValue
	}
	for _, w := range all.Writes {
		out.Writes = append(out.Writes, &kvrpcpb.MvccWrite{
			Type: w.Kind.String(), StartTs: w.StartTS, CommitTs: w.CommitTS,
			ShortValue:    w.ShortValue,
			HasShortValue: w.ShortValue != nil, HasOverlappedRollback: w.OverlappedRollback,
		})
	}
	for _, v := range all.Values {
		out.Values = append(out.Values, &kvrpcpb.MvccValue{StartTs: v.StartTS, Value: v.Value})
	}
	return out
}
