package server

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// intake bounds the bytes of requests that a server holds: messages that are not complete, and
// complete ones until their call is answered or, on a stream, until the handler has taken them or
// gives back their Hold. A
// message that comes in one frame is not charged: its memory is that of the frame. A stream that
// has a window reserved is charged for larger messages only.
//
// The life of a charged message. Its first window, Options.FirstWindow, comes unasked and is
// charged when the message turns out to be incomplete. When half of that window is used, the whole
// rest is asked for at once: if it fits, the client gets a window for all of it; else the claim
// waits, first come first served, and its client has no window. So a message that has begun to be
// granted can always end, and no two messages wait for each other. The connection's window is given
// back for all that comes, also for messages that wait: what waits is charged, and a connection
// never blocks itself.
//
// A quarter of the limit is kept for first windows, so that middling requests do not wait for large
// ones. A message that makes no progress is given up: after Stall, or after stallPressed while
// others wait for its bytes. A unary call that has waited for longer than MaxWait, or finds
// maxWaiting others, is answered as busy; nothing of it was carried out.
//
// Lock order: conn.mu < intake.mu < inbox.mu. Owned by the Server.
type intake struct {
	limit int64
	opts  *Options
	// refused counts calls that were answered as busy, stalled messages that were given up.
	refused, stalled *atomic.Uint64

	mu struct {
		sync.Mutex
		used int64
		// live are the claims of incomplete messages; waiting those of them that have asked and
		// were not granted.
		live    map[*claim]struct{}
		waiting []*claim
		timer   *time.Timer
		stopped bool
	}
}

const (
	// stallPressed is how long a message may make no progress while others wait.
	stallPressed = 2 * time.Second
	// slowest is what a request must come with on average, in bytes a second, beside Stall.
	slowest = 128 << 10
	// maxWaiting bounds the unary calls that wait.
	maxWaiting = 256
	// lookEvery is how often incomplete messages are looked at while there are some.
	lookEvery = 500 * time.Millisecond
)

// claim is one message that is not complete.
type claim struct {
	call *Call
	in   *intake
	need int64
	// got is how much has come.
	got atomic.Int64
	// given: the rest was granted, its window is the client's or will be.
	given atomic.Bool
	// asked, window and counted belong to the reading goroutine: whether the rest was asked for,
	// what window it takes, and whether the stream's window has that in it.
	asked, counted bool
	window         int64

	// The intake's lock guards these. charged is what the call is charged for the message. began,
	// moved and queued are when it began, when it was last found to have come further, from seen,
	// and since when it waits.
	charged, seen        int64
	granted              bool
	began, moved, queued time.Time

	// parts guards call.parts while the claim is its call's. done: the message is complete; dead:
	// it was given up.
	parts      sync.Mutex
	done, dead bool
}

func newIntake(o *Options, limit int64, stats *counters) *intake {
	in := &intake{
		limit: limit, opts: o, refused: &stats.busyRequests, stalled: &stats.stalledRequests,
	}
	in.mu.live = map[*claim]struct{}{}
	return in
}

// fitsLocked tells whether n more bytes fit; large: beside what is kept for first windows. A
// message that could never fit has its turn beside first windows only.
func (in *intake) fitsLocked(n int64, large bool) bool {
	limit := in.limit
	if large {
		limit -= limit / 4
	}
	return in.mu.used+n <= limit || n > limit-in.limit/4 && in.mu.used <= in.limit/4
}

// begin charges the first window of an incomplete message. It returns nil if there is no room, or
// the call has ended. A stream's message is charged all the same, since it cannot be refused alone.
func (in *intake) begin(call *Call, need int64) *claim {
	call.charged.Store(true) // before the look whether the call has ended: see finishLocked
	in.mu.Lock()
	defer in.mu.Unlock()
	first := min(int64(in.opts.FirstWindow), need)
	if call.answered.Load() || call.stream == nil && !in.fitsLocked(first, false) {
		return nil
	}
	now := time.Now()
	cl := &claim{call: call, in: in, need: need, charged: first, began: now, moved: now}
	in.chargeLocked(call, first)
	call.bill.open = cl
	in.mu.live[cl] = struct{}{}
	in.watchLocked()
	return cl
}

// hold charges a call that has just begun for n bytes, until it ends; false if there is no room.
func (in *intake) hold(call *Call, n int64) bool {
	call.charged.Store(true)
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.fitsLocked(n, false) {
		return false
	}
	in.chargeLocked(call, n)
	return true
}

