package raftstore

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
)

// maxQueuedRaftMessages bounds the messages from other stores that wait in one mailbox: beyond it
// they are dropped, raft sends them again.
const maxQueuedRaftMessages = 4096

// mailbox is a region's queue of messages and its place in the ready queue. A region is held by at
// most one worker: queued is true from the moment the mailbox enters the ready queue until the
// worker that took it out puts it back or lets it rest.
//
// Client commands and raft messages are bounded; what the store itself sends (apply results,
// reports) is not dropped, its number is bounded by the work that causes it. Ticks are a counter.
//
// A report that nobody waits for (message.Applied.Quiet) is laid into the mailbox without waking a
// worker: it is worked off with what comes next, at the latest the next tick. So it gets a turn at
// once if the peer sleeps, which has no ticks, or has said in its last turn that it waits for
// reports.
type mailbox struct {
	regionID uint64
	// peer is touched only by the worker that holds the mailbox.
	peer *peer
	// handle is what readers on other goroutines may know.
	handle atomic.Pointer[readHandle]
	// beats are the heartbeats that the ticker repeats while no worker handles ticks (repeatBeats).
	beats atomic.Pointer[heartbeats]
	// asleep: the peer gets no ticks, except at duty (since the clock's base) if that is not 0.
	asleep  atomic.Bool
	dormant atomic.Bool // asleep since the start of the store (sleep.go)
	duty    atomic.Int64
	counted atomic.Bool // in router.awake
	// compared is the slot of time in which the region's replicas were last found equal
	// (compare.go).
	compared atomic.Int64
	// sick: a failed read was reported to the peer.
	sick atomic.Bool
	// read is set by local reads, so that a region that is only read stays awake.
	read atomic.Bool
	// mortal counts the batches that have written expiry times of the region.
	mortal atomic.Uint64
	// reads counts what was read of the region since its last report.
	reads flow

	mu struct {
		sync.Mutex
		msgs     []message.Msg
		spare    []message.Msg
		commands int
		rafts    int
		ticks    int
		queued   bool
		closed   bool
		urgent   bool // some of msgs are not quiet
		awaited  bool // the peer waits for quiet reports
	}
}

// router is the map from regions to mailboxes, and the queue of mailboxes that need a worker.
// Safe for concurrent use.
type router struct {
	boxes       sync.Map // uint64 -> *mailbox
	count       atomic.Int64
	maxCommands int
	dropped     atomic.Uint64
	ready       readyQueue
	// awake counts peers that want ticks; stirred has a signal when the first of them has woken.
	awake   atomic.Int64
	stirred chan struct{}
}

// newRouter makes a router whose regions are run by the given number of workers.
func newRouter(maxCommands, workers int) *router {
	r := &router{maxCommands: maxCommands, stirred: make(chan struct{}, 1)}
	r.ready.init(workers - 1)
	return r
}

func (r *router) get(regionID uint64) *mailbox {
	if b, ok := r.boxes.Load(regionID); ok {
		return b.(*mailbox)
	}
	return nil
}

// register makes a peer reachable. It reports false if the region already has a mailbox.
func (r *router) register(p *peer) bool {
	_, loaded := r.boxes.LoadOrStore(p.regionID, p.box)
	if !loaded {
		r.count.Add(1)
		r.noteAwake(p.box, true)
	}
	return !loaded
}

// close takes a mailbox out of the map, refuses further messages, and returns what was still
// queued.
func (r *router) close(b *mailbox) []message.Msg {
	if r.boxes.CompareAndDelete(b.regionID, b) {
		r.count.Add(-1)
		r.noteAwake(b, false)
	}
	return b.close()
}

// send queues a message for a region. It never blocks. Errors: regionerr.RegionNotFoundError,
// regionerr.BusyError.
func (r *router) send(regionID uint64, m message.Msg) error {
	b := r.get(regionID)
	if b == nil {
		return &regionerr.RegionNotFoundError{RegionID: regionID}
	}
	return r.push(b, m)
}

func (r *router) push(b *mailbox, m message.Msg) error {
	wake, err := r.put(b, m)
	if wake {
		r.ready.push(b)
	}
	return err
}

// put lays a message into a mailbox. If wake is true the caller must put the mailbox into the ready
// queue: with messages for many regions, all of them at once, so that they share a turn.
func (r *router) put(b *mailbox, m message.Msg) (wake bool, err error) {
	wake, err = b.put(m, r.maxCommands)
	if errors.Is(err, errManyRafts) {
		r.dropped.Add(1)
	}
	return wake, err
}

