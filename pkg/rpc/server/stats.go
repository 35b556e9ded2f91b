package server

import (
	"sync/atomic"
)

// counters are what a Server counts since its start.
type counters struct {
	connsShed, connsRefused       atomic.Uint64
	busyRequests, stalledRequests atomic.Uint64
	stalledReaders                atomic.Uint64
}

// Stats is the state of a Server's limits.
type Stats struct {
	// Conns are the connections of clients, Internal those of other stores, Trial those that have not said which.
	Conns, Internal, Trial int
	// Calls are those whose handlers have not returned, or whose answers have not been sent.
	Calls int
	// ConnsShed counts idle connections that ended to make room, ConnsRefused those for which there was none.
	ConnsShed, ConnsRefused uint64
	// RequestBytes are held of clients' requests, InternalBytes of those of other stores. BusyRequests counts calls that
	// were answered as busy because of them, StalledRequests messages that were given up because they did not go on.
	RequestBytes, InternalBytes   int64
	BusyRequests, StalledRequests uint64
	// AnswerBytes are held of answers, BusyAnswers counts those for which there was no room, StalledReaders the
	// connections that were closed because their clients did not take them.
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
	classes, calls := s.mu.registry.classes, 0
	for c := range s.mu.conns {
		calls += c.calls()
	}
	s.mu.Unlock()
	return Stats{
		Conns: classes[classClient], Internal: classes[classInternal], Trial: classes[classTrial], Calls: calls,
		ConnsShed: s.stats.connsShed.Load(), ConnsRefused: s.stats.connsRefused.Load(),
		RequestBytes: s.intakes[0].bytes(), InternalBytes: s.intakes[1].bytes(),
		BusyRequests: s.stats.busyRequests.Load(), StalledRequests: s.stats.stalledRequests.Load(),
		AnswerBytes: s.answers.Used(), BusyAnswers: s.answers.Refused(), StalledReaders: s.stats.stalledReaders.Load(),
	}
}

// calls is how many calls the connection has.
func (c *conn) calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(int(c.mu.active), len(c.mu.streams))
}
