package commands

import (
	"context"
	"sync"
)

// SafePoints is what a store knows of the cluster's safe points. Safe for concurrent use.
//
// Old versions of a region may have been removed by its leader of now, or by earlier ones. The one
// of now has raised what is known here before it removed anything. What earlier ones have removed
// lay below the safe point that was in force when the leader of now began to lead: so a store asks
// for the safe points once in each of its terms, before it decides about transactions that may be
// too old. And it asks again when the region has another version: then it may have taken another
// region in, whose leaders have removed versions, up to when that was frozen.
type SafePoints struct {
	// fetch asks the placement service.
	fetch func(ctx context.Context) (txn, gc uint64, err error)
	mu    struct {
		sync.Mutex
		// txn is the timestamp up to which no transaction may begin, gc the one below which
		// versions may be removed.
		//
		// Invariant: both only grow.
		txn, gc uint64
		// asked are the tenures of regions for which the safe points were fetched after they had
		// begun.
		asked map[uint64]tenure
	}
	fetches *joint
}

// NewSafePoints returns what is not known yet.
func NewSafePoints(fetch func(ctx context.Context) (txn, gc uint64, err error)) *SafePoints {
	s := &SafePoints{fetch: fetch, fetches: newJoint()}
	s.mu.asked = map[uint64]tenure{}
	return s
}

// txnIn is the timestamp up to which no transaction may begin, as of a moment after the region's
// tenure began.
func (s *SafePoints) txnIn(ctx context.Context, regionID uint64, at tenure) (uint64, error) {
	if s == nil {
		return 0, nil
	}
	s.mu.Lock()
	if s.mu.asked[regionID] == at {
		defer s.mu.Unlock()
		return s.mu.txn, nil
	}
	s.mu.Unlock()
	if err := s.refresh(ctx); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.later(s.mu.asked[regionID]) {
		s.mu.asked[regionID] = at
	}
	return s.mu.txn, nil
}

// knownIn is txnIn, if that needs no question.
func (s *SafePoints) knownIn(regionID uint64, at tenure) (txn uint64, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.txn, s.mu.asked[regionID] == at
}

// mustKnow is txnIn, or errWait.
func (s *SafePoints) mustKnow(regionID uint64, at tenure) (uint64, error) {
	if s == nil {
		return 0, nil
	}
	txn, known := s.knownIn(regionID, at)
	if !known {
		return 0, errWait
	}
	return txn, nil
}

// Known are the safe points as far as they are known.
func (s *SafePoints) Known() (txn, gc uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.txn, s.mu.gc
}

// inForce fails unless a safe point is one that the placement service has published; of tells
// which.
func (s *SafePoints) inForce(ctx context.Context, at uint64, of func(txn, gc uint64) uint64) error {
	if s == nil {
		return abortf("this store does not know of safe points")
	}
	if of(s.Known()) >= at {
		return nil
	}
	if err := s.refresh(ctx); err != nil {
		return err
	}
	if known := of(s.Known()); known < at {
		return abortf("the safe point %d is not in force: it is %d", at, known)
	}
	return nil
}

// refresh returns after a fetch that has begun after the call.
func (s *SafePoints) refresh(ctx context.Context) error {
	return s.fetches.do(ctx, func(ctx context.Context) error {
		txn, gc, err := s.fetch(ctx)
		if err != nil {
			return &SafePointError{err}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.txn, s.mu.gc = max(s.mu.txn, txn, gc), max(s.mu.gc, gc)
		return nil
	})
}

// SafePointError: the placement service has not said what the safe point is, without which old
// transactions cannot be distinguished from current ones. Nothing was done.
type SafePointError struct{ Cause error }

func (e *SafePointError) Error() string { return "the safe point is not known: " + e.Cause.Error() }

func (e *SafePointError) Unwrap() error { return e.Cause }