// errManyRafts refuses a raft message.
var errManyRafts error = &regionerr.BusyError{Reason: "too many raft messages wait for this region"}

// put lays a message into the mailbox, unless there are too many of its kind. If wake is true the
// mailbox belongs into the ready queue.
func (b *mailbox) put(m message.Msg, maxCommands int) (wake bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.closed {
		return false, &regionerr.RegionNotFoundError{RegionID: b.regionID}
	}
	quiet := false
	switch m := m.(type) {
	case *message.Write, *message.Read, *message.Admin:
		if b.mu.commands >= maxCommands {
			return false, &regionerr.BusyError{Reason: "too many requests wait for this region"}
		}
		b.mu.commands++
	case *message.Raft:
		if b.mu.rafts >= maxQueuedRaftMessages {
			return false, errManyRafts
		}
		b.mu.rafts++
	case *message.Applied:
		quiet = m.Quiet
	}
	b.mu.msgs = append(b.mu.msgs, m)
	b.mu.urgent = b.mu.urgent || !quiet
	wake = !b.mu.queued && b.due()
	b.mu.queued = b.mu.queued || wake
	return wake, nil
}

// close refuses further messages and returns what was still queued.
func (b *mailbox) close() []message.Msg {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.closed = true
	left := b.mu.msgs
	b.mu.msgs = nil
	b.handle.Store(nil)
	return left
}

// addTicks adds ticks. If wake is true the mailbox belongs into the ready queue. waiting are the
// ticks that no worker has taken.
func (b *mailbox) addTicks(n int) (wake bool, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wake = !b.mu.closed && !b.mu.queued
	b.mu.ticks += n
	if wake {
		b.mu.queued = true
	}
	return wake, b.mu.ticks
}

// due tells whether what is in the mailbox asks for a turn. The lock must be held.
func (b *mailbox) due() bool {
	return b.mu.urgent || b.mu.ticks > 0 || len(b.mu.msgs) > 0 && (b.mu.awaited || b.asleep.Load())
}

// noteAwake counts a mailbox among those that get ticks, or not any more. Called by the holder of
// the mailbox, or registers or closes it; a mailbox that is not registered does not count.
func (r *router) noteAwake(b *mailbox, awake bool) {
	if b.counted.Swap(awake) == awake {
		return
	}
	if !awake {
		r.awake.Add(-1)
		return
	}
	if r.awake.Add(1) == 1 {
		select {
		case r.stirred <- struct{}{}:
		default:
		}
	}
}

// tick adds ticks to every mailbox whose peer is awake or has a duty by now, a time since the
// clock's base. It returns those of peers that are awake, and of whose waiting ticks stalls says
// so.
func (r *router) tick(n int, now int64, stalls func(ticks int) bool) (stalled []*mailbox) {
	var woken []*mailbox
	r.boxes.Range(func(_, v any) bool {
		b := v.(*mailbox)
		asleep := b.asleep.Load()
		if asleep {
			if duty := b.duty.Load(); duty == 0 || now < duty {
				return true
			}
		}
		wake, waiting := b.addTicks(n)
		if wake {
			woken = append(woken, b)
		}
		if !asleep && stalls(waiting) {
			stalled = append(stalled, b)
		}
		return true
	})
	r.ready.push(woken...)
	r.ready.unstick()
	return stalled
}

// maxTurnBytes bounds the entries that regions bring into a turn. While they are written,
// heartbeats wait: with a slow disk, for as long as followers do without a leader.
const maxTurnBytes = 16 << 20

// take empties the mailbox for the worker that holds it, up to the message whose entries exceed
// room; the first one comes always. left is what is left of room.
func (b *mailbox) take(room int) (msgs []message.Msg, ticks, left int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	msgs, ticks = b.mu.msgs, b.mu.ticks
	b.mu.msgs, b.mu.spare = b.mu.spare[:0], nil
	b.mu.commands, b.mu.rafts, b.mu.ticks, b.mu.urgent = 0, 0, 0, false
	n, left := fill(msgs, room)
	if n < len(msgs) {
		b.keep(msgs[n:])
	}
	return msgs[:n], ticks, left
}

// keep leaves messages for the next turn. The lock must be held, and the mailbox empty.
func (b *mailbox) keep(msgs []message.Msg) {
	b.mu.msgs = append(b.mu.msgs, msgs...)
	clear(msgs)
	b.mu.urgent = true
	for _, m := range b.mu.msgs {
		switch m.(type) {
		case *message.Write, *message.Read, *message.Admin:
			b.mu.commands++
		case *message.Raft:
			b.mu.rafts++
		}
	}
}

