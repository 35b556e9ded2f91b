package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/deadlock"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/kv/transaction/waiting"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Edge says that a transaction waits for another one's lock.
type Edge = deadlock.Edge

// Detector finds circles of transactions that wait for each other, in the whole cluster. Safe for
// concurrent use.
type Detector interface {
	// Detect adds an edge. It returns the other edges of a circle that it would close; then it is
	// not added. Without an answer nothing is known, and the wait ends by its timeout.
	Detect(ctx context.Context, e deadlock.Edge) (chain []deadlock.Edge, err error)
	// Remove takes an edge back.
	Remove(ctx context.Context, e deadlock.Edge)
}

// SetDetector replaces the detector, which knows of this store alone. To be called before the first
// command.
func (e *Executor) SetDetector(d Detector) { e.detector = d }

// localDetector is one for a single store.
type localDetector struct{ g *deadlock.Graph }

func (d localDetector) Detect(_ context.Context, e deadlock.Edge) ([]deadlock.Edge, error) {
	return d.g.Detect(e), nil
}

func (d localDetector) Remove(_ context.Context, e deadlock.Edge) { d.g.Remove(e) }

// DeadlockError: a transaction would wait for one that waits for it, perhaps by way of others.
type DeadlockError struct {
	// HolderTS has the lock on Key.
	HolderTS uint64
	Key      []byte
	// Chain are the waits that exist, from the holder's to one for the transaction.
	Chain []deadlock.Edge
}

func (e *DeadlockError) Error() string {
	return fmt.Sprintf("Deadlock: key %v is locked by the transaction %d, which waits for this one",
		redact.Key(e.Key), e.HolderTS)
}

const (
	// MaxLockWait bounds the wait of one request for locks; clients ask again.
	MaxLockWait = time.Second
	// lookAgain is how often a waiter looks whether the lock is still there, and whether this store
	// still leads.
	lookAgain = 200 * time.Millisecond
	// tellTimeout bounds a question to the detector.
	tellTimeout = 300 * time.Millisecond
)

// LockWait is the wait that a request asks for by a number of milliseconds: 0 is the store's
// choice, a negative one none.
func LockWait(ms int64) time.Duration {
	switch most := MaxLockWait.Milliseconds(); {
	case ms < 0:
		return 0
	case ms == 0 || ms > most:
		return MaxLockWait
	}
	return time.Duration(ms) * time.Millisecond
}

// wait is one request that waits for the locks of others, one after the other.
type wait struct {
	e      *Executor
	p      *PessimisticLock
	place  *waiting.Waiter
	key    []byte
	edge   deadlock.Edge
	told   bool // the detector knows of the edge
	locked *LockedError
}

// lockOrWait tries until the keys are locked, or something other than a lock is in the way, or the
// time is over.
func (e *Executor) lockOrWait(
	ctx context.Context, c *kvrpcpb.Context, p *PessimisticLock, keys [][]byte, try func() ([]Value, error),
) ([]Value, error) {
	if p.Wait > 0 {
		e.waiting.Yield(ctx, p.StartTS, keys...)
	}
	values, err := try()
	w := &wait{e: e, p: p}
	if p.Wait <= 0 || !errors.As(err, &w.locked) {
		return values, err
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	timer := time.NewTimer(min(p.Wait, MaxLockWait))
	defer timer.Stop()
	defer w.leave()
	for {
		if !w.standAt(w.locked.Key) {
			// else it may have gone before this one stood in line
			if values, err = try(); !errors.As(err, &w.locked) {
				return values, err
			}
			if !w.at(w.locked.Key) {
				continue
			}
		}
		if err := w.tell(ctx); err != nil {
			return nil, err
		}
		again := time.NewTimer(lookAgain)
		select {
		case <-w.place.Woken():
		case <-again.C:
			// Only the first looks: the others would come before it.
			if _, err := e.st.Leadership(c); err != nil {
				return nil, err
			}
			if !w.place.First() {
				continue
			}
		case <-timer.C:
			again.Stop()
			return nil, w.locked
		case <-ctx.Done():
			again.Stop()
			return nil, ctx.Err()
		}
		again.Stop()
		values, err = try()
		w.place.Tried()
		if !errors.As(err, &w.locked) {
			return values, err
		}
	}
}

func (w *wait) at(key []byte) bool { return w.place != nil && string(w.key) == string(key) }

// standAt has the wait be in the queue of a key; false if it was not before.
func (w *wait) standAt(key []byte) bool {
	if w.at(key) {
		return true
	}
	if w.place != nil {
		w.place.Leave()
	}
	w.place, w.key = w.e.waiting.Join(key, w.p.StartTS), key
	return false
}

// tell has the detector know for whom this transaction waits.
func (w *wait) tell(ctx context.Context) error {
	if w.p.First {
		return nil
	}
	edge := deadlock.Edge{Waiter: w.p.StartTS, Holder: w.locked.Ts, Key: w.locked.Key, Tag: w.p.Tag}
	if w.told && edge.Holder != w.edge.Holder {
		w.untell()
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	chain, err := w.e.detector.Detect(ctx, edge)
	if len(chain) > 0 {
		return &DeadlockError{HolderTS: edge.Holder, Key: edge.Key, Chain: chain}
	}
	w.edge, w.told = edge, w.told || err == nil
	return nil
}

func (w *wait) untell() {
	if !w.told {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	w.e.detector.Remove(ctx, w.edge)
	w.told = false
}

// leave ends the wait: a transaction that waits no more is part of no deadlock.
func (w *wait) leave() {
	w.untell()
	if w.place != nil {
		w.place.Leave()
	}
}

// wake tells those who wait for locks that a write has removed.
func (e *Executor) wake(mods []storage.Modify) {
	if e.waiting.Idle() {
		return
	}
	for i := range mods {
		if m := &mods[i]; m.Delete && m.CF == engine.CFLock {
			if key, err := e.policy.Codec.UserKey(m.Key); err == nil {
				e.waiting.Wake(key)
			}
		}
	}
}

// Waits are who waits for whom, as far as this store keeps it for the cluster.
func (e *Executor) Waits() []deadlock.Edge { return e.graph.Edges() }

// DetectDeadlock is Detector.Detect, or Remove, for the cluster: asked at the store that leads the
// first region. What an earlier leader has kept comes again, since requests that wait repeat
// themselves.
func (e *Executor) DetectDeadlock(
	ctx context.Context, c *kvrpcpb.Context, edge deadlock.Edge, remove bool,
) (chain []deadlock.Edge, err error) {
	view, err := e.st.Reader(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	start, _ := view.Range()
	view.Close()
	switch {
	case len(start) > 0:
		return nil, abortf("the store that leads the first region finds deadlocks")
	case edge.Waiter == 0 || edge.Holder == 0 || edge.Waiter == mvcc.TsMax ||
		edge.Waiter == edge.Holder:
		return nil, abortf("the transaction %d cannot wait for %d", edge.Waiter, edge.Holder)
	case remove:
		e.graph.Remove(edge)
		return nil, nil
	}
	return e.graph.Detect(edge), nil
}
