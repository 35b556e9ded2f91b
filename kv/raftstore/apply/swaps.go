package apply

import (
	"sync"

	"github.com/tinykv/tinykv/kv/raftstore/message"
)

// Swaps remembers which of the last compare-and-swaps with an identity have swapped, of all regions
// of the store. The log tells that one was applied, and not how it ended. Each replica evaluates
// them all, so each knows, but for those from before its store started: their retries are
// undetermined. Safe for concurrent use.
//
// Invariant: an identity that is in both halves has swapped if either says so.
type Swaps struct {
	mu struct {
		sync.Mutex
		young, old map[message.WriteID]bool
	}
}

// maxSwaps bounds each half of a Swaps.
const maxSwaps = 1 << 16

// Note remembers how a compare-and-swap ended.
func (m *Swaps) Note(id message.WriteID, swapped bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.mu.young) >= maxSwaps || m.mu.young == nil {
		m.mu.old, m.mu.young = m.mu.young, map[message.WriteID]bool{}
	}
	m.mu.young[id] = swapped || m.mu.young[id]
}

// Of tells whether an attempt has swapped; known is false if it is too long ago.
func (m *Swaps) Of(id message.WriteID) (swapped, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	young, inYoung := m.mu.young[id]
	old, inOld := m.mu.old[id]
	return young || old, inYoung || inOld
}