func (in *intake) chargeLocked(call *Call, n int64) {
	in.mu.used += n
	call.bill.held += n
}

// The answers of ask.
const (
	askGranted = iota
	askLater
	askRefused
)

// ask is for the rest of a message.
func (in *intake) ask(cl *claim) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case cl.call.bill.open != cl: // the call has ended
		return askLater
	case len(in.mu.waiting) == 0 && in.grantLocked(cl):
		return askGranted
	case cl.call.stream == nil && len(in.mu.waiting) >= maxWaiting:
		return askRefused
	}
	cl.queued = time.Now()
	in.mu.waiting = append(in.mu.waiting, cl)
	return askLater
}

func (in *intake) grantLocked(cl *claim) bool {
	rest := cl.need - cl.charged
	if !in.fitsLocked(rest, true) {
		return false
	}
	in.chargeLocked(cl.call, rest)
	cl.charged += rest
	cl.granted, cl.moved = true, time.Now()
	cl.given.Store(true) // before the client can know
	return true
}

// complete ends the claim of a message that has come. The call stays charged for charged bytes.
// window is what was given for the message in advance.
func (in *intake) complete(cl *claim) (charged, window int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closeLocked(cl)
	if cl.granted {
		window = cl.window
	}
	return cl.charged, window
}

// closeLocked takes a claim out; those behind it have their turn.
func (in *intake) closeLocked(cl *claim) {
	if cl.call.bill.open != cl {
		return
	}
	cl.call.bill.open = nil
	delete(in.mu.live, cl)
	in.mu.waiting = slices.DeleteFunc(in.mu.waiting, func(w *claim) bool { return w == cl })
	in.serveLocked()
}

// give takes bytes back that a call was charged for.
func (in *intake) give(call *Call, n int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.giveLocked(call, n)
}

func (in *intake) giveLocked(call *Call, n int64) {
	n = min(n, call.bill.held)
	call.bill.held -= n
	in.mu.used -= n
	in.serveLocked()
}

// release takes everything back from a call that has ended.
func (in *intake) release(call *Call) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if call.bill.open != nil {
		in.closeLocked(call.bill.open)
	}
	in.giveLocked(call, call.bill.held)
}

// Hold is what a message of a stream stays charged while its handler works on it. It outlives its
// call. Safe for concurrent use; the nil Hold holds nothing.
//
// Invariant: left >= 0, and the intake's used has left in it.
type Hold struct {
	in   *intake
	left atomic.Int64
}

// lend has a handler hold bytes that a call is charged for; nil if the call has ended, which has
// given them back.
func (in *intake) lend(call *Call, n int64) *Hold {
	in.mu.Lock()
	defer in.mu.Unlock()
	n = min(n, call.bill.held)
	if n == 0 {
		return nil
	}
	call.bill.held -= n
	h := &Hold{in: in}
	h.left.Store(n)
	return h
}

// Left is how many bytes are held.
func (h *Hold) Left() int64 {
	if h == nil {
		return 0
	}
	return h.left.Load()
}

// Give gives n bytes back, or what is left if that is less.
func (h *Hold) Give(n int64) {
	if h == nil || n <= 0 {
		return
	}
	for {
		left := h.left.Load()
		n = min(n, left)
		if n == 0 {
			return
		}
		if h.left.CompareAndSwap(left, left-n) {
			break
		}
	}
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	h.in.mu.used -= n
	h.in.serveLocked()
}

// End gives everything back.
func (h *Hold) End() { h.Give(h.Left()) }

// abandon takes back what a message is charged that will not end.
func (in *intake) abandon(cl *claim) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if cl.call.bill.open == cl {
		in.closeLocked(cl)
		in.giveLocked(cl.call, cl.charged)
	}
}

// serveLocked grants what fits now, in the order in which it was asked for.
func (in *intake) serveLocked() {
	n := 0
	for n < len(in.mu.waiting) && in.grantLocked(in.mu.waiting[n]) {
		in.mu.waiting[n].call.c.grant(in.mu.waiting[n])
		n++
	}
	if n > 0 {
		in.mu.waiting = slices.Delete(in.mu.waiting, 0, n)
	}
}

// watchLocked has the incomplete messages looked at soon, as long as there are some.
func (in *intake) watchLocked() {
	switch {
	case in.mu.stopped:
	case in.mu.timer == nil:
		in.mu.timer = time.AfterFunc(lookEvery, func() { in.look(time.Now()) })
	case len(in.mu.live) == 1:
		in.mu.timer.Reset(lookEvery)
	}
}

