package tikv

import (
	"sync"
	"sync/atomic"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// held are the charges of commands under way whose message was charged against the store's bytes of
// requests: a large message. Each command gives its own size back when it is answered, or will not
// be begun. Safe for concurrent use.
//
// Commands of small messages, which are not charged, cost one atomic load.
type held struct {
	// n is the length of by.
	n  atomic.Int64
	mu struct {
		sync.Mutex
		by map[*request]share
	}
}

// share is what a command holds of the charge of its message.
type share struct {
	hold *rpc.Hold
	size int64
}

// keep splits the charge of a message among its commands. What exceeds their sizes is given back.
func (h *held) keep(hold *rpc.Hold, requests []*request) {
	if hold.Left() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.by == nil {
		h.mu.by = make(map[*request]share, len(requests))
	}
	rest := hold.Left()
	for _, req := range requests {
		if req == nil || rest == 0 {
			continue
		}
		size := min(int64(req.Size()), rest)
		rest -= size
		h.mu.by[req] = share{hold, size}
	}
	h.n.Store(int64(len(h.mu.by)))
	hold.Give(rest)
}

// give gives back what a command holds, once.
func (h *held) give(req *request) {
	if h.n.Load() == 0 {
		return
	}
	h.mu.Lock()
	s, ok := h.mu.by[req]
	if ok {
		delete(h.mu.by, req)
		h.n.Store(int64(len(h.mu.by)))
	}
	h.mu.Unlock()
	if ok {
		s.hold.Give(s.size)
	}
}

// giveAll is give for the commands of a message that is refused.
func (h *held) giveAll(requests []*request) {
	for _, req := range requests {
		h.give(req)
	}
}
