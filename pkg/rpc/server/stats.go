package server

import (
	"math"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tinykv/tinykv/pkg/timing"
)

// counters are what a Server counts since its start.
type counters struct {
	connsShed, connsRefused       atomic.Uint64
	slowHandshakes                atomic.Uint64
	floods, refusedCalls          atomic.Uint64
	busyRequests, stalledRequests atomic.Uint64
	stalledReaders                atomic.Uint64
}

// Stats is the state of a Server's limits.
type Stats struct {
	// Conns are the connections of clients, Internal those of other stores, Trial those that have
	// not said which.
	Conns, Internal, Trial int
	// Calls are those whose handlers have not returned, or whose answers have not been sent.
	Calls int
	// ConnsShed counts idle connections that ended to make room, ConnsRefused those for which there
	// was none.
	ConnsShed, ConnsRefused uint64
	// Greeting are the connections that have not greeted yet. SlowHandshakes counts those that
	// ended, because they took their time, to make room for others.
	Greeting       int
	SlowHandshakes uint64
	// Floods counts connections that ended because they sent too much of what brings no call on:
	// pings, settings, empty frames, headers far above the limit. RefusedCalls counts calls beyond
	// those that a connection may have.
	Floods, RefusedCalls uint64
	// RequestBytes are held of clients' requests, InternalBytes of those of other stores.
	// BusyRequests counts calls that were answered as busy because of them, StalledRequests
	// messages that were given up because they did not go on.
	RequestBytes, InternalBytes   int64
	BusyRequests, StalledRequests uint64
	// AnswerBytes are held of answers, BusyAnswers counts those for which there was no room,
	// StalledReaders the connections that were closed because their clients did not take them.
	AnswerBytes                 int64
	BusyAnswers, StalledReaders uint64
}

func (in *intake) bytes() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.used
}

// Stats reads the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	classes, greeting, calls := s.mu.registry.classes, s.mu.registry.greeting, 0
	for c := range s.mu.conns {
		calls += c.calls()
	}
	s.mu.Unlock()
	return Stats{
		Conns: classes[classClient], Internal: classes[classInternal], Trial: classes[classTrial],
		Calls:    calls,
		Greeting: greeting, SlowHandshakes: s.stats.slowHandshakes.Load(),
		Floods: s.stats.floods.Load(), RefusedCalls: s.stats.refusedCalls.Load(),
		ConnsShed: s.stats.connsShed.Load(), ConnsRefused: s.stats.connsRefused.Load(),
		RequestBytes: s.intakes[0].bytes(), InternalBytes: s.intakes[1].bytes(),
		BusyRequests: s.stats.busyRequests.Load(), StalledRequests: s.stats.stalledRequests.Load(),
		AnswerBytes: s.answers.Used(), BusyAnswers: s.answers.Refused(),
		StalledReaders: s.stats.stalledReaders.Load(),
	}
}

// calls is how many calls the connection has.
func (c *conn) calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(int(c.mu.active), len(c.mu.streams))
}

// Timing counts the calls of one method: how long those that succeeded took, and how others ended.
// Safe for concurrent use. A nil Timing counts nothing.
type Timing struct {
	took   timing.Histogram
	failed [codes.Unauthenticated + 1]atomic.Uint64
	path   string
	slow   *slowCalls // nil: no call is slow
}

// slowCalls reports calls that took long.
type slowCalls struct {
	after  atomic.Int64 // in ns; math.MaxInt64: none is slow
	report OnSlow       // nil: none is reported
}

func (s *slowCalls) set(after time.Duration) { s.after.Store(int64(after)) }

func (s *slowCalls) end(path string, took time.Duration, code codes.Code) {
	if s.report != nil && int64(took) >= s.after.Load() {
		s.report(path, took, code)
	}
}

// SetSlowAfter changes from how long on a call is reported to Options.OnSlow, from the next answer
// on; 0: none is. Safe for concurrent use.
func (s *Server) SetSlowAfter(d time.Duration) {
	if d <= 0 {
		d = math.MaxInt64
	}
	s.slow.set(d)
}

// End counts a call by how it ended, and reports it if it took long.
func (t *Timing) End(code codes.Code, took time.Duration) {
	if t == nil {
		return
	}
	if code == codes.OK {
		t.took.Note(took, 1)
	} else {
		t.failed[min(code, codes.Unauthenticated)].Add(1)
	}
	if t.slow != nil {
		t.slow.end(t.path, took, code)
	}
}

// Note counts n calls that have succeeded, each in the given time.
func (t *Timing) Note(took time.Duration, n int) {
	if t != nil && n > 0 {
		t.took.Note(took, n)
	}
}

// Timed is what a Timing has counted.
type Timed struct {
	timing.Counts
	// Failed counts calls that did not succeed by their code.
	Failed map[codes.Code]uint64
}

// Read returns what was counted.
func (t *Timing) Read() Timed {
	out := Timed{Counts: t.took.Read()}
	for code := range t.failed {
		if n := t.failed[code].Load(); n > 0 {
			if out.Failed == nil {
				out.Failed = map[codes.Code]uint64{}
			}
			out.Failed[codes.Code(code)] = n
		}
	}
	return out
}

// Timing is that of a registered unary method, by its path; nil if there is none. The server counts
// its calls; who serves the same requests in another way, as on a stream of many, may count them
// too.
func (s *Server) Timing(path string) *Timing {
	if m := s.methods[path]; m != nil && m.unary != nil {
		return &m.timing
	}
	return nil
}

// Timings calls f with all unary methods.
func (s *Server) Timings(f func(path string, t *Timing)) {
	for path, m := range s.methods {
		if m.unary != nil {
			f(path, &m.timing)
		}
	}
}

// time counts a call that ends.
func (call *Call) time(code codes.Code) {
	if call.m == nil || call.m.unary == nil {
		return
	}
	call.m.timing.End(code, time.Duration(call.c.micros()-call.began)*time.Microsecond)
}

// micros is the age of the connection in microseconds, modulo 71 minutes.
func (c *conn) micros() uint32 { return uint32(time.Since(c.keep.Began).Microseconds()) }