// fill tells how many of the messages, at least one of those that there are, bring entries of up to
// room bytes, and what is left of room.
func fill(msgs []message.Msg, room int) (n, left int) {
	for i, m := range msgs {
		size := entryBytes(m)
		if size > room && i > 0 {
			return i, 0
		}
		room = max(room-size, 0)
	}
	return len(msgs), room
}

// entryBytes is how much a message adds to the log, about.
func entryBytes(m message.Msg) (size int) {
	switch m := m.(type) {
	case *message.Write:
		return len(m.Payload)
	case *message.Raft:
		entries := m.Message.GetMessage().GetEntries()
		for i := range entries {
			size += len(entries[i].Data)
		}
	}
	return size
}

// rest ends a worker's hold. msgs is the slice that take returned; again asks for another turn,
// awaited for one as soon as there is a report.
func (b *mailbox) rest(msgs []message.Msg, again, awaited bool) (wake bool) {
	clear(msgs)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.spare == nil && cap(msgs) <= 1024 {
		b.mu.spare = msgs[:0]
	}
	b.mu.awaited = awaited
	b.mu.queued = !b.mu.closed && (again || b.due())
	return b.mu.queued
}

// readyQueue is an unbounded FIFO of mailboxes; each is in it at most once, so its length is
// bounded by the number of regions.
//
// The first worker takes all that waits: what comes while it syncs shares the next sync. The others
// help only when more waits than makes a good turn, because each turn of theirs costs a sync of its
// own, or when the first has been in one turn since the last tick: a sync that hangs must not hold
// up regions that have nothing to write.
type readyQueue struct {
	helpers int // workers besides the first
	mu      struct {
		sync.Mutex
		first, help *sync.Cond
		boxes       []*mailbox
		// turns counts what pop gave out; seen is the count of the last tick, stuck that nothing
		// was since.
		turns, seen uint64
		stuck       bool
		closed      bool
	}
}

func (q *readyQueue) init(helpers int) {
	q.helpers = helpers
	q.mu.first, q.mu.help = sync.NewCond(&q.mu), sync.NewCond(&q.mu)
}

// goodTurn is the number of regions beyond which sharing a sync saves little.
const goodTurn = 64

func (q *readyQueue) push(boxes ...*mailbox) {
	if len(boxes) == 0 {
		return
	}
	q.mu.Lock()
	q.mu.boxes = append(q.mu.boxes, boxes...)
	help := len(q.mu.boxes) > goodTurn
	q.mu.Unlock()
	q.mu.first.Signal()
	if help {
		q.mu.help.Signal()
	}
}

// pop waits for work and appends up to limit mailboxes to into; ok is false once the queue is
// closed. A share of a long queue is left for the others.
func (q *readyQueue) pop(into []*mailbox, limit int, helper bool) (boxes []*mailbox, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wake := q.mu.first
	if helper {
		wake = q.mu.help
	}
	for !q.wanted(helper) {
		wake.Wait()
		if q.mu.closed {
			break
		}
		// The sender that woke this worker did so with its first message. Goroutines that can run
		// beside it, of other requests, get to queue theirs first and share the turn; a lone one
		// loses nothing.
		q.mu.Unlock()
		runtime.Gosched()
		q.mu.Lock()
	}
	if q.mu.closed {
		return into, false
	}
	share := (len(q.mu.boxes) + q.helpers) / (q.helpers + 1)
	n := min(limit, len(q.mu.boxes), max(goodTurn, share))
	into = append(into, q.mu.boxes[:n]...)
	rest := copy(q.mu.boxes, q.mu.boxes[n:])
	clear(q.mu.boxes[rest:])
	q.mu.boxes = q.mu.boxes[:rest]
	q.mu.turns++
	q.mu.stuck = false
	if rest > goodTurn {
		q.mu.help.Signal()
	}
	return into, true
}

// wanted tells whether there is something to do for the first worker, or for a helper. The lock
// must be held.
func (q *readyQueue) wanted(helper bool) bool {
	n := len(q.mu.boxes)
	return q.mu.closed || n > goodTurn || n > 0 && (!helper || q.mu.stuck)
}

// unstick lets a helper take what has been waiting since the last call.
func (q *readyQueue) unstick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.stuck = q.mu.turns == q.mu.seen && len(q.mu.boxes) > 0
	q.mu.seen = q.mu.turns
	if q.mu.stuck {
		q.mu.help.Signal()
	}
}

func (q *readyQueue) close() {
	q.mu.Lock()
	q.mu.closed = true
	q.mu.Unlock()
	q.mu.first.Broadcast()
	q.mu.help.Broadcast()
}
