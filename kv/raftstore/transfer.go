package raftstore

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/raft"
)

// A leader transfer: transferLeader checks the target -> startTransfer ends the lease and has raft begin -> raft sends
// MsgTimeoutNow once the target has the whole log -> the target campaigns. Meanwhile raft takes no proposals; writes wait
// (handover).

// transferLeader is carried out by the leader, not replicated; it is answered as soon as it has begun.
func (p *peer) transferLeader(a *message.Admin) error {
	target := a.Request.GetTransferLeader().GetPeer()
	q := regions.PeerByID(p.region(), target.GetId())
	if q == nil {
		return regionerr.Invalidf("region %d has no peer %d to transfer leadership to", p.regionID, target.GetId())
	}
	if q.Id != p.meta.Id {
		if err := p.checkTransferee(q); err != nil {
			return err
		}
		p.startTransfer(q.Id)
	}
	a.Callback.Done(message.Result{Region: p.region(), Answer: message.AdminAnswer(&raft_cmdpb.AdminResponse{
		CmdType:        raft_cmdpb.AdminCmdType_TransferLeader,
		TransferLeader: &raft_cmdpb.TransferLeaderResponse{},
	})})
	return nil
}

// checkTransferee refuses a target that would leave the region without a leader for long.
func (p *peer) checkTransferee(q *metapb.Peer) error {
	if regions.IsLearner(q) {
		return regionerr.Invalidf("peer %d of region %d is a learner", q.Id, p.regionID)
	}
	pr, ok := p.rn.ProgressOf(q.Id)
	if !ok {
		return regionerr.Invalidf("peer %d of region %d is not replicated to", q.Id, p.regionID)
	}
	lag := uint64(p.store.cfg.Raftstore.TransferMaxLagEntries)
	if pr.State == raft.ProgressSnapshot || pr.Match+lag < p.rn.LastIndex() {
		return &regionerr.BusyError{Reason: "the transfer target's log is too far behind"}
	}
	return nil
}

// bestTransferee is the healthy voter with the longest log.
func (p *peer) bestTransferee() *metapb.Peer {
	var best *metapb.Peer
	var match uint64
	for _, q := range p.region().Peers {
		if q.Id == p.meta.Id || p.checkTransferee(q) != nil {
			continue
		}
		if pr, _ := p.rn.ProgressOf(q.Id); pr.RecentActive && (best == nil || pr.Match > match) {
			best, match = q, pr.Match
		}
	}
	return best
}

// startTransfer ends the lease before anything of the transfer can leave this store (E5).
func (p *peer) startTransfer(to uint64) {
	p.wake()
	p.flushWrites()
	p.beginHandover()
	p.lease.noLeaseTerm = p.rn.Term()
	if p.lease.cell != nil {
		p.lease.cell.end()
	}
	p.publish()
	p.logger.Info("transferring leadership", zap.Uint64("to", to))
	p.rn.TransferLeader(to)
}

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
	if _, elsewhere := err.(*regionerr.NotLeaderError); err != nil && !elsewhere || !p.handingOver() {
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

// TransferLeaders hands the leadership of every region to another peer, as far as one is fit, and
// returns when none is left or ctx ends. Part of a graceful stop.
func (s *Store) TransferLeaders(ctx context.Context) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	fewest, progress := -1, time.Now()
	for {
		left := 0
		s.router.boxes.Range(func(_, v any) bool {
			b := v.(*mailbox)
			h := b.handle.Load()
			if h == nil || h.leader == nil || h.leader.Id != h.peer.Id || regions.VoterCount(h.region) < 2 {
				return true
			}
			left++
			_ = s.router.push(b, &message.Inspect{Fn: func(v any) {
				if view, ok := v.(*PeerView); ok && view.p.isLeader() && view.p.rn.LeadTransferee() == 0 {
					if to := view.p.bestTransferee(); to != nil {
						view.p.startTransfer(to.Id)
					}
				}
			}})
			return true
		})
		if fewest < 0 || left < fewest {
			fewest, progress = left, time.Now()
		}
		// Without progress there is nobody to hand over to: the other stores stop as well, or are gone.
		if left == 0 || time.Since(progress) > handOverPatience {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// handOverPatience is how long TransferLeaders goes on without any region changing hands.
const handOverPatience = 700 * time.Millisecond
