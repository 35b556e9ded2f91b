// Package waiting has transactions wait for the locks of others, within one store. A waiter holds no latch, and nothing
// that it waits for waits for it here; that of the locks it holds is a matter of package deadlock.
package waiting

import (
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
}

// Join enters the queue of a key. The caller must look once more whether the key is still locked: the lock may have
// gone before.
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

// Wake tells those who wait for a key that its lock has gone: the transaction that began first at once, the others a
// little later.
func (q *Queues) Wake(key []byte) {
	q.mu.Lock()
	list := slices.Clone(q.mu.byKey[string(key)])
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
