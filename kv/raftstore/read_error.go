package raftstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/raft"
)

// A read that fails says that this replica's disk is not what it was, while others have the same
// data. The error is the answer of whoever asked; besides, ReadFailed:
//
//   - counts it (Counts, and with it metrics and status) and logs at most one line in readErrorPause;
//   - has the region's leader hand its leadership over, at once, to a follower that is fit;
//   - has the replica quarantined afterwards, if the others suffice without it: it takes no part any
//     more, and the placement service replaces it. It is as it was after a restart, since all that
//     it has promised is on disk;
//   - has the store reported as slow from the second such region on, or when it happens again later:
//     nothing is placed there any more.
//
// A write that fails stops the store, and so does a read without which an entry cannot be applied.

// readErrorPause is between two log lines, and how much later an error counts as another event.
const readErrorPause = 10 * time.Second

type readErrors struct {
	total atomic.Uint64
	again atomic.Bool
	mu    struct {
		sync.Mutex
		region uint64
		since  time.Time
		logged time.Time
	}
}

// ReadFailed takes the error of a read of a region's data. What says nothing about the disk is
// ignored. It never blocks.
func (s *Store) ReadFailed(regionID uint64, err error) {
	if !isDiskError(err) {
		return
	}
	s.noteReadError(regionID, err)
	if b := s.router.get(regionID); b != nil && !b.sick.Swap(true) {
		_ = s.router.push(b, &message.ReadFailed{Err: err}) // or the peer is gone
	}
}

// isDiskError tells whether an error comes from a disk that does not give back what is on it: not from the request,
// the region, or the end of the store, and not from a disk that is full.
func isDiskError(err error) bool {
	if err == nil {
		return false
	}
	for _, other := range []error{
		engine.ErrClosed, ErrStopping, ErrFailed, runner.ErrBusy, context.Canceled, context.DeadlineExceeded,
		snap.ErrBusy, syscall.ENOSPC, syscall.EDQUOT,
	} {
		if errors.Is(err, other) {
			return false
		}
	}
	_, about := RegionError(err)
	return !about
}

// noteReadError counts a failed read.
func (s *Store) noteReadError(regionID uint64, err error) {
	r := &s.readErrors
	total, now := r.total.Add(1), s.clock.Now()
	r.mu.Lock()
	if r.mu.since.IsZero() {
		r.mu.region, r.mu.since = regionID, now
	} else if r.mu.region != regionID || now.Sub(r.mu.since) >= readErrorPause {
		r.again.Store(true)
	}
	say := r.mu.logged.IsZero() || now.Sub(r.mu.logged) >= readErrorPause
	if say {
		r.mu.logged = now
	}
	r.mu.Unlock()
	if say {
		s.logger.Error("reading failed",
			log.RegionID(regionID), zap.Uint64("read-errors", total), zap.Error(err))
	}
}

// sickness is what a peer knows of its failing reads.
type sickness struct {
	err error
	// damaged: entries that it has promised are not what they were. It must not vote.
	damaged bool
	// diverged: its data are not those of the other replicas. It may vote, but must not be served, nor after a restart.
	diverged bool
	// leave: when it stepped aside the others sufficed without it.
	leave bool
}

// reason is the reason for log lines.
func (s *sickness) reason() string {
	if s.diverged {
		return "its data differ from the other replicas'"
	}
	return "reading failed"
}

// fallSick takes an error of a read, or what else says that this replica's data are not what they should be.
func (p *peer) fallSick(err error) {
	if p.sick.err == nil {
		p.sick.err = err
	}
	var d *raftlog.DamageError
	p.sick.diverged = p.sick.diverged || errors.Is(err, errDiverged)
	p.sick.damaged = p.sick.damaged || errors.As(err, &d) || errors.Is(err, errUndecodable) || errors.Is(err, errDamaged)
}

// tendSick lets a peer whose reads fail step aside, and end once another leads.
func (p *peer) tendSick(t *turn) {
	if err := p.ps.readErr; err != nil {
		p.ps.readErr = nil
		p.store.noteReadError(p.regionID, err)
		p.fallSick(err)
	}
	if p.sick.err == nil || p.stopped || p.installing != 0 || p.removed != nil {
		return
	}
	if p.isLeader() {
		p.stepAside()
		return
	}
	if p.rn.Lead() == raft.None {
		return
	}
	if p.sick.leave || (p.sick.damaged || p.sick.diverged) && p.initialized() {
		p.retire(t)
		return
	}
	p.sick = sickness{}
	p.box.sick.Store(false)
}

// stepAside hands leadership over. Without anyone to lead instead, the peer goes on: it may be the
// last one, and what it can read is better than nothing.
func (p *peer) stepAside() {
	if p.rn.LeadTransferee() != raft.None {
		return
	}
	to := p.bestTransferee()
	if to == nil {
		if voterCount(p.region()) == 1 && !p.sick.damaged && !p.sick.diverged {
			p.sick = sickness{}
			p.box.sick.Store(false)
		}
		return
	}
	p.sick.leave = p.othersSuffice()
	p.logger.Warn("stepping aside", log.Reason(p.sick.reason()), zap.Error(p.sick.err))
	p.startTransfer(to.Id)
}

// othersSuffice tells whether the healthy voters besides this leader are a majority.
func (p *peer) othersSuffice() bool {
	healthy := 0
	for _, q := range p.region().Peers {
		if q.Id == p.meta.Id || p.checkTransferee(q) != nil {
			continue
		}
		if pr, _ := p.rn.ProgressOf(q.Id); pr.RecentActive {
			healthy++
		}
	}
	return healthy >= voterCount(p.region())/2+1
}

// retire quarantines a running replica. Its apply worker comes to the end of what is committed
// first; then the mailbox closes.
func (p *peer) retire(t *turn) {
	p.wake()
	p.stopped = true
	p.logger.Error("replica is not served any more; the region gets a new one",
		log.Reason(p.sick.reason()), zap.Error(p.sick.err))
	p.endCommands(&RegionNotFoundError{RegionID: p.regionID})
	p.noteEnd()
	p.publish()
	p.store.quarantine.add(p.region(), p.meta, p.sick.err)
	end := applyTask{kind: applyRetire, regionID: p.regionID, retire: p.box}
	if p.sick.damaged || p.sick.diverged {
		end.why = p.sick.err.Error() // a restart does not mend it
	}
	t.ends = append(t.ends, end)
}

// peerRetired is called by the apply worker when it has nothing of a retired peer any more.
func (s *Store) peerRetired(b *mailbox) {
	for _, m := range s.router.close(b) {
		b.peer.refuse(m)
	}
}
