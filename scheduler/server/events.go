package server

import (
	"fmt"
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
)

const eventCapacity = 4096

// Event is something a person may want to know afterwards.
type Event struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	Text string    `json:"text"`
}

// eventLog is a ring of events with a way to wait for the next. Adding never blocks.
type eventLog struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		ring []Event
		seq  uint64
		more chan struct{} // closed at the next event
	}
}

func newEventLog(now func() time.Time) *eventLog {
	l := &eventLog{now: now}
	l.mu.more = make(chan struct{})
	return l
}

func (l *eventLog) add(kind, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.seq++
	e := Event{Seq: l.mu.seq, Time: l.now(), Kind: kind, Text: text}
	if len(l.mu.ring) < eventCapacity {
		l.mu.ring = append(l.mu.ring, e)
	} else {
		l.mu.ring[(l.mu.seq-1)%eventCapacity] = e
	}
	close(l.mu.more)
	l.mu.more = make(chan struct{})
}

func (l *eventLog) operatorStarted(r operator.Record) {
	l.add("operator-started", fmt.Sprintf("%s of region %d: %s", r.Desc, r.RegionID, r.Why))
}

func (l *eventLog) operatorEnded(r operator.Record) {
	text := fmt.Sprintf("%s of region %d: %s", r.Desc, r.RegionID, r.Status)
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	l.add("operator-ended", text)
}

// after returns the events with a larger sequence number, oldest first, and a channel that is closed
// when there are more.
func (l *eventLog) after(seq uint64) ([]Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := uint64(len(l.mu.ring))
	first := max(seq+1, l.mu.seq-n+1)
	var out []Event
	for s := first; s <= l.mu.seq; s++ {
		out = append(out, l.mu.ring[(s-1)%eventCapacity])
	}
	return out, l.mu.more
}
