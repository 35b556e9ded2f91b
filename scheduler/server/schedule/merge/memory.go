package merge

import (
	"bytes"
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
)

// Policy is described in the package comment. It is owned by the cluster; the planner asks it.
//
// Invariant: mu.splits has every region that was split within the interval while this member led,
// of those that are known.
type Policy struct {
	// allowed says why the cluster merges no regions, "" if it does.
	allowed func() string

	mu struct {
		sync.Mutex
		since  time.Time // since when this member leads
		splits map[uint64]time.Time
		failed map[pair]failure
		holds  []Hold
		merged uint64 // successes
	}
}

// pair are two regions, whichever of them is to go into the other one: what keeps it from that
// keeps the other one too.
type pair struct{ a, b uint64 }

func pairOf(source, target uint64) pair { return pair{min(source, target), max(source, target)} }

// failure is how often in a row a pair has not become one region, and when that was last.
type failure struct {
	count  int
	at     time.Time
	reason string
}

const (
	firstPause = time.Minute
	maxPause   = time.Hour
)

// until is when the pair is tried again. The first pause is a minute, or the split-merge-interval
// if that is shorter.
func (f failure) until(interval time.Duration) time.Time {
	return f.at.Add(min(min(firstPause, interval)<<min(f.count-1, 10), maxPause))
}

// New returns a policy that remembers nothing. allowed says why the cluster as a whole merges no
// regions, "" if it does.
func New(now time.Time, allowed func() string) *Policy {
	p := &Policy{allowed: allowed}
	p.Reset(now)
	return p
}

// Reset begins anew: this member has just begun to lead, and knows of no split. Holds stay.
func (p *Policy) Reset(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.since = now
	p.mu.splits, p.mu.failed = map[uint64]time.Time{}, map[pair]failure{}
}

// Note takes a report of a region in, and with it what was known before of the region (nil:
// nothing) and of others that it has displaced. A region that has lost keys was split. One that was
// not known is a part of another one, if not all regions are new to this member; then it is not
// merged for the interval anyway.
func (p *Policy) Note(r, old *core.RegionInfo, displaced []*core.RegionInfo, now time.Time) {
	switch {
	case r.Source() == core.SourceSync || r.Source() == core.SourceFile:
		return
	case old != nil && !shrunk(old, r):
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.splits[r.ID()] = now
	for _, d := range displaced {
		if !within(d, r) {
			p.mu.splits[d.ID()] = now // the report of its new range is on its way
		}
	}
}

// within tells whether all keys of a region are another one's.
func within(r, other *core.RegionInfo) bool {
	return bytes.Compare(other.StartKey(), r.StartKey()) <= 0 &&
		(len(other.EndKey()) == 0 ||
			len(r.EndKey()) > 0 && bytes.Compare(r.EndKey(), other.EndKey()) <= 0)
}

// shrunk tells whether a region has lost keys to another one.
func shrunk(old, r *core.RegionInfo) bool { return !within(old, r) }

// Ended takes in how an operator has ended. It is called with the controller's lock held.
func (p *Policy) Ended(rec operator.Record) {
	if rec.Into == 0 || rec.Kind&operator.OpMerge == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := pairOf(rec.RegionID, rec.Into)
	if rec.Status == operator.Success {
		p.mu.merged++
		delete(p.mu.failed, key)
		delete(p.mu.splits, rec.RegionID)
		return
	}
	p.mu.failed[key] = failure{
		p.mu.failed[key].count + 1, rec.Finished, rec.Status.String() + ": " + rec.Reason,
	}
}

// Merged counts the merges that have ended well since this process began.
func (p *Policy) Merged() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.merged
}

// Prune forgets splits and failures that are older than they count. A pair that fails again within
// an hour of its pause waits longer than before.
func (p *Policy) Prune(now time.Time, interval time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, at := range p.mu.splits {
		if now.Sub(at) > max(interval, maxPause) { // the interval may be raised
			delete(p.mu.splits, id)
		}
	}
	for k, f := range p.mu.failed {
		if now.Sub(f.until(interval)) > maxPause {
			delete(p.mu.failed, k)
		}
	}
}

// splitAt is when a region was split last, as far as that is remembered.
func (p *Policy) splitAt(id uint64) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.mu.splits[id]
	return at, ok
}

func (p *Policy) leadsSince() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.since
}

// failure is the last one of a pair; waits tells whether it is too early for another attempt.
func (p *Policy) failure(
	source, target uint64, now time.Time, interval time.Duration,
) (f failure, waits bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.mu.failed[pairOf(source, target)]
	return f, ok && now.Before(f.until(interval))
}
