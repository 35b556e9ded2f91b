package server

import "sync/atomic"

// metrics count what the service does.
type metrics struct {
	tsoHandled      atomic.Uint64
	storeHeartbeats atomic.Uint64
}

func newMetrics(*Server) *metrics { return &metrics{} }
