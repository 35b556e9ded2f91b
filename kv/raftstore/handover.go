package raftstore

import (
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/raft"
)

// handover keeps the writes that reach a leader while it hands its leadership over. Raft takes no proposals then,
// and refusing them would send clients into their pauses, and to peers that know no leader either. So they wait for
// the few milliseconds until either the next leader is known, to whom their clients are sent, or the transfer is
// given up, and they are proposed here.
//
// Invariant: what waits here has not been proposed; it is checked anew, its deadline too, when the wait ends.
type handover struct {
	writes []*message.Write
	// until bounds the wait of a former leader that does not hear who leads now.
	until time.Time
}

// handingOver tells whether writes wait for the end of a transfer.
func (p *peer) handingOver() bool {
	if p.stopped || p.removed != nil {
		return false
	}
	if p.isLeader() {
		return p.rn.LeadTransferee() != raft.None
	}
	return p.rn.Lead() == raft.None && p.store.clock.Now().Before(p.handover.until)
}

// beginHandover is called when a transfer begins.
func (p *peer) beginHandover() {
	cfg := &p.store.cfg.Raftstore
	p.handover.until = p.store.clock.Now().Add(time.Duration(cfg.ElectionTicks) * cfg.TickInterval.Duration)
}

// holdWrite keeps a write if leadership is being handed over. err is what is to be said to it otherwise.
func (p *peer) holdWrite(w *message.Write, err error) bool {
	if _, elsewhere := err.(*NotLeaderError); err != nil && !elsewhere || !p.handingOver() {
		return false
	}
	if len(p.handover.writes) >= p.store.cfg.Raftstore.MaxPendingPerRegion {
		return false
	}
	p.handover.writes = append(p.handover.writes, w)
	return true
}

// endHandover carries on with the writes that waited, once the transfer has ended.
func (p *peer) endHandover() {
	if !p.handoverEnded() {
		return
	}
	writes := p.handover.writes
	p.handover.writes = nil
	for _, w := range writes {
		p.onWrite(w)
	}
}

// handoverEnded tells whether writes have waited long enough.
func (p *peer) handoverEnded() bool { return len(p.handover.writes) > 0 && !p.handingOver() }
