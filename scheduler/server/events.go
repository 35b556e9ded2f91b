package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/history"
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

// copiedEvent is an event on its way to a follower, with the operator that ended by it, for the
// follower's history.
type copiedEvent struct {
	Event
	Operator *operator.Record `json:"operator,omitempty"`
	// Began is when the conditions of health that hold have begun, in a line without an event.
	Began map[string]time.Time `json:"began,omitempty"`
	// History are points that the follower lacks, in a line without an event.
	History []history.Point `json:"history,omitempty"`
}

// eventLog keeps the last events, with a way to wait for the next. Adding never blocks.
//
// Invariant: sequence numbers in list follow each other, up to seq.
type eventLog struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		list []copiedEvent // oldest first; at least the last eventCapacity, if there were as many
		seq  uint64
		more chan struct{} // closed at the next event
	}
}

func newEventLog(now func() time.Time) *eventLog {
	l := &eventLog{now: now}
	l.mu.more = make(chan struct{})
	return l
}

func (l *eventLog) add(kind, text string) { l.addWith(kind, text, nil) }

func (l *eventLog) addWith(kind, text string, op *operator.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.putLocked(copiedEvent{
		Event: Event{Seq: l.mu.seq + 1, Time: l.now(), Kind: kind, Text: text}, Operator: op,
	})
}

// copyOf continues the log with an event of the leader. The first of a stream, and one behind a
// gap, begin it anew.
func (l *eventLog) copyOf(e copiedEvent, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !first && e.Seq <= l.mu.seq {
		return // this member has just begun to lead
	}
	if first || e.Seq > l.mu.seq+1 {
		l.mu.list = nil
	}
	l.putLocked(e)
}

func (l *eventLog) putLocked(e copiedEvent) {
	l.mu.seq = e.Seq
	if len(l.mu.list) >= 2*eventCapacity {
		l.mu.list = append(l.mu.list[:0], l.mu.list[len(l.mu.list)-eventCapacity:]...)
	}
	l.mu.list = append(l.mu.list, e)
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
	l.addWith("operator-ended", text, &r)
}

// after returns the last eventCapacity events at most with a larger sequence number, oldest first,
// and a channel that is closed when there are more.
func (l *eventLog) after(seq uint64) ([]Event, <-chan struct{}) {
	list, more := l.copiesAfter(seq)
	out := make([]Event, len(list))
	for i, e := range list {
		out[i] = e.Event
	}
	return out, more
}

func (l *eventLog) copiesAfter(seq uint64) ([]copiedEvent, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.mu.list), eventCapacity)
	if seq < l.mu.seq {
		n = int(min(uint64(n), l.mu.seq-seq))
	} else {
		n = 0
	}
	return slices.Clone(l.mu.list[len(l.mu.list)-n:]), l.mu.more
}

// eventsPath is where followers get the leader's events, so that these and the history of operators
// outlive it. A line is a copiedEvent; one without an event is a sign of life.
const eventsPath = "/internal/events"

// serveEvents is the leader's side: all that it still has, then what happens, until either side
// ends.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	ctx := s.leaderContext()
	if ctx == nil || !s.IsLeader() {
		writeError(w, errNotLeader)
		return
	}
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	last, point := uint64(0), time.Time{}
	for {
		events, more := s.cluster.events.copiesAfter(last)
		if points := s.cluster.history.After(point); len(points) > 0 {
			events = append(events, copiedEvent{History: points})
			point = points[len(points)-1].Time
		}
		if len(events) == 0 {
			events = []copiedEvent{{Began: s.health.began()}}
		}
		for _, e := range events {
			if out.Encode(e) != nil {
				return
			}
			last = max(last, e.Seq)
		}
		if flush.Flush() != nil {
			return
		}
		select {
		case <-more:
		case <-time.After(syncAlive):
		case <-r.Context().Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// readEvents is a follower's side. What it had is replaced: another leader may have told it other
// things.
func (s *Server) readEvents(body io.Reader, alive func()) error {
	in := json.NewDecoder(body)
	for first := true; ; {
		var e copiedEvent
		if err := in.Decode(&e); err != nil {
			return err
		}
		alive()
		if e.Seq == 0 || s.IsLeader() {
			if !s.IsLeader() {
				s.cluster.history.Copy(e.History)
			}
			if e.Began != nil && !s.IsLeader() {
				s.health.learn(e.Began)
			}
			continue
		}
		if first {
			s.cluster.controller.ForgetHistory()
		}
		s.cluster.events.copyOf(e, first)
		first = false
		if e.Operator != nil {
			s.cluster.controller.Remember(*e.Operator)
		}
	}
}

// History is what happened in the last hour.
func (c *RaftCluster) History() *history.History { return c.history }

// keepHistory makes the points of the history until ctx, the leadership, ends.
func (c *RaftCluster) keepHistory(ctx context.Context) {
	c.history.Forget()
	for sleep(ctx, history.Slot) {
		c.history.Sample(c.historyPoint(), c.Settings().Schedule.StoreDisconnect.D())
	}
}

// historyPoint is the cluster now, without its requests.
func (c *RaftCluster) historyPoint() history.Point {
	now := c.opts.Now()
	p := history.Point{
		Time: now.UTC(), Regions: c.core.RegionCount(), Operators: c.controller.Len(),
		Stores: []history.Store{},
	}
	for _, st := range c.core.Stores() {
		if st.IsTombstone() || st.Stats() == nil {
			continue
		}
		used := st.Stats().GetUsedSize()
		p.Used += used
		p.Stores = append(p.Stores,
			history.Store{
				ID: st.ID(), Leaders: st.LeaderCount(), Regions: st.RegionCount(), Used: used,
			})
	}
	return p
}

// getHistoryPoints answers with the points after a time.
func getHistoryPoints(c *RaftCluster) handler {
	return func(r *http.Request) (any, error) {
		var after time.Time
		if text := r.URL.Query().Get("after"); text != "" {
			var err error
			if after, err = time.Parse(time.RFC3339Nano, text); err != nil {
				return nil, badRequest("after: %q is not a time as 2006-01-02T15:04:05Z", text)
			}
		}
		return map[string]any{
			"slot_s": history.Slot.Seconds(), "points": nonNil(c.history.After(after)),
		}, nil
	}
}
