package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// Answers that a client has not taken yet are bounded for the server, Options.MaxAnswers, and for
// each connection, a quarter of that. What a connection holds is its output, what of it is being
// written, and messages that wait for the client's windows. Less than freeAnswers is not counted:
// the usual answers leave at once.
//
// A large answer for which there is no room is not sent: its call is answered as busy, which for a
// read is as good as not carried out. Handlers that gather much take room while they do (Room), so
// that many of them at once do not hold more. Calls of a connection that holds as much as it may,
// or has taken nothing for idleReader, are refused before they are carried out. The answers of
// writes are small and are always sent.
//
// A connection that holds answers is closed if its client does not take largeOut of them in
// Options.Stall; in stallPressed while the server has little room.

const (
	// freeAnswers is what a connection may hold uncounted.
	freeAnswers = rpc.ChunkSize
	// largeOut is how much output waits before messages do: they go out in pieces of that size.
	largeOut = 256 << 10
	// idleReader is how long a client may take nothing until its calls are refused.
	idleReader = time.Second
	// largeAnswer is what is sent only if there is room.
	largeAnswer = rpc.LargeMessage
	// gatherStep is what a handler takes at a time for an answer whose size it does not know.
	gatherStep = 256 << 10
)

// NoRoom is why a call is refused for which the server has no room.
const NoRoom = "too many bytes of answers wait for their clients on this store"

// errAnswersFull is returned by sendLocked for an answer that there is no room for.
var errAnswersFull = errors.New("rpc: no room for the answer")

// errNotReading is why a connection ends whose client does not take its answers.
var errNotReading = errors.New("rpc: the client does not take its answers")

// connAnswers is how much of the answers one connection may hold.
func (o *Options) connAnswers() int64 { return o.MaxAnswers / 4 }

// settleLocked has the server count what the connection holds now.
func (c *conn) settleLocked() {
	held := int64(c.mu.out.Size+c.mu.inWrite) + c.mu.out.PendingBytes
	if held <= freeAnswers {
		held = 0
	}
	if held == c.mu.charged {
		return
	}
	if (c.mu.charged == 0) != (held == 0) {
		c.s.readers.watch(c, held > 0)
		c.mu.readerSeen, c.mu.readerMoved = c.mu.wrote, time.Now()
	}
	c.s.answers.Charge(held - c.mu.charged)
	c.mu.charged = held
	c.full.Store(held >= c.s.opts.connAnswers() || c.full.Load() && c.mu.wrote == c.mu.readerSeen)
}

// noteOutputLocked is settleLocked where it costs nothing if little is held.
func (c *conn) noteOutputLocked() {
	if c.mu.charged > 0 || int64(c.mu.out.Size)+c.mu.out.PendingBytes > freeAnswers {
		c.settleLocked()
	}
}

// takeRoomLocked tells whether the call may answer with so many bytes, and takes what its handler
// has no room for: the answer is encoded before the connection is charged for it, and others ask
// meanwhile. The caller gives it back. A connection may always hold one answer, if the server has
// the room.
func (call *Call) takeRoomLocked(size int) (taken int64, ok bool) {
	c := call.c
	more := int64(size) - call.room.size()
	if size <= largeAnswer || !call.mayNotFit() || more <= 0 {
		return 0, true
	}
	if c.mu.charged > 0 && c.mu.charged+int64(size) > c.s.opts.connAnswers() {
		c.s.answers.Refuse()
		return 0, false
	}
	return more, c.s.answers.Take(more)
}

// readers are the connections that hold answers. Owned by the Server.
//
// Lock order: conn.mu < readers.mu.
type readers struct {
	s  *Server
	mu struct {
		sync.Mutex
		conns   map[*conn]struct{}
		timer   *time.Timer
		stopped bool
	}
}

// watch puts a connection in or takes it out.
func (r *readers) watch(c *conn, holds bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !holds {
		delete(r.mu.conns, c)
		return
	}
	r.mu.conns[c] = struct{}{}
	switch {
	case r.mu.stopped || len(r.mu.conns) > 1:
	case r.mu.timer == nil:
		r.mu.timer = time.AfterFunc(lookEvery, func() { r.look(time.Now()) })
	default:
		r.mu.timer.Reset(lookEvery)
	}
}

