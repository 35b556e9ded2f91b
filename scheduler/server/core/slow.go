package core

import (
	"slices"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

const (
	// slowSync is the least that syncs of the raft log take at a store that counts as slow.
	slowSync = 100 * time.Millisecond
	// hangingSync is how long a single sync must have been under way to count.
	hangingSync = 500 * time.Millisecond
	// suspicion is how long reports must be slow before it counts. A store reports at once when its
	// syncs get slow, and every two seconds from then on (kv/node): if a load makes all disks slow,
	// all have reported by then.
	suspicion = 1500 * time.Millisecond
	// slowFactor is how many times longer than at the others they take.
	slowFactor = 5
	// shortestHold is for how long leaders keep away after the first report that was slow; each
	// further time it is twice as long, up to longestHold, which is also how long a store must have
	// been well for the count to begin anew.
	shortestHold = 5 * time.Minute
	longestHold  = time.Hour
)

// Slowness is what is held against a store whose disk is slower than those of the others. The zero
// Slowness is nothing. A store that is slow once is so for a while (hysteresis): leaders that come
// back at once would leave again, and each transfer costs its clients something. Under a load that
// makes all disks slow, none is slower than the others.
type Slowness struct {
	// Since is when the store began to be slow; zero: it is not.
	Since time.Time
	// Until is when leaders may come back, if no report is slow until then.
	Until time.Time
	// Takes is the last time of a sync that counted as slow, Usual what it took at other stores.
	Takes, Usual time.Duration

	hold time.Duration // of the last or present time
	// the first of the slow reports that came last; zero: the last was not slow
	suspect time.Time
}

// next judges a report: own is the store's SyncTime, usual that of others.
func (s Slowness) next(own, usual time.Duration, now time.Time) Slowness {
	if s.hold > 0 && now.Sub(s.Until) > longestHold {
		s.hold = 0
	}
	if !s.Since.IsZero() && !now.Before(s.Until) {
		s.Since = time.Time{}
	}
	if own < slowSync || own < slowFactor*usual {
		s.suspect = time.Time{}
		return s
	}
	if s.suspect.IsZero() {
		s.suspect = now
	}
	if s.Since.IsZero() && now.Sub(s.suspect) < suspicion {
		return s
	}
	if s.Since.IsZero() {
		s.Since, s.hold = now, min(max(2*s.hold, shortestHold), longestHold)
	}
	s.Until, s.Takes, s.Usual = now.Add(s.hold), own, usual
	return s
}

// Now tells whether the last report was slow.
func (s Slowness) Now() bool { return !s.Since.IsZero() && !s.suspect.IsZero() }

// SyncTime is how long syncs of the raft log take at the store, by its last report; 0 if it is not
// known.
func SyncTime(stats *schedulerpb.StoreStats) time.Duration {
	t := time.Duration(stats.GetSyncMicros()) * time.Microsecond
	if hangs := time.Duration(stats.GetSyncHangsMicros()) * time.Microsecond; hangs >= hangingSync {
		t = max(t, hangs)
	}
	return t
}

// UsualSync is the lower median of the SyncTime of the given stores, without those that are
// unknown; 0 if all are. Of two others that differ the quick one counts: where two of three are
// slow, both are.
func UsualSync(stores []*StoreInfo) time.Duration {
	var times []time.Duration
	for _, s := range stores {
		if t := SyncTime(s.stats); t > 0 {
			times = append(times, t)
		}
	}
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[(len(times)-1)/2]
}

// WithSyncs judges the last report by what syncs take at other stores.
func WithSyncs(usual time.Duration, now time.Time) StoreOption {
	return func(s *StoreInfo) { s.slow = s.slow.next(SyncTime(s.stats), usual, now) }
}

// Slowness is what is held against the store's disk.
func (s *StoreInfo) Slowness() Slowness { return s.slow }

// IsSlow tells whether leaders keep away from the store because its disk is, or was lately, slower
// than others.
func (s *StoreInfo) IsSlow(now time.Time) bool {
	return !s.slow.Since.IsZero() && now.Before(s.slow.Until)
}
