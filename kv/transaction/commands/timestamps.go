package commands

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/transaction/memlock"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Timestamps is how a store follows the placement service's timestamps. It needs them to choose
// commit timestamps itself (memlock): once in each term and version of each region, and to refuse
// reads in the future. Safe for concurrent use.
type Timestamps struct {
	// fetch asks the placement service for a new timestamp.
	fetch func(ctx context.Context) (uint64, error)
	// ready tells whether every store of the cluster knows what is written with such timestamps.
	ready   func() bool
	now     func() time.Time
	fetches *joint
	mu      struct {
		sync.Mutex
		// seen is the largest timestamp that was fetched, at is when.
		seen uint64
		at   time.Time
		// standings are of the regions in which this store chooses.
		standings map[uint64]standing
	}
}

// NewTimestamps returns what has seen no timestamp yet.
func NewTimestamps(fetch func(ctx context.Context) (uint64, error), ready func() bool) *Timestamps {
	s := &Timestamps{fetch: fetch, ready: ready, now: time.Now, fetches: newJoint()}
	s.mu.standings = map[uint64]standing{}
	return s
}

// tenure is a term of leadership in which the region has one version. What a store knows of what
// was done in a region before it led ends with either: a region that takes another one in, which is
// a new version, has keys then that another leader has served until that one's region was frozen.
type tenure struct{ term, version uint64 }

// later tells whether the tenure is of a later term, or of a later version in the same term.
func (t tenure) later(o tenure) bool {
	return t.term > o.term || t.term == o.term && t.version > o.version
}

// tenureOf is the tenure of a request that was found to be for the region as it is, in a term.
func tenureOf(c *kvrpcpb.Context, term uint64) tenure {
	return tenure{term, c.GetRegionEpoch().GetVersion()}
}

// standing is what max_ts is known to be behind of.
type standing struct {
	// tenure: a timestamp was fetched after it had begun, and none of the doubts came later. The
	// zero value is none.
	tenure tenure
	// doubts counts the moments from which on an earlier timestamp is not enough.
	doubts uint64
}

const (
	// drift is by how much the clock of the placement service may be ahead of what this store takes
	// it for, before the store asks. A timestamp that is made up is believed if it is ahead by
	// less.
	drift = time.Second
	// commitsAhead is drift for commit timestamps. Stores choose some of them, behind reads that
	// other stores have believed.
	commitsAhead = time.Minute
	// askBriefly bounds a question to the placement service by what does not depend on the answer.
	askBriefly = time.Second
)

// plausible fails for a timestamp that the placement service has not given out yet, and that is
// ahead by more than ahead.
//
// A read at it would push all later commits behind it, so that transactions which begin after them
// do not see them. A lock, a rollback or a commit at it would keep all other transactions from its
// key until then. Errors are *AbortError, and
// *TimestampError without an answer.
func (s *Timestamps) plausible(ctx context.Context, ts uint64, ahead time.Duration) error {
	if s == nil || s.reached(ts, ahead) {
		return nil
	}
	if err := s.refresh(ctx); err != nil {
		return err
	}
	if !s.reached(ts, ahead) {
		return abortf(
			"the timestamp %d is in the future: the placement service has not given it out", ts)
	}
	return nil
}

// known is plausible for what must not depend on the placement service: without an answer the
// timestamp is believed.
func (s *Timestamps) known(ctx context.Context, ts uint64, ahead time.Duration) error {
	if s == nil || s.reached(ts, ahead) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askBriefly)
	defer cancel()
	var abort *AbortError
	if err := s.plausible(ctx, ts, ahead); errors.As(err, &abort) {
		return err
	}
	return nil
}

// reached tells whether ts has been given out by now, as far as is known, or is ahead by at most
// ahead.
func (s *Timestamps) reached(ts uint64, ahead time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ts <= s.mu.seen {
		return true
	}
	if s.mu.seen == 0 {
		return false
	}
	since := s.now().Sub(s.mu.at) + ahead
	return mvcc.PhysicalTime(ts) <= mvcc.PhysicalTime(s.mu.seen)+uint64(since.Milliseconds())
}

// reachedNow is plausible, if that needs no question.
func (s *Timestamps) reachedNow(ts uint64, ahead time.Duration) bool {
	return s == nil || s.reached(ts, ahead)
}

func (s *Timestamps) refresh(ctx context.Context) error {
	return s.fetches.do(ctx, func(ctx context.Context) error {
		at := s.now()
		ts, err := s.fetch(ctx)
		if err != nil {
			return &TimestampError{err}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if ts > s.mu.seen {
			s.mu.seen, s.mu.at = ts, at
		}
		return nil
	})
}

// TimestampError: the placement service has given no timestamp. Nothing was done.
type TimestampError struct{ Cause error }

func (e *TimestampError) Error() string { return "no timestamp: " + e.Cause.Error() }

func (e *TimestampError) Unwrap() error { return e.Cause }

// sync raises max_ts above all reads that other stores have served in earlier terms of the region,
// or of a region that went into it, and above all that transactions have relied on whose locks have
// gone (doubt). false says that it is not known to be, so that this store may not choose commit
// timestamps yet.
//
// A read has its timestamp before the store that serves it proves its leadership. That store led in
// an earlier term, so the proof was before this term began, or there is none; and a timestamp that
// is fetched after that is larger. The same goes for a region that went into this one: all its
// replicas were frozen, and served nothing, before this one had its version.
func (s *Timestamps) sync(
	ctx context.Context, locks *memlock.Table, regionID uint64, at tenure,
) bool {
	if s == nil || !s.ready() {
		return false
	}
	s.mu.Lock()
	before := s.mu.standings[regionID]
	s.mu.Unlock()
	if before.tenure == at {
		return true
	}
	if s.refresh(ctx) != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	locks.Raise(s.mu.seen)
	now := s.mu.standings[regionID]
	if now.doubts == before.doubts { // else the timestamp may be from before the last one
		if at.later(now.tenure) {
			now.tenure = at
		}
		s.mu.standings[regionID] = now
	}
	locks.DropBefore(regionID, at.term)
	return now.tenure == at
}

// synced tells whether the last sync of the region in a tenure still counts.
func (s *Timestamps) synced(regionID uint64, at tenure) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.standings[regionID].tenure == at
}

// doubt has the next choice in the region take a new timestamp first. It asks nobody, so that what
// removes locks does not depend on the placement service.
func (s *Timestamps) doubt(regionID uint64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.standings[regionID] = standing{doubts: s.mu.standings[regionID].doubts + 1}
}

// NoPlacement tells whether a command has failed because the placement service has not answered. It
// may be tried again.
func NoPlacement(err error) bool {
	var safePoint *SafePointError
	var timestamp *TimestampError
	return errors.As(err, &safePoint) || errors.As(err, &timestamp)
}