// look closes connections whose clients do not take their answers.
func (r *readers) look(now time.Time) {
	r.mu.Lock()
	conns := make([]*conn, 0, len(r.mu.conns))
	for c := range r.mu.conns {
		conns = append(conns, c)
	}
	if len(conns) > 0 && !r.mu.stopped {
		r.mu.timer.Reset(lookEvery)
	}
	r.mu.Unlock()
	patience := r.s.opts.Stall
	if b := r.s.answers; b.Used() > b.Limit()*3/4 {
		patience = min(patience, stallPressed)
	}
	for _, c := range conns {
		c.checkReader(now, patience)
	}
}

// checkReader closes the connection if it is none that takes its answers.
func (c *conn) checkReader(now time.Time, patience time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.charged == 0 || c.mu.closed != nil:
	case c.mu.wrote != c.mu.readerSeen:
		c.mu.readerSeen, c.mu.readerMoved = c.mu.wrote, now
	case now.Sub(c.mu.readerMoved) > patience:
		c.s.stats.stalledReaders.Add(1)
		c.closeLocked(errNotReading)
	case now.Sub(c.mu.readerMoved) > idleReader:
		c.full.Store(true)
	}
}

func (r *readers) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.stopped = true
	if r.mu.timer != nil {
		r.mu.timer.Stop()
	}
}

// Room is what a handler has taken for an answer that it gathers. Owned by the handler's goroutine.
// The nil Room has no limit.
type Room struct {
	b *rpc.Budget
	n int64
	// keeps: the owner of the room calls done when the answer has been encoded.
	keeps bool
	done  func()
}

// NewRoom makes a room without bytes; b may be nil.
func NewRoom(b *rpc.Budget) *Room { return &Room{b: b} }

// Grow makes the room at least n bytes large; false if there are not so many.
func (r *Room) Grow(n int64) bool {
	if r == nil || r.b == nil || n <= r.n {
		return true
	}
	if !r.b.Take(n - r.n) {
		if r.n < r.b.Limit()/2 {
			return false
		}
		r.b.Charge(n - r.n) // one answer may be larger than the limit
	}
	r.n = n
	return true
}

// Gather is Grow, in steps, for an answer of which size bytes are there. A small answer needs no
// room.
func (r *Room) Gather(size int) bool {
	if size <= largeAnswer {
		return true
	}
	return r.Grow((int64(size) + gatherStep - 1) / gatherStep * gatherStep)
}

// Keeps tells whether Keep may be called.
func (r *Room) Keeps() bool { return r != nil && r.keeps && r.done == nil }

// Keep has done called, once, when nothing refers to the answer of the handler any more: it was
// encoded, or is not sent. The answer may be made of memory that is used again then. Only if Keeps,
// and not if the handler's answer was handed to others.
func (r *Room) Keep(done func()) { r.done = done }

// end gives everything back, after the answer.
func (r *Room) end() {
	r.Give()
	if r.done != nil {
		r.done()
	}
}

// size is how much the room has.
func (r *Room) size() int64 {
	if r == nil {
		return 0
	}
	return r.n
}

// Give gives everything back, and returns how much it was.
func (r *Room) Give() int64 {
	if r == nil || r.n == 0 {
		return 0
	}
	n := r.n
	r.n = 0
	r.b.Give(n)
	return n
}

// roomContext is a context in which a handler finds its room.
type roomContext struct {
	context.Context
	room *Room
}

type roomKey struct{}

func (c *roomContext) Value(key any) any {
	if key == (roomKey{}) {
		return c.room
	}
	return c.Context.Value(key)
}

// WithRoom gives a handler a room.
func WithRoom(ctx context.Context, r *Room) context.Context { return &roomContext{ctx, r} }

// RoomOf is the room that a handler's context has; nil if it has none.
func RoomOf(ctx context.Context) *Room {
	r, _ := ctx.Value(roomKey{}).(*Room)
	return r
}

// Answers bounds the answers that clients have not taken.
func (s *Server) Answers() *rpc.Budget { return s.answers }
