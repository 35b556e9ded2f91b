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

// A leader transfer: transfer.command checks the target -> transfer.start ends the lease and has
// raft begin -> raft sends MsgTimeoutNow once the target has the whole log -> the target campaigns.
// Meanwhile raft takes no proposals; writes wait (transfer.hold).

// command is carried out by the leader, not replicated; it is answered as soon as it has begun.
func (tr *transfer) command(a *message.Admin) error {
	target := a.Request.GetTransferLeader().GetPeer()
	q := regions.PeerByID(tr.p.region(), target.GetId())
	if q == nil {
		return regionerr.Invalidf("region %d has no peer %d to transfer leadership to",
			tr.p.regionID, target.GetId())
	}
	if q.Id != tr.p.self.Id {
		if err := tr.check(q); err != nil {
			return err
		}
		tr.start(q.Id)
	}
	a.Callback.Done(message.Result{Region: tr.p.region(),
		Answer: message.AdminAnswer(&raft_cmdpb.AdminResponse{
			CmdType:        raft_cmdpb.AdminCmdType_TransferLeader,
			TransferLeader: &raft_cmdpb.TransferLeaderResponse{},
		})})
	return nil
}

// check refuses a target that would leave the region without a leader for long.
func (tr *transfer) check(q *metapb.Peer) error {
	if regions.IsLearner(q) {
		return regionerr.Invalidf("peer %d of region %d is a learner", q.Id, tr.p.regionID)
	}
	pr, ok := tr.p.rn.ProgressOf(q.Id)
	if !ok {
		return regionerr.Invalidf("peer %d of region %d is not replicated to", q.Id, tr.p.regionID)
	}
	lag := uint64(tr.p.store.cfg.Raftstore.TransferMaxLagEntries)
	if pr.State == raft.ProgressSnapshot || pr.Match+lag < tr.p.rn.LastIndex() {
		return &regionerr.BusyError{Reason: "the transfer target's log is too far behind"}
	}
	return nil
}

// best is the healthy voter with the longest log.
func (tr *transfer) best() *metapb.Peer {
	var best *metapb.Peer
	var match uint64
	for _, q := range tr.p.region().Peers {
		if q.Id == tr.p.self.Id || tr.check(q) != nil {
			continue
		}
		if pr, _ := tr.p.rn.ProgressOf(q.Id); pr.RecentActive && (best == nil || pr.Match > match) {
			best, match = q, pr.Match
		}
	}
	return best
}

// start ends the lease before anything of the transfer can leave this store (E5).
func (tr *transfer) start(to uint64) {
	tr.p.sleep.wake()
	tr.p.flushWrites()
	tr.begin()
	tr.p.lease.noLeaseTerm = tr.p.rn.Term()
	if tr.p.lease.cell != nil {
		tr.p.lease.cell.end()
	}
	tr.p.publish()
	tr.p.logger.Info("transferring leadership", zap.Uint64("to", to))
	tr.p.rn.TransferLeader(to)
}

// transfer keeps the writes that come while leadership changes: to a leader while it hands it over,
// since raft takes no proposals then, and to a follower whose leader's store has just been lost.
// Refusing them would send clients into their pauses, and to peers that know no leader either. So
// they wait until the next leader is known, to whom their clients are sent unless it is this peer,
// or a transfer is given up, and they are proposed here.
//
// Invariant: what waits here has not been proposed; it is checked anew, its deadline too, when the
// wait ends.
type transfer struct {
	p *peer

	writes []*message.Write
	// until bounds the wait of a peer that does not lead.
	until time.Time
	// lost is the leader whose store was lost at lostAt, and which is taken for gone unless it is
	// heard again.
	lost   uint64
	lostAt time.Time
}

// holds tells whether writes wait for the next leader.
func (tr *transfer) holds() bool {
	if tr.p.stopped || tr.p.removed != nil {
		return false
	}
	if tr.p.isLeader() {
		return tr.p.rn.LeadTransferee() != raft.None
	}
	switch lead := tr.p.rn.Lead(); lead {
	case raft.None:
	case tr.lost:
		if tr.p.lastHeard[lead].After(tr.lostAt) {
			return false
		}
	default:
		return false
	}
	return tr.p.store.clock.Now().Before(tr.until)
}

// begin is called when a transfer begins.
func (tr *transfer) begin() {
	tr.until = tr.p.store.clock.Now().Add(tr.p.store.cfg.Raftstore.ElectionTimeout())
}

// loseLeader is called when a follower's leader may be gone. An election takes a few ticks more
// than the smallest timeout.
func (tr *transfer) loseLeader(leader uint64) {
	now := tr.p.store.clock.Now()
	tr.lost, tr.lostAt = leader, now
	tr.until = now.Add(tr.p.store.cfg.Raftstore.ElectionTimeout() * 3 / 2)
}

// hold keeps a write if leadership is about to change. err is what is to be said to it otherwise.
func (tr *transfer) hold(w *message.Write, err error) bool {
	if err != nil && !isNotLeader(err) || !tr.holds() {
		return false
	}
	if len(tr.writes) >= tr.p.store.cfg.Raftstore.MaxPendingPerRegion {
		return false
	}
	tr.writes = append(tr.writes, w)
	return true
}

// resume carries on with the writes that waited, once leadership has changed, or will not.
func (tr *transfer) resume() {
	if !tr.hasEnded() {
		return
	}
	writes := tr.writes
	tr.writes = nil
	for _, w := range writes {
		tr.p.onWrite(w)
	}
}

// hasEnded tells whether writes have waited long enough.
func (tr *transfer) hasEnded() bool { return len(tr.writes) > 0 && !tr.holds() }

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
			if h == nil || h.leader == nil || h.leader.Id != h.peer.Id ||
				regions.VoterCount(h.region) < 2 {
				return true
			}
			left++
			_ = s.router.push(b, &message.Inspect{Fn: func(v any) {
				if view, ok := v.(*PeerView); ok && view.p.isLeader() &&
					view.p.rn.LeadTransferee() == 0 {
					if to := view.p.transfer.best(); to != nil {
						view.p.transfer.start(to.Id)
					}
				}
			}})
			return true
		})
		if fewest < 0 || left < fewest {
			fewest, progress = left, time.Now()
		}
		// Without progress there is nobody to hand over to: the other stores stop as well, or are
		// gone.
		if left == 0 || time.Since(progress) > transferPatience {
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

// transferPatience is how long TransferLeaders goes on without any region changing hands.
const transferPatience = 700 * time.Millisecond
