package tikv

import (
	"context"
	"sync"
	"sync/atomic"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// maxDecoded bounds the bytes of a stream's large messages that are decoded and not answered yet,
// if not one command alone is larger. A client may put any number of commands into a message;
// decoded all at once they would take several times its size.
const maxDecoded = 16 << 20

// held are the charges of commands under way whose message was charged against the store's bytes of
// requests: a large message. Each command gives its own size back when it is answered, or will not
// be begun, and the last of its message is decoded. Safe for concurrent use.
//
// Commands of small messages, which are not charged, cost one atomic load.
type held struct {
	// n is the length of by.
	n  atomic.Int64
	mu struct {
		sync.Mutex
		by map[*request]share
		// decoded is the sum of the sizes in by.
		decoded int64
	}
	// less has a token after decoded has become less.
	less chan struct{}
}

// charge is what a message is charged. The held that it belongs to guards it.
//
// Invariant: while the message is decoded, all of it is charged, since its bytes are there; then
// the sum of the sizes of its commands in by, if it was charged as much.
type charge struct {
	hold     *rpc.Hold
	decoding bool
	// open is the sum of the sizes of the message's commands in by.
	open int64
}

// share is what a command holds of the charge of its message.
type share struct {
	of   *charge
	size int64
}

// keep makes a command of a charged message hold its size. It waits while maxDecoded bytes are
// held; false if ctx ends first.
func (h *held) keep(ctx context.Context, c *charge, req *request, size int64) bool {
	for !h.tryKeep(c, req, size) {
		select {
		case <-h.less:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (h *held) tryKeep(c *charge, req *request, size int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.decoded > 0 && h.mu.decoded+size > maxDecoded {
		return false
	}
	if h.mu.by == nil {
		h.mu.by = make(map[*request]share)
	}
	h.mu.by[req] = share{c, size}
	h.n.Store(int64(len(h.mu.by)))
	h.mu.decoded += size
	c.open += size
	return true
}

// give gives back what a command holds, once.
func (h *held) give(req *request) {
	if h.n.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.mu.by[req]
	if !ok {
		return
	}
	delete(h.mu.by, req)
	h.n.Store(int64(len(h.mu.by)))
	h.mu.decoded -= s.size
	s.of.open -= s.size
	if !s.of.decoding {
		s.of.hold.Give(s.size)
	}
	select {
	case h.less <- struct{}{}:
	default:
	}
}

// decoded ends the time in which all of a message is charged: its bytes are not there any more.
func (h *held) decoded(c *charge) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.decoding = false
	c.hold.Give(c.hold.Left() - c.open)
}
