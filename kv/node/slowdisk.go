package node

import (
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// diskWatch times the syncs of the raft log, which every write waits for, and tells whether the
// disk is slow: a sync that hangs, or slow syncs making up a tenth of a window. The store says so
// in its heartbeats, and the placement service sends no more replicas or leaders there.
type diskWatch struct {
	threshold time.Duration // a sync that takes longer is slow; 0 means never
	now       func() time.Time
	seconds   prometheus.Histogram

	mu      sync.Mutex
	running map[int]time.Time // begin of each sync that has not returned
	next    int
	// The window that fills, and the verdict of the last one.
	began      time.Time
	syncs      int
	slowSyncs  int
	lastIsSlow bool

	times syncTimes
	// alarm has a signal when syncs have become slow, or one hangs: the placement service is to
	// know at once.
	alarm   chan struct{}
	hanging *time.Timer // fires when the oldest sync under way may hang
	alarmed bool        // in this stretch of slow syncs
}

// diskWindow is how long syncs are counted before they are judged; a disk that has become fast
// again counts as slow for no longer than this.
const diskWindow = 10 * time.Second

const (
	// slowSync is how long syncs take that are worth telling the placement service at once; it
	// compares stores.
	slowSync = 100 * time.Millisecond
	// hangingSync is how long a single one must take for that.
	hangingSync = 500 * time.Millisecond
	// alarmAgain is after how long the next report comes while syncs are slow: one alone proves
	// nothing, since what other stores have reported may be older than the load that makes all of
	// them slow.
	alarmAgain = 2 * time.Second
)

func newDiskWatch(threshold time.Duration) *diskWatch {
	w := &diskWatch{
		threshold: threshold, now: time.Now, running: map[int]time.Time{}, began: time.Now(),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tikv_raft_engine_sync_duration_seconds",
			Help:    "Duration of syncs of the raft log.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}),
		alarm: make(chan struct{}, 1),
	}
	w.hanging = time.AfterFunc(time.Hour, w.signal)
	w.hanging.Stop()
	return w
}

// signal has the store report at once, and again after a while if syncs are slow still.
func (w *diskWatch) signal() {
	select {
	case w.alarm <- struct{}{}:
	default:
	}
	time.AfterFunc(alarmAgain, func() {
		if takes, hangs := w.stats(); takes >= slowSync || hangs >= hangingSync {
			w.signal()
		}
	})
}

// around is to be given to vfs.AroundSync.
func (w *diskWatch) around(sync func() error) error {
	w.mu.Lock()
	id, begin := w.next, w.now()
	w.next++
	w.running[id] = begin
	if len(w.running) == 1 {
		w.hanging.Reset(hangingSync)
	}
	w.mu.Unlock()
	err := beforeSync()
	if err == nil {
		err = sync()
	}
	took := w.now().Sub(begin)
	w.seconds.Observe(took.Seconds())
	w.mu.Lock()
	defer w.mu.Unlock()
	if delete(w.running, id); len(w.running) == 0 {
		w.hanging.Stop()
	}
	if w.times.note(w.now(), took) {
		was := w.alarmed
		if w.alarmed = w.times.least(w.now()) >= slowSync; w.alarmed && !was {
			w.signal()
		}
	}
	w.turn()
	w.syncs++
	if w.threshold > 0 && took >= w.threshold {
		w.slowSyncs++
	}
	return err
}

// turn closes a window that is over. The lock must be held.
func (w *diskWatch) turn() {
	if now := w.now(); now.Sub(w.began) >= diskWindow {
		w.lastIsSlow = w.tenth()
		if now.Sub(w.began) >= 2*diskWindow { // nothing was synced for a whole window
			w.lastIsSlow = false
		}
		w.began, w.syncs, w.slowSyncs = now, 0, 0
	}
}

func (w *diskWatch) tenth() bool { return w.slowSyncs > 0 && w.slowSyncs*10 >= w.syncs }

// stats returns what syncs take, 0 if there were too few, and how long one has been under way, 0 if
// none is. Safe for concurrent use.
func (w *diskWatch) stats() (takes, hangs time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.threshold <= 0 {
		return 0, 0
	}
	now := w.now()
	for _, begin := range w.running {
		hangs = max(hangs, now.Sub(begin))
	}
	return w.times.least(now), hangs
}

// slow may be called by any goroutine.
func (w *diskWatch) slow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.threshold <= 0 {
		return false
	}
	for _, begin := range w.running {
		if w.now().Sub(begin) >= w.threshold {
			return true
		}
	}
	w.turn()
	return w.lastIsSlow || w.tenth()
}

const (
	// syncSeconds is over how many whole seconds syncs must be slow, all the time.
	syncSeconds = 5
	// syncSlots is in how many of them there must have been any.
	syncSlots = 3
	// syncBuckets is how many classes of times there are, each 1.25 times as long as the one
	// before: 50 us to 5 min.
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

// least is the least 99th percentile of the last five whole seconds in which there were syncs; 0 if
// there were in less than three. It is high only if syncs were slow all the time, and at most a
// quarter too high.
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

// p99 is a bound that at most one of a hundred syncs exceeded: the longest if there were less than
// a hundred.
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
