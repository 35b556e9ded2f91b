// Package waiting has transactions wait for the locks of others, within one store. A waiter holds
// no latch, and nothing that it waits for waits for it here; that of the locks it holds is a matter
// of package deadlock.
package waiting

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// stagger is how much later than the oldest waiter all others are woken: it takes the lock, mostly.
const stagger = 20 * time.Millisecond

// Queues are the waiters of all keys. The zero value is ready. Safe for concurrent use.
type Queues struct {
	count atomic.Int64
	mu    struct {
		sync.Mutex
		byKey map[string][]*Waiter
	}
}

// Waiter waits for the lock of one key.
type Waiter struct {
	q       *Queues
	key     string
	startTS uint64
	woken   chan struct{}
	// turn is open from the moment at which the waiter is woken until it has tried; nil else.
	// Guarded by q.mu.
	turn chan struct{}
}

// Join enters the queue of a key. The caller must look once more whether the key is still locked:
// the lock may have gone before.
func (q *Queues) Join(key []byte, startTS uint64) *Waiter {
	w := &Waiter{q: q, key: string(key), startTS: startTS, woken: make(chan struct{}, 1)}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.byKey == nil {
		q.mu.byKey = map[string][]*Waiter{}
	}
	list := q.mu.byKey[w.key]
	at, _ := slices.BinarySearchFunc(list, w, func(a, b *Waiter) int {
		if a.startTS <= b.startTS {
			return -1
		}
		return 1
	})
	q.mu.byKey[w.key] = slices.Insert(list, at, w)
	q.count.Add(1)
	return w
}

// Leave ends the wait. To be called once.
func (w *Waiter) Leave() {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	w.triedLocked()
	left := slices.DeleteFunc(w.q.mu.byKey[w.key], func(o *Waiter) bool { return o == w })
	if len(left) == 0 {
		delete(w.q.mu.byKey, w.key)
	} else {
		w.q.mu.byKey[w.key] = left
	}
	w.q.count.Add(-1)
}

// First tells whether nobody stands before it.
func (w *Waiter) First() bool {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	list := w.q.mu.byKey[w.key]
	return len(list) > 0 && list[0] == w
}

// Woken has something once the lock may have gone.
func (w *Waiter) Woken() <-chan struct{} { return w.woken }

// Idle tells whether nobody waits.
func (q *Queues) Idle() bool { return q.count.Load() == 0 }

// Tried ends the turn of a waiter that was woken: it has the lock, or another one.
func (w *Waiter) Tried() {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	w.triedLocked()
}

func (w *Waiter) triedLocked() {
	if w.turn != nil {
		close(w.turn)
		w.turn = nil
	}
}

// Yield lets waiters that have just been woken try first, if they began before a transaction that
// is about to lock the keys, but only for as long as they stand before other waiters. Without it a
// transaction that comes again at once, having given its locks up, takes them from those it gave
// them up for: the next deadlock, and so on.
func (q *Queues) Yield(ctx context.Context, startTS uint64, keys ...[]byte) {
	if q.Idle() {
		return
	}
	var timer <-chan time.Time
	for _, key := range keys {
		turn := q.turn(key, startTS)
		if turn == nil {
			continue
		}
		if timer == nil {
			timer = time.After(stagger)
		}
		select {
		case <-turn:
		case <-timer:
			return
		case <-ctx.Done():
			return
		}
	}
}

// turn is that of the first waiter of a key, if it is to try before a transaction.
func (q *Queues) turn(key []byte, startTS uint64) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if list := q.mu.byKey[string(key)]; len(list) > 0 && list[0].startTS < startTS {
		return list[0].turn
	}
	return nil
}

// Wake tells those who wait for a key that its lock has gone: the transaction that began first at
// once, the others a little later.
func (q *Queues) Wake(key []byte) {
	q.mu.Lock()
	list := slices.Clone(q.mu.byKey[string(key)])
	if len(list) > 0 && list[0].turn == nil {
		list[0].turn = make(chan struct{})
	}
	q.mu.Unlock()
	if len(list) == 0 {
		return
	}
	list[0].wake()
	if len(list) > 1 {
		time.AfterFunc(stagger, func() {
			for _, w := range list[1:] {
				w.wake()
			}
		})
	}
}

func (w *Waiter) wake() {
	select {
	case w.woken <- struct{}{}:
	default: // it has not looked yet
	}
}
