package rpc

import "sync/atomic"

// Budget is a number of bytes that many share. Safe for concurrent use.
//
// Invariant: what was taken and not given back is at most the limit, but for what was charged.
type Budget struct {
	limit   int64
	used    atomic.Int64
	refused atomic.Uint64
}

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Take takes n bytes; false if there are not so many.
func (b *Budget) Take(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		b.refused.Add(1)
		return false
	}
	return true
}

// Give gives bytes back that were taken.
func (b *Budget) Give(n int64) { b.used.Add(-n) }

// Charge takes n bytes also where they exceed the limit, or gives -n back: for what is there
// already.
func (b *Budget) Charge(n int64) { b.used.Add(n) }

// Refuse counts something for which there was no room.
func (b *Budget) Refuse() { b.refused.Add(1) }

// Limit is how much can be taken in all.
func (b *Budget) Limit() int64 { return b.limit }

// Used is how much is taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// Refused is how often there was no room.
func (b *Budget) Refused() uint64 { return b.refused.Load() }
