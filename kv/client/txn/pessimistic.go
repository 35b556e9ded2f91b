package txn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

const (
	// lockLives is how long a pessimistic lock lives without a heartbeat, beat how often there is
	// one, and maxLives for how long a transaction is kept alive at most.
	lockLives = 20 * time.Second
	beat      = 5 * time.Second
	maxLives  = time.Hour
)

// locks are those that a pessimistic transaction has taken before its commit. Owner: the
// transaction; the heartbeat moves alive, and nothing else of it.
type locks struct {
	pessimistic bool
	// keys are locked, primary is the first of them.
	keys    map[string]bool
	primary []byte
	// forUpdateTS is the timestamp of the newest lock.
	forUpdateTS uint64
	// alive is a moment, in nanoseconds since the begin of the transaction, from which on the
	// primary's lock lives for lockLives. The heartbeat moves it.
	alive atomic.Int64
	// stop ends the heartbeat.
	stop context.CancelFunc
}

func (l *locks) has(key []byte) bool { return l.keys[string(key)] }

// join adds what is locked and not written to what is committed, so that it stays locked until
// then.
func (l *locks) join(writes map[string]mutation) {
	for k := range l.keys {
		if _, written := writes[k]; !written {
			writes[k] = mutation{op: kvrpcpb.Op_Lock}
		}
	}
}

// rest ends the heartbeat: the locks are about to go.
func (l *locks) rest() {
	if l.stop != nil {
		l.stop()
	}
}

// kept fails if the locks of a transaction that has only locked keys may have gone before its end:
// then what it has read need not be of one moment. Nobody takes the others before the primary's.
func (l *locks) kept(ctx context.Context, t *Txn) error {
	if len(l.keys) == 0 || time.Since(t.begun)-time.Duration(l.alive.Load()) < lockLives/2 {
		return nil
	}
	return t.c.heartbeat(ctx, t, l.primary)
}

// drop lets the locks go, if there are any, in the background if there is room.
func (l *locks) drop(t *Txn) {
	l.rest()
	if len(l.keys) == 0 {
		return
	}
	var keys [][]byte
	for k := range l.keys {
		keys = append(keys, []byte(k))
	}
	slices.SortFunc(keys, bytes.Compare)
	m := &committer{t: t, keys: keys}
	// or their time ends them
	release := func(ctx context.Context) { _ = m.each(ctx, keys, m.release) }
	if !t.c.inBackground(release) {
		ctx, cancel := context.WithTimeout(t.c.ctx, cleanTimeout)
		defer cancel()
		release(ctx)
	}
}

func (m *committer) release(
	ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, keys [][]byte,
) (res stepResult) {
	resp, err := s.KvPessimisticRollback(ctx, &kvrpcpb.PessimisticRollbackRequest{
		Context: kctx, StartVersion: m.t.startTS, ForUpdateTs: m.t.locks.forUpdateTS, Keys: keys,
	})
	res.region, res.rpc = resp.GetRegionError(), err
	if e := resp.GetErrors(); len(e) > 0 {
		res.err = keyError(e[0])
	}
	return res
}

// BeginPessimistic starts a transaction that can lock keys before its commit (LockKeys). It must be
// ended by Commit or Rollback: until then it is kept alive, for an hour at most. Keys that are
// written without being locked are checked at the commit, as in any other transaction.
func (c *Client) BeginPessimistic(ctx context.Context) (*Txn, error) {
	t, err := c.Begin(ctx)
	if err == nil {
		t.locks.pessimistic, t.locks.keys = true, map[string]bool{}
	}
	return t, err
}

// ErrOptimistic is returned by LockKeys of a transaction that BeginPessimistic has not begun.
var ErrOptimistic = errors.New("txn: only pessimistic transactions lock keys before their commit")

