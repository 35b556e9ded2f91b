// Package latches is the course's form of latches, for its test suites. Servers use package latch.
package latches

import (
	"sync"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
)

// Latches are latches of keys. A command waits for the group of a key that another one has, and
// tries again. Safe for concurrent use.
type Latches struct {
	latchMap   map[string]*sync.WaitGroup
	latchGuard sync.Mutex
	// Validation, if it is set, is called with what a command is about to write, and the keys that
	// it has latched.
	Validation func(txn *mvcc.MvccTxn, keys [][]byte)
}

// NewLatches returns latches of which none is taken.
func NewLatches() *Latches { return &Latches{latchMap: map[string]*sync.WaitGroup{}} }

// AcquireLatches takes all of the keys, or none: then it returns the group to wait for.
func (l *Latches) AcquireLatches(keys [][]byte) *sync.WaitGroup {
	l.latchGuard.Lock()
	defer l.latchGuard.Unlock()
	for _, k := range keys {
		if wg, taken := l.latchMap[string(k)]; taken {
			return wg
		}
	}
	wg := new(sync.WaitGroup)
	wg.Add(1)
	for _, k := range keys {
		l.latchMap[string(k)] = wg
	}
	return nil
}

// ReleaseLatches gives back what one AcquireLatches has taken.
func (l *Latches) ReleaseLatches(keys [][]byte) {
	l.latchGuard.Lock()
	defer l.latchGuard.Unlock()
	for i, k := range keys {
		if wg := l.latchMap[string(k)]; i == 0 && wg != nil {
			wg.Done() // all of them have one group
		}
		delete(l.latchMap, string(k))
	}
}

// WaitForLatches takes all of the keys as soon as they are free.
func (l *Latches) WaitForLatches(keys [][]byte) {
	for wg := l.AcquireLatches(keys); wg != nil; wg = l.AcquireLatches(keys) {
		wg.Wait()
	}
}

// Validate calls Validation.
func (l *Latches) Validate(txn *mvcc.MvccTxn, keys [][]byte) {
	if l.Validation != nil {
		l.Validation(txn, keys)
	}
}
