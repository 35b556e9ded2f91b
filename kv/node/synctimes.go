package node

import (
	"math"
	"time"
)

const (
	// syncSeconds is over how many whole seconds syncs must be slow, all the time.
	syncSeconds = 5
	// syncSlots is in how many of them there must have been any.
	syncSlots = 3
	// syncBuckets is how many classes of times there are, each 1.25 times as long as the one before: 50 us to 5 min.
	syncBuckets   = 72
	shortestSync  = 50 * time.Microsecond
	bucketsGrowBy = 1.25
)

// syncTimes counts how long the syncs of the last seconds took. Not safe for concurrent use.
type syncTimes struct {
	slots [syncSeconds + 1]syncSecond // by second modulo their number
}

// syncSecond is one second, whose syncs are those that returned in it.
type syncSecond struct {
	at     int64 // seconds since 1970
	n      uint32
	counts [syncBuckets]uint32
}

// note counts a sync that has returned, and tells whether it is the first of its second.
func (t *syncTimes) note(now time.Time, took time.Duration) (first bool) {
	at := now.Unix()
	s := &t.slots[at%int64(len(t.slots))]
	if first = s.at != at; first {
		*s = syncSecond{at: at}
	}
	s.n++
	i := 0
	if took > shortestSync {
		i = int(math.Ceil(math.Log(float64(took)/float64(shortestSync)) / math.Log(bucketsGrowBy)))
	}
	s.counts[min(i, syncBuckets-1)]++
	return first
}

// least is the least 99th percentile of the last five whole seconds in which there were syncs; 0 if there were in less than three.
// It is high only if syncs were slow all the time, and at most a quarter too high.
func (t *syncTimes) least(now time.Time) time.Duration {
	low, seconds := time.Duration(math.MaxInt64), 0
	for i := range t.slots {
		s := &t.slots[i]
		if age := now.Unix() - s.at; age < 1 || age > syncSeconds || s.n == 0 {
			continue
		}
		seconds++
		low = min(low, s.p99())
	}
	if seconds < syncSlots {
		return 0
	}
	return low
}

// p99 is a bound that at most one of a hundred syncs exceeded: the longest if there were less than a hundred.
func (s *syncSecond) p99() time.Duration {
	above := s.n / 100
	for i := syncBuckets - 1; i > 0; i-- {
		if s.counts[i] > above {
			return time.Duration(float64(shortestSync) * math.Pow(bucketsGrowBy, float64(i)))
		}
		above -= s.counts[i]
	}
	return shortestSync
}