// LockKeys locks keys, so that nobody else changes them before this transaction ends, and returns
// the newest values of those that exist. It waits for others until ctx ends. After an error some of
// the keys may be locked. At ErrDeadlock the transaction is to be rolled back, since others wait
// for it.
//
// Get and Scan still read at the transaction's start.
func (t *Txn) LockKeys(ctx context.Context, keys ...[]byte) (map[string][]byte, error) {
	switch {
	case t.ended:
		return nil, ErrFinished
	case !t.locks.pessimistic:
		return nil, ErrOptimistic
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, commitTimeout)
		defer cancel()
	}
	left := slices.Clone(keys)
	slices.SortFunc(left, bytes.Compare)
	left = slices.CompactFunc(left, bytes.Equal)
	values := map[string][]byte{}
	wait := backoff{}
	for len(left) > 0 {
		n, err := t.lockSome(ctx, left, values)
		var held *heldError
		switch {
		case err == nil:
			left = left[n:]
			wait = backoff{}
			continue
		case errors.As(err, &held):
			err = t.c.pass(ctx, &wait, held.lock)
		case errors.Is(err, ErrConflict) && !errors.Is(err, ErrDeadlock) &&
			!errors.Is(err, ErrLockLost):
			err = nil // it was changed meanwhile: the next timestamp is later
			if !wait.sleep(ctx) {
				err = ctx.Err()
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return values, nil
}

// ForUpdateTS is the timestamp of the newest lock that LockKeys has taken; 0 before.
func (t *Txn) ForUpdateTS() uint64 { return t.locks.forUpdateTS }

// heldError: another transaction has the lock, and kept it for as long as the store has waited.
type heldError struct{ lock *kvrpcpb.LockInfo }

func (e *heldError) Error() string { return "txn: a key is locked" }

// lockSome locks the first of the sorted keys and those after it that go in the same request, at a
// new timestamp. n is how many they are.
func (t *Txn) lockSome(
	ctx context.Context, keys [][]byte, values map[string][]byte,
) (n int, err error) {
	ts, err := t.c.Timestamp(ctx)
	if err != nil {
		return 0, err
	}
	l := &t.locks
	primary, first := l.primary, l.primary == nil
	if first {
		primary, keys = bytes.Clone(keys[0]), keys[:1]
	}
	var resp *kvrpcpb.PessimisticLockResponse
	asked := time.Since(t.begun)
	// A lock may be taken although no answer comes: it is dropped with the others.
	note := func(some [][]byte) {
		for _, k := range some {
			l.keys[string(k)] = true
		}
		l.primary, l.forUpdateTS = primary, max(l.forUpdateTS, ts)
	}
	err = t.c.kv.Call(ctx, memcomparable.Encode(keys[0]), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
	) (*errorpb.Error, error) {
		n = min(max(1, within(region, keys)), maxGetKeys)
		r, err := s.KvPessimisticLock(ctx, &kvrpcpb.PessimisticLockRequest{
			Context: kctx, PrimaryLock: primary, StartVersion: t.startTS, ForUpdateTs: ts,
			Keys:    keys[:n],
			LockTtl: uint64((time.Since(t.begun) + lockLives).Milliseconds()), IsFirstLock: first,
			ReturnValues: true,
		})
		if err != nil || r.RegionError != nil {
			note(keys[:n])
		}
		resp = r
		return r.GetRegionError(), err
	})
	if err != nil {
		return 0, err
	}
	if len(resp.Errors) > 0 {
		if l := resp.Errors[0].Locked; l != nil {
			return 0, &heldError{l}
		}
		return 0, keyError(resp.Errors[0])
	}
	note(keys[:n])
	if first {
		l.alive.Store(int64(asked))
	}
	for i, k := range keys[:n] {
		if i < len(resp.NotFounds) && !resp.NotFounds[i] {
			values[string(k)] = bytes.Clone(resp.Values[i])
		}
	}
	t.keepAlive()
	return n, nil
}

// keepAlive sends heartbeats for the primary until the transaction ends.
func (t *Txn) keepAlive() {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.locks.stop != nil || t.c.mu.closed {
		return
	}
	t.c.beats.Add(1)
	ctx, cancel := context.WithTimeout(t.c.ctx, maxLives)
	t.locks.stop = cancel
	c, primary := t.c, t.locks.primary
	// Ends with the transaction, with the client, or after maxLives.
	go func() {
		defer c.beats.Done()
		tick := time.NewTicker(beat)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// If it fails the next one may get through; where the lock is gone, the commit says so.
			_ = c.heartbeat(ctx, t, primary)
		}
	}()
}

// heartbeat has a transaction live for lockLives from now on. ErrLockLost says that it does not
// live any more.
func (c *Client) heartbeat(ctx context.Context, t *Txn, primary []byte) error {
	ctx, cancel := context.WithTimeout(ctx, beat)
	defer cancel()
	since := time.Since(t.begun)
	var resp *kvrpcpb.TxnHeartBeatResponse
	err := c.kv.Call(ctx, memcomparable.Encode(primary), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.KvTxnHeartBeat(ctx, &kvrpcpb.TxnHeartBeatRequest{
			Context: kctx, PrimaryLock: primary, StartVersion: t.startTS,
			AdviseLockTtl: uint64((since + lockLives).Milliseconds()),
		})
		resp = r
		return r.GetRegionError(), err
	})
	switch {
	case err != nil:
		return err
	case resp.Error != nil:
		return fmt.Errorf("%w: %v", ErrLockLost, resp.Error)
	}
	t.locks.alive.Store(int64(since))
	return nil
}
