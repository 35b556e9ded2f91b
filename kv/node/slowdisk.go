package node

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// diskWatch times the syncs of the raft log, which every write waits for, and tells whether the disk is
// slow: a sync that hangs, or slow syncs making up a tenth of a window. The store says so in its
// heartbeats, and the placement service sends no more replicas or leaders there.
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
	// alarm has a signal when syncs have become slow, or one hangs: the placement service is to know at once.
	alarm   chan struct{}
	hanging *time.Timer // fires when the oldest sync under way may hang
	alarmed bool        // in this stretch of slow syncs
}

// diskWindow is how long syncs are counted before they are judged; a disk that has become fast again
// counts as slow for no longer than this.
const diskWindow = 10 * time.Second

const (
	// slowSync is how long syncs take that are worth telling the placement service at once; it compares stores.
	slowSync = 100 * time.Millisecond
	// hangingSync is how long a single one must take for that.
	hangingSync = 500 * time.Millisecond
	// alarmAgain is after how long the next report comes while syncs are slow: one alone proves nothing, since what other
	// stores have reported may be older than the load that makes all of them slow.
	alarmAgain = 2 * time.Second
)

func newDiskWatch(threshold time.Duration) *diskWatch {
	w := &diskWatch{
		threshold: threshold, now: time.Now, running: map[int]time.Time{}, began: time.Now(),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tikv_raft_engine_sync_duration_seconds", Help: "Duration of syncs of the raft log.",
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

// stats returns what syncs take, 0 if there were too few, and how long one has been under way, 0 if none is. Safe for
// concurrent use.
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
