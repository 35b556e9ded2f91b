package txn

import (
	"context"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// pass deals with locks that are in the way: those of transactions that have ended are resolved; while one's
// transaction lives, it pauses.
func (c *Client) pass(ctx context.Context, wait *backoff, locks ...*kvrpcpb.LockInfo) error {
	alive := false
	for _, l := range locks {
		ended, err := c.resolve(ctx, l)
		if err != nil {
			return err
		}
		alive = alive || !ended
	}
	if alive && !wait.sleep(ctx) {
		return ctx.Err()
	}
	return nil
}

// resolve asks the primary what became of a lock's transaction, which is rolled back if its time is over, and does
// the same to all its locks in the region of this one. ended is false while the transaction lives.
func (c *Client) resolve(ctx context.Context, l *kvrpcpb.LockInfo) (ended bool, err error) {
	now, err := c.Timestamp(ctx)
	if err != nil {
		return false, err
	}
	st, err := c.status(ctx, l, now)
	if err != nil || st.LockTtl > 0 {
		return false, err
	}
	err = c.resolveAt(ctx, l, st.CommitVersion)
	return err == nil, err
}

// expired tells whether the time of a lock is over, as far as the lock itself says: that of its transaction's primary
// may have been prolonged.
func expired(l *kvrpcpb.LockInfo, now uint64) bool {
	return now>>logicalBits > l.LockVersion>>logicalBits+l.LockTtl
}

// status asks the primary what became of a lock's transaction, which is rolled back if its time is over at now. One
// whose primary is not locked yet lives as long as the lock does.
func (c *Client) status(
	ctx context.Context, l *kvrpcpb.LockInfo, now uint64,
) (st *kvrpcpb.CheckTxnStatusResponse, err error) {
	err = c.kv.Call(ctx, memcomparable.Encode(l.PrimaryLock), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.KvCheckTxnStatus(ctx, &kvrpcpb.CheckTxnStatusRequest{
			Context: kctx, PrimaryKey: l.PrimaryLock, LockTs: l.LockVersion, CurrentTs: now,
			KeepMissing: !expired(l, now),
		})
		st = r
		return r.GetRegionError(), err
	})
	return st, err
}

// resolveAt ends all locks of a lock's transaction in the region of the lock: commits them at commitTS, or rolls them
// back if that is 0.
func (c *Client) resolveAt(ctx context.Context, l *kvrpcpb.LockInfo, commitTS uint64) error {
	var resp *kvrpcpb.ResolveLockResponse
	err := c.kv.Call(ctx, memcomparable.Encode(l.Key), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.KvResolveLock(ctx, &kvrpcpb.ResolveLockRequest{
			Context: kctx, StartVersion: l.LockVersion, CommitVersion: commitTS,
		})
		resp = r
		return r.GetRegionError(), err
	})
	if err == nil && resp.Error != nil {
		err = keyError(resp.Error)
	}
	return err
}
