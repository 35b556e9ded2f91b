package txn

import (
	"bytes"
	"context"
	"slices"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// pass deals with locks that are in the way: those of transactions that have ended are resolved;
// while one's transaction lives, it pauses.
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

// resolve asks the primary what became of a lock's transaction, which is rolled back if its time is
// over, and does the same to all its locks in the region of this one. ended is false while the
// transaction lives.
func (c *Client) resolve(ctx context.Context, l *kvrpcpb.LockInfo) (ended bool, err error) {
	now, err := c.Timestamp(ctx)
	if err != nil {
		return false, err
	}
	out, err := c.fate(ctx, l, now)
	if err != nil || out.alive || out.resolved {
		return out.resolved, err
	}
	err = c.resolveAt(ctx, l.Key, l.LockVersion, out.commitTS)
	return err == nil, err
}

// fate is what became of a transaction: it is alive, or was committed, or else rolled back. With
// resolved none of its locks are left.
type fate struct {
	alive, resolved bool
	commitTS        uint64
}

// fate finds out what became of a lock's transaction, and ends it if its time is over at now.
func (c *Client) fate(ctx context.Context, l *kvrpcpb.LockInfo, now uint64) (fate, error) {
	st, err := c.status(ctx, l, now, false)
	if err != nil {
		return fate{}, err
	}
	primary := st.LockInfo
	switch {
	case st.LockTtl == 0 && primary == nil:
		return fate{commitTS: st.CommitVersion}, nil
	case primary == nil || !primary.UseAsyncCommit || !expired(primary, now):
		return fate{alive: true}, nil
	}
	// It is committed if all its keys are locked. A key that is not will never be.
	of, err := c.secondaries(ctx, primary.Secondaries, l.LockVersion)
	switch {
	case err != nil:
		return fate{}, err
	case of.plain: // as any other
		if st, err = c.status(ctx, l, now, true); err != nil {
			return fate{}, err
		}
		return fate{alive: st.LockTtl > 0 || st.LockInfo != nil, commitTS: st.CommitVersion}, nil
	case of.locked:
		of.commitTS = max(of.commitTS, primary.MinCommitTs)
	}
	keys := append([][]byte{l.PrimaryLock}, primary.Secondaries...)
	slices.SortFunc(keys, bytes.Compare)
	err = c.resolveKeys(ctx, keys, l.LockVersion, of.commitTS)
	return fate{resolved: err == nil, commitTS: of.commitTS}, err
}

// secondaryLocks are what was found at keys of a transaction. Without anything it is rolled back.
type secondaryLocks struct {
	// locked: all keys are locked. plain: one of the locks is no lock of asynchronous commit.
	locked, plain bool
	// commitTS is when the transaction was committed, or is, as far as these locks say.
	commitTS uint64
}

// secondaries looks at sorted keys of a transaction. One that is neither locked nor committed can
// not be locked by it any more.
func (c *Client) secondaries(
	ctx context.Context, keys [][]byte, startTS uint64,
) (of secondaryLocks, err error) {
	of.locked = true
	for left := keys; len(left) > 0; {
		var resp *kvrpcpb.CheckSecondaryLocksResponse
		n := 0
		err := c.kv.Call(ctx, memcomparable.Encode(left[0]), 0, func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
		) (*errorpb.Error, error) {
			n = max(1, within(region, left))
			r, err := s.KvCheckSecondaryLocks(ctx, &kvrpcpb.CheckSecondaryLocksRequest{
				Context: kctx, StartVersion: startTS, Keys: left[:n],
			})
			resp = r
			return r.GetRegionError(), err
		})
		if err == nil && resp.Error != nil {
			err = keyError(resp.Error)
		}
		if err != nil {
			return secondaryLocks{}, err
		}
		if resp.CommitTs > 0 || len(resp.Locks) < n {
			return secondaryLocks{commitTS: resp.CommitTs}, nil
		}
		for _, l := range resp.Locks {
			of.plain = of.plain || !l.UseAsyncCommit
			of.commitTS = max(of.commitTS, l.MinCommitTs)
		}
		left = left[n:]
	}
	return of, nil
}

// resolveKeys ends all locks of a transaction in the regions of sorted keys.
func (c *Client) resolveKeys(ctx context.Context, keys [][]byte, startTS, commitTS uint64) error {
	groups := c.groups(keys)
	return parallel(ctx, len(groups), maxBatches, func(ctx context.Context, i int) error {
		for left := groups[i]; len(left) > 0; {
			n := 0
			err := c.resolveIn(ctx, left[0], startTS, commitTS, func(region *metapb.Region) {
				n = max(1, within(region, left))
			})
			if err != nil {
				return err
			}
			left = left[n:]
		}
		return nil
	})
}

// expired tells whether the time of a lock is over, as far as the lock itself says: that of its
// transaction's primary may have been prolonged.
func expired(l *kvrpcpb.LockInfo, now uint64) bool {
	return now>>logicalBits > l.LockVersion>>logicalBits+l.LockTtl
}

// status asks the primary what became of a lock's transaction, which is rolled back if its time is
// over at now. One whose primary is not locked yet lives as long as the lock does. sync says that
// it is known to have a plain lock.
func (c *Client) status(
	ctx context.Context, l *kvrpcpb.LockInfo, now uint64, sync bool,
) (st *kvrpcpb.CheckTxnStatusResponse, err error) {
	err = c.kv.Call(ctx, memcomparable.Encode(l.PrimaryLock), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.KvCheckTxnStatus(ctx, &kvrpcpb.CheckTxnStatusRequest{
			Context: kctx, PrimaryKey: l.PrimaryLock, LockTs: l.LockVersion, CurrentTs: now,
			KeepMissing: !expired(l, now), ForceSyncCommit: sync,
		})
		st = r
		return r.GetRegionError(), err
	})
	return st, err
}

// resolveAt ends all locks of a transaction in the region of a key: commits them at commitTS, or
// rolls them back if that is 0.
func (c *Client) resolveAt(ctx context.Context, key []byte, startTS, commitTS uint64) error {
	return c.resolveIn(ctx, key, startTS, commitTS, func(*metapb.Region) {})
}

// resolveIn is resolveAt, which tells the region.
func (c *Client) resolveIn(
	ctx context.Context, key []byte, startTS, commitTS uint64, in func(region *metapb.Region),
) error {
	var resp *kvrpcpb.ResolveLockResponse
	err := c.kv.Call(ctx, memcomparable.Encode(key), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
	) (*errorpb.Error, error) {
		in(region)
		r, err := s.KvResolveLock(ctx, &kvrpcpb.ResolveLockRequest{
			Context: kctx, StartVersion: startTS, CommitVersion: commitTS,
		})
		resp = r
		return r.GetRegionError(), err
	})
	if err == nil && resp.Error != nil {
		err = keyError(resp.Error)
	}
	return err
}
