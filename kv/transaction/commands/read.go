package commands

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// blocks tells whether a lock keeps a read at version from knowing the key's value: its transaction may have committed
// below version. A read of the newest value passes the lock on a primary, since that transaction is not committed as long
// as this lock is there.
func blocks(key []byte, l *mvcc.Lock, version uint64) bool {
	if l.Ts > version || l.MinCommitTS > version || l.Kind != mvcc.WriteKindPut && l.Kind != mvcc.WriteKindDelete {
		return false
	}
	return version != mvcc.TsMax || l.AsyncCommit || !bytes.Equal(key, l.Primary)
}

// Get returns the value that a read at version sees, or a *LockedError.
func (e *Executor) Get(ctx context.Context, c *kvrpcpb.Context, key []byte, version uint64) (value []byte, found bool, err error) {
	view, err := e.st.Reader(ctx, c, memcomparable.Encode(key))
	if err != nil {
		return nil, false, err
	}
	defer view.Close()
	r := mvcc.NewReader(view, e.policy.Codec)
	defer r.Close()
	l, err := r.Lock(key)
	if err != nil {
		return nil, false, err
	}
	if l != nil && blocks(key, l, version) {
		return nil, false, &LockedError{mvcc.KeyLock{Key: key, Lock: *l}}
	}
	return r.Get(key, version)
}

// Pair is a key of a scan, with its value or a *LockedError.
type Pair struct {
	Key, Value []byte
	Err        error
}

// Scan hands the first limit keys of the region from start on to emit, as a read at version sees them. Locked keys count.
// An error of emit ends it.
func (e *Executor) Scan(
	ctx context.Context, c *kvrpcpb.Context, start []byte, limit int, version uint64, emit func(Pair) error,
) error {
	view, err := e.st.Reader(ctx, c, memcomparable.Encode(start))
	if err != nil {
		return err
	}
	defer view.Close()
	r := mvcc.NewReader(view, e.policy.Codec)
	defer r.Close()
	s := mvcc.NewScanner(r, start, version, func(key []byte, l *mvcc.Lock) bool { return blocks(key, l, version) })
	defer s.Close()
	for range limit {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		item, err := s.Next()
		if err != nil || item == nil {
			return err
		}
		p := Pair{Key: item.Key, Value: item.Value}
		if item.Lock != nil {
			p.Err = &LockedError{mvcc.KeyLock{Key: item.Key, Lock: *item.Lock}}
		}
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}
