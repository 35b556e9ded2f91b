package raftstore

import (
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// applyHost is the store as one of its apply workers knows it. Owned by that worker.
type applyHost struct {
	store *Store
	woken []*mailbox // by the reports of a batch
}

var _ apply.Host = (*applyHost)(nil)

// appliers are the apply workers of a store.
type appliers []*apply.Worker

func newAppliers(s *Store) appliers {
	workers := make(appliers, s.cfg.Raftstore.ApplyWorkers)
	for i := range workers {
		workers[i] = apply.New(apply.Options{
			ID: i, StoreID: s.storeID, Host: &applyHost{store: s}, Engine: s.engine,
			Hasher: s.hasher, Swaps: &s.swaps,
		})
	}
	return workers
}

// of is the place of the worker that a region is sticky to.
func (a appliers) of(regionID uint64) int { return int(regionID % uint64(len(a))) }

// forRegion is the worker that a region is sticky to.
func (a appliers) forRegion(regionID uint64) *apply.Worker { return a[a.of(regionID)] }

// beginTask tells the apply worker what this peer has applied; entries will follow.
func (p *peer) beginTask() apply.Task {
	return apply.Task{RegionID: p.regionID, Begin: &apply.Begin{
		Peer: p.self, Region: p.region(), Applied: p.appliedIndex, Term: p.appliedTerm,
		Truncated: p.ps.truncated,
		Merging:   p.merge.state,
	}}
}

// Neighbours implements apply.Host.
func (h *applyHost) Neighbours(r *metapb.Region) []*metapb.Region {
	return h.store.ranges.withNeighbours(r)
}

// ReserveSplit implements apply.Host.
func (h *applyHost) ReserveSplit(right *metapb.Region, peerID uint64) bool {
	return h.store.ranges.reserveSplit(right, peerID)
}

// Report implements apply.Host.
func (h *applyHost) Report(regionID uint64, m *message.Applied) {
	b := h.store.router.get(regionID)
	if b == nil {
		return // the peer is gone
	}
	if m.Mortal {
		b.mortal.Add(1) // after the engine has the times: see runner.Led
	}
	if wake, _ := h.store.router.put(b, m); wake { // refused only when the peer is going
		h.woken = append(h.woken, b)
	}
}

// Flushed implements apply.Host. The regions that a batch has woken share a turn.
func (h *applyHost) Flushed(entries uint64) {
	h.store.work.applyBatches.Add(1)
	h.store.work.appliedEntries.Add(entries)
	h.store.router.ready.push(h.woken...)
	clear(h.woken)
	h.woken = h.woken[:0]
}

// Age implements apply.Host.
func (h *applyHost) Age() time.Duration { return h.store.age() }

// Applied implements apply.Host.
func (h *applyHost) Applied(regionID uint64, p *message.Proposal) {
	h.store.stages.Note(regionID, p)
}

// Release implements apply.Host.
func (h *applyHost) Release(bytes int64) { h.store.inflight.Add(-bytes) }

// Damaged implements apply.Host.
func (h *applyHost) Damaged(regionID uint64, err error) {
	h.store.work.corruptEntries.Add(1)
	h.store.ReadFailed(regionID, err)
}
