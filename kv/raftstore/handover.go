package raftstore

import (
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/raft"
)

// handover keeps the writes that come while leadership changes: to a leader while it hands it over, since raft takes
// no proposals then, and to a follower whose leader's store has just been lost. Refusing them would send clients into
// their pauses, and to peers that know no leader either. So they wait until the next leader is known, to whom
// their clients are sent unless it is this peer, or a transfer is given up, and they are proposed here.
//
// Invariant: what waits here has not been proposed; it is checked anew, its deadline too, when the wait ends.
type handover struct {
	writes []*message.Write
	// until bounds the wait of a peer that does not lead.
	until time.Time
	// lost is the leader whose store was lost at lostAt, and which is taken for gone unless it is heard again.
	lost   uint64
	lostAt time.Time
}

// handingOver tells whether writes wait for the next leader.
func (p *peer) handingOver() bool {
	if p.stopped || p.removed != nil {
		return false
	}
	if p.isLeader() {
		return p.rn.LeadTransferee() != raft.None
	}
	switch lead := p.rn.Lead(); lead {
	case raft.None:
	case p.handover.lost:
		if p.lastHeard[lead].After(p.handover.lostAt) {
			return false
		}
	default:
		return false
	}
	return p.store.clock.Now().Before(p.handover.until)
}

// beginHandover is called when a transfer begins.
func (p *peer) beginHandover() {
	p.handover.until = p.store.clock.Now().Add(p.store.cfg.Raftstore.ElectionTimeout())
}

// loseLeader is called when a follower's leader may be gone. An election takes a few ticks more than the smallest
// timeout.
func (p *peer) loseLeader(leader uint64) {
	now := p.store.clock.Now()
	p.handover.lost, p.handover.lostAt = leader, now
	p.handover.until = now.Add(p.store.cfg.Raftstore.ElectionTimeout() * 3 / 2)
}

// holdWrite keeps a write if leadership is about to change. err is what is to be said to it otherwise.
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

// endHandover carries on with the writes that waited, once leadership has changed, or will not.
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
