package txn

import (
	"context"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// pass deals with locks that are in the way: those of transactions that have ended are resolved; while one's transaction
// lives, it pauses.
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

// resolve asks the primary what became of a lock's transaction, which is rolled back if its time is over, and does the same
// to all its locks in the region of this one. ended is false while the transaction lives.
func (c *Client) resolve(ctx context.Context, l *kvrpcpb.LockInfo) (ended bool, err error) {
	now, err := c.Timestamp(ctx)
	if err != nil {
		return false, err
	}
	var st *kvrpcpb.CheckTxnStatusResponse
	err = c.kv.Call(ctx, memcomparable.Encode(l.PrimaryLock), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.KvCheckTxnStatus(ctx, &kvrpcpb.CheckTxnStatusRequest{
			Context: kctx, PrimaryKey: l.PrimaryLock, LockTs: l.LockVersion, CurrentTs: now,
		})
		st = r
		return r.GetRegionError(), err
	})
	if err != nil || st.LockTtl > 0 {
		return false, err
	}
	var resp *kvrpcpb.ResolveLockResponse
	err = c.kv.Call(ctx, memcomparable.Encode(l.Key), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.KvResolveLock(ctx, &kvrpcpb.ResolveLockRequest{
			Context: kctx, StartVersion: l.LockVersion, CommitVersion: st.CommitVersion,
		})
		resp = r
		return r.GetRegionError(), err
	})
	if err == nil && resp.Error != nil {
		err = keyError(resp.Error)
	}
	return err == nil, err
}
