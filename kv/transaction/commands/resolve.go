package commands

import (
	"context"

	"github.com/tinykv/tinykv/kv/transaction/memlock"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

const (
	// resolveLocks and resolveBytes bound what one step of ResolveLocks does under latches.
	resolveLocks = 256
	resolveBytes = 32 << 10
)

// Outcomes are the commit timestamps of transactions by their start timestamps; 0 is a rollback.
type Outcomes map[uint64]uint64

func (o Outcomes) check() error {
	for startTS, commitTS := range o {
		if err := checkStartTS(startTS); err != nil {
			return err
		}
		if commitTS == 0 {
			continue
		}
		if err := checkCommitTS(startTS, commitTS); err != nil {
			return err
		}
	}
	return nil
}

// ResolveLocks ends all locks of some transactions in the region. It takes several steps; one that
// fails leaves those before it done.
func (e *Executor) ResolveLocks(ctx context.Context, c *kvrpcpb.Context, of Outcomes) error {
	if err := of.check(); err != nil {
		return err
	}
	var from []byte
	for {
		locks, _, err := e.someLocks(ctx, c, mvcc.Span{From: from}, resolveLocks, resolveBytes,
			func(l *mvcc.Lock) bool {
				_, ours := of[l.Ts]
				return ours
			})
		if err != nil || len(locks) == 0 {
			return err
		}
		keys := make([][]byte, len(locks))
		for i, l := range locks {
			keys[i] = l.Key
		}
		err = e.update(ctx, c, keys, ends, func(tx *txn) error {
			for _, l := range locks {
				if err := tx.end(l.Key, l.Ts, of[l.Ts]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		from = append(keys[len(keys)-1], 0)
	}
}

// ResolveKeys ends a transaction at keys: commits them at commitTS, or rolls them back if that is
// 0; all of them, or none.
func (e *Executor) ResolveKeys(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS, commitTS uint64,
) error {
	if commitTS > 0 {
		return e.Commit(ctx, c, keys, startTS, commitTS)
	}
	return e.Rollback(ctx, c, keys, startTS)
}

// end commits a key at commitTS, or rolls it back.
func (tx *txn) end(key []byte, startTS, commitTS uint64) error {
	if commitTS > 0 {
		return tx.commit(key, startTS, commitTS)
	}
	return tx.rollback(key, startTS)
}

// someLocks are locks of the region that match, some of them.
func (e *Executor) someLocks(
	ctx context.Context, c *kvrpcpb.Context, span mvcc.Span, max, maxBytes int,
	match func(*mvcc.Lock) bool,
) (locks []mvcc.KeyLock, cut bool, err error) {
	view, err := e.st.Reader(ctx, c, nil)
	if err != nil {
		return nil, false, err
	}
	defer view.Close()
	r := mvcc.NewReader(view, e.policy.Codec)
	defer r.Close()
	return r.Locks(span, max, maxBytes, match)
}

// maxLockBytes bounds what one ScanLocks reads.
const maxLockBytes = 64 << 20

// ScanLocks lists the locks of transactions that began by maxTS, of keys of [start, end) in the
// region, at most limit; nil bounds are those of the region.
func (e *Executor) ScanLocks(
	ctx context.Context, c *kvrpcpb.Context, maxTS uint64, start, end []byte, limit int,
) ([]mvcc.KeyLock, error) {
	// Commits whose timestamp this store chooses from now on are behind maxTS, also those of
	// transactions that began by then; locks under way are waited for.
	if err := e.raise(ctx, maxTS); err != nil {
		return nil, err
	}
	if err := e.await(ctx, c,
		memlock.Search{Range: true, From: start, To: end, TS: maxTS, Begun: true}); err != nil {
		return nil, err
	}
	begun := func(l *mvcc.Lock) bool { return l.Ts <= maxTS }
	locks, cut, err := e.someLocks(ctx, c, mvcc.Span{From: start, To: end}, limit, maxLockBytes,
		begun)
	if err == nil && cut && len(locks) < limit {
		// fewer would mean that there are no more
		return nil, abortf("the locks exceed what one answer holds; lower the limit")
	}
	return locks, err
}
