package raftstore

import (
	"math/rand/v2"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/raft"
)

// The regions of a store that starts are dormant: they sleep, although they know no leader. If thousands of
// them held their elections at once, on all stores, messages would wait for longer than an election timeout,
// and elections would fail for as long as they went on.
//
// A dormant peer wakes by a raft message (a leader is there, or another store holds the election), by a request,
// or when its turn comes: the ticker rouses a few at a time. In the last two cases it campaigns at once, as
// hardly anybody else does so for that region in that moment. If a leader is there, pre-votes are refused and
// the leader is heard. A dormant peer watches no other store: there is no leader whose loss it would miss.
//
// Safety: a restarted voter refuses votes, its own too, until an election timeout after the start has passed
// (Config.VoteGraceTicks). Time counts for that as it does for a peer that is awake: what has really passed,
// up to an election timeout (elapsedTicks).

// A store rouses rouseMany regions in a tick while fewer than rouseAwake peers are awake; beyond that rouseFew,
// so that regions which find no quorum do not keep the others from their turn.
const (
	rouseAwake = 512
	rouseMany  = 32
	rouseFew   = 2
)

// dormantRegions are those whose turn has not come, in the order of their turns. Owner: the ticker, after the start.
type dormantRegions struct{ boxes []*mailbox }

// layDormant lets a recovered peer sleep, unless it can lead by itself. Called before any goroutine runs.
func (s *Store) layDormant(p *peer) {
	if s.cfg.Raftstore.HibernateAfter.Duration <= 0 || !p.initialized() || len(p.region().Peers) < 2 {
		return
	}
	p.sleep.asleep, p.sleep.began = true, s.clock.Now()
	p.box.asleep.Store(true)
	p.box.dormant.Store(true)
	s.router.noteAwake(p.box, false)
	// In another order on each store, so that they seldom rouse the same region at the same time.
	boxes := append(s.dormant.boxes, p.box)
	i, last := rand.IntN(len(boxes)), len(boxes)-1
	boxes[i], boxes[last] = boxes[last], boxes[i]
	s.dormant.boxes = boxes
}

// rouse gives some regions their turn, not before their votes may count.
func (s *Store) rouse() {
	d := &s.dormant
	if len(d.boxes) == 0 || s.clock.Now().Sub(s.startTime) < s.cfg.Raftstore.ElectionTimeout() {
		return
	}
	n := rouseFew
	if s.router.awake.Load() < rouseAwake {
		n = rouseMany
	}
	for n > 0 && len(d.boxes) > 0 {
		last := len(d.boxes) - 1
		b := d.boxes[last]
		d.boxes[last], d.boxes = nil, d.boxes[:last]
		if b.dormant.Load() {
			_ = s.router.push(b, &message.Wake{}) // destroyed meanwhile
			n--
		}
	}
	if len(d.boxes) == 0 {
		d.boxes = nil
	}
}

// countDormantTime lets raft count the time since the start. No leader was heard in it.
func (p *peer) countDormantTime(now time.Time) {
	for range p.elapsedTicks(now) {
		p.rn.Tick()
	}
}

// campaignFirst holds the first election after the start; raft refuses if a vote might break a promise.
func (p *peer) campaignFirst() {
	if p.rn.State() != raft.StateFollower {
		return // the time since the start was enough for it
	}
	_ = p.rn.Campaign()
	p.rn.ExpectElection(1) // if it was too early
}
