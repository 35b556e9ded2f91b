package rpc

import "sync/atomic"

// Budget is a number of bytes that many share. Safe for concurrent use.
//
// Invariant: what was taken and not given back is at most the limit.
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

// Used is how much is taken.
func (b *Budget) Used() int64 { return b.used.Load() }