// stop ends the looks.
func (in *intake) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.stopped = true
	if in.mu.timer != nil {
		in.mu.timer.Stop()
	}
}

// look gives up messages that do not go on, and calls that have waited for too long.
func (in *intake) look(now time.Time) {
	var stalled, late []*claim
	in.mu.Lock()
	// Messages of one connection share its way: while one of them comes, the others are not late.
	moving := map[*conn]bool{}
	for cl := range in.mu.live {
		if cl.got.Load() != cl.seen {
			moving[cl.call.c] = true
		}
	}
	for cl := range in.mu.live {
		switch in.judgeLocked(cl, now, moving[cl.call.c]) {
		case claimStalled:
			stalled = append(stalled, cl)
		case claimLate:
			late = append(late, cl)
		}
	}
	if len(in.mu.live) > 0 && !in.mu.stopped {
		in.mu.timer.Reset(lookEvery)
	}
	in.mu.Unlock()
	for _, cl := range stalled {
		cl.giveUp(in.stalled, reasonStalled)
	}
	for _, cl := range late {
		cl.giveUp(in.refused, reasonRequests)
	}
}

// What judgeLocked finds.
const (
	claimGood = iota
	claimStalled
	claimLate
)

// judgeLocked says what becomes of a claim, and notes how far it has come. moving: its connection
// brings requests.
func (in *intake) judgeLocked(cl *claim, now time.Time, moving bool) int {
	if !cl.queued.IsZero() && !cl.granted { // it has no window
		if cl.call.stream == nil && now.Sub(cl.queued) > in.opts.MaxWait {
			return claimLate
		}
		return claimGood
	}
	if st := cl.call.stream; st != nil && st.in.IsBehind() {
		cl.began, cl.moved = now, now // its handler is late, and it has no more window
		return claimGood
	}
	cl.seen = cl.got.Load()
	if moving {
		cl.moved = now
	}
	patience := in.opts.Stall
	if len(in.mu.waiting) > 0 {
		patience = min(patience, stallPressed)
	}
	since := cl.began
	if cl.granted && !cl.queued.IsZero() {
		since = cl.queued.Add(in.opts.MaxWait) // at least; the wait was not the client's
	}
	whole := in.opts.Stall + time.Duration(cl.need)*time.Second/slowest
	if now.Sub(cl.moved) > patience || now.Sub(since) > whole {
		return claimStalled
	}
	return claimGood
}

// Reasons why a request was not carried out.
const (
	reasonRequests = "too many bytes of requests are in flight on this store"
	reasonStalled  = "the request did not go on for too long"
)

// giveUp ends the call of a message that will not end. Nothing of a unary call was carried out; the
// handler of a stream has seen the messages before.
func (cl *claim) giveUp(count *atomic.Uint64, reason string) {
	cl.parts.Lock()
	if cl.done || cl.dead {
		cl.parts.Unlock()
		return
	}
	cl.dead = true
	cl.call.parts = rpc.Assembler{}
	cl.parts.Unlock()
	cl.in.abandon(cl)
	count.Add(1)
	if st := cl.call.stream; st != nil {
		// Not ResourceExhausted, which says that nothing was carried out.
		st.in.EndRecv(status.Error(codes.Unavailable, "the stream is ended: "+reason))
		return
	}
	cl.call.refuseBusy(reason)
}

// busyStatus is the answer of calls whose method has no other one.
func busyStatus(reason string) error {
	return status.Error(codes.ResourceExhausted, "server is busy: "+reason)
}

// refuseBusy answers a call of which nothing was carried out.
func (call *Call) refuseBusy(reason string) {
	if call.m.busy != nil {
		call.Reply(call.m.busy(reason))
		return
	}
	call.Fail(busyStatus(reason))
}

// grants are the claims of a connection that were granted and whose clients do not know it yet.
type grants struct {
	any  atomic.Bool
	mu   sync.Mutex
	list []*claim
}

// grant has the writer give a claim's window: the goroutine that frees bytes may hold the lock of
// another connection.
func (c *conn) grant(cl *claim) {
	c.grants.mu.Lock()
	c.grants.list = append(c.grants.list, cl)
	c.grants.mu.Unlock()
	c.grants.any.Store(true)
	c.wakeWriter()
}

// sendGrants is for the writer.
func (c *conn) sendGrants() {
	if !c.grants.any.Swap(false) {
		return
	}
	c.grants.mu.Lock()
	list := c.grants.list
	c.grants.list = nil
	c.grants.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range list {
		cl.call.windowUpdateLocked(cl.window)
	}
}
