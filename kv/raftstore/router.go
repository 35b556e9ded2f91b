package raftstore

import (
	"sync"
	"sync/atomic"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// maxQueuedRaftMessages bounds the messages from other stores that wait in one mailbox: beyond it
// they are dropped, raft sends them again.
const maxQueuedRaftMessages = 4096

// mailbox is a region's queue of messages and its place in the ready queue. A region is held by at
// most one worker: queued is true from the moment the mailbox enters the ready queue until the worker
// that took it out puts it back or lets it rest.
//
// Client commands and raft messages are bounded; what the store itself sends (apply results, reports)
// is not dropped, its number is bounded by the work that causes it. Ticks are a counter.
type mailbox struct {
	regionID uint64
	// peer is touched only by the worker that holds the mailbox.
	peer *peer
	// handle is what readers on other goroutines may know.
	handle atomic.Pointer[readHandle]
	// asleep: the peer wants no ticks, except at duty (since the clock's base) if that is not 0.
	asleep  atomic.Bool
	dormant atomic.Bool // asleep since the start of the store (dormant.go)
	duty    atomic.Int64
	counted atomic.Bool // in router.awake
	// read is set by local reads, so that a region that is only read stays awake.
	read atomic.Bool

	mu struct {
		sync.Mutex
		msgs     []message.Msg
		spare    []message.Msg
		commands int
		rafts    int
		ticks    int
		queued   bool
		closed   bool
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

func newRouter(maxCommands int) *router {
	r := &router{maxCommands: maxCommands, stirred: make(chan struct{}, 1)}
	r.ready.mu.cond = sync.NewCond(&r.ready.mu)
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

// close takes a mailbox out of the map, refuses further messages, and returns what was still queued.
func (r *router) close(b *mailbox) []message.Msg {
	if r.boxes.CompareAndDelete(b.regionID, b) {
		r.count.Add(-1)
		r.noteAwake(b, false)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.closed = true
	left := b.mu.msgs
	b.mu.msgs = nil
	b.handle.Store(nil)
	return left
}

// send queues a message for a region. It never blocks. Errors: RegionNotFoundError, BusyError.
func (r *router) send(regionID uint64, m message.Msg) error {
	b := r.get(regionID)
	if b == nil {
		return &RegionNotFoundError{RegionID: regionID}
	}
	return r.push(b, m)
}

func (r *router) push(b *mailbox, m message.Msg) error {
	b.mu.Lock()
	if b.mu.closed {
		b.mu.Unlock()
		return &RegionNotFoundError{RegionID: b.regionID}
	}
	switch m.(type) {
	case *message.Write, *message.Read, *message.Admin:
		if b.mu.commands >= r.maxCommands {
			b.mu.Unlock()
			return &BusyError{Reason: "too many requests wait for this region"}
		}
		b.mu.commands++
	case *message.Raft:
		if b.mu.rafts >= maxQueuedRaftMessages {
			b.mu.Unlock()
			r.dropped.Add(1)
			return &BusyError{Reason: "too many raft messages wait for this region"}
		}
		b.mu.rafts++
	}
	b.mu.msgs = append(b.mu.msgs, m)
	wake := !b.mu.queued
	b.mu.queued = true
	b.mu.Unlock()
	if wake {
		r.ready.push(b)
	}
	return nil
}

// noteAwake counts a mailbox among those that want ticks, or not any more. Called by whoever holds the
// mailbox, or registers or closes it; a mailbox that is not registered does not count.
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

// tick adds ticks to every mailbox whose peer is awake or has a duty by now, a time since the clock's base.
func (r *router) tick(n int, now int64) {
	r.boxes.Range(func(_, v any) bool {
		b := v.(*mailbox)
		if b.asleep.Load() {
			if duty := b.duty.Load(); duty == 0 || now < duty {
				return true
			}
		}
		b.mu.Lock()
		wake := !b.mu.closed && !b.mu.queued
		b.mu.ticks += n
		if wake {
			b.mu.queued = true
		}
		b.mu.Unlock()
		if wake {
			r.ready.push(b)
		}
		return true
	})
}

// take empties the mailbox for the worker that holds it.
func (b *mailbox) take() (msgs []message.Msg, ticks int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	msgs, ticks = b.mu.msgs, b.mu.ticks
	b.mu.msgs, b.mu.spare = b.mu.spare[:0], nil
	b.mu.commands, b.mu.rafts, b.mu.ticks = 0, 0, 0
	return msgs, ticks
}

// rest ends a worker's hold. msgs is the slice that take returned; again asks for another turn.
func (r *router) rest(b *mailbox, msgs []message.Msg, again bool) {
	clear(msgs)
	b.mu.Lock()
	if b.mu.spare == nil && cap(msgs) <= 1024 {
		b.mu.spare = msgs[:0]
	}
	again = !b.mu.closed && (again || len(b.mu.msgs) > 0 || b.mu.ticks > 0)
	if !again {
		b.mu.queued = false
	}
	b.mu.Unlock()
	if again {
		r.ready.push(b)
	}
}

// readyQueue is an unbounded FIFO of mailboxes; each is in it at most once, so its length is bounded
// by the number of regions.
type readyQueue struct {
	mu struct {
		sync.Mutex
		cond   *sync.Cond
		boxes  []*mailbox
		closed bool
	}
}

func (q *readyQueue) push(b *mailbox) {
	q.mu.Lock()
	q.mu.boxes = append(q.mu.boxes, b)
	q.mu.Unlock()
	q.mu.cond.Signal()
}

// pop waits for work and appends up to limit mailboxes to into; ok is false once the queue is closed.
// With several workers a share is left for the others.
func (q *readyQueue) pop(into []*mailbox, limit, workers int) (boxes []*mailbox, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.mu.boxes) == 0 && !q.mu.closed {
		q.mu.cond.Wait()
	}
	if q.mu.closed {
		return into, false
	}
	n := min(limit, (len(q.mu.boxes)+workers-1)/workers)
	into = append(into, q.mu.boxes[:n]...)
	rest := copy(q.mu.boxes, q.mu.boxes[n:])
	clear(q.mu.boxes[rest:])
	q.mu.boxes = q.mu.boxes[:rest]
	if rest > 0 {
		q.mu.cond.Signal()
	}
	return into, true
}

func (q *readyQueue) close() {
	q.mu.Lock()
	q.mu.closed = true
	q.mu.Unlock()
	q.mu.cond.Broadcast()
}

// sendRaft routes a message from another store: to its region, or to the store worker if the region
// is not here.
func (s *Store) sendRaft(m *rspb.RaftMessage) error {
	err := s.router.send(m.RegionId, &message.Raft{Message: m})
	if _, missing := err.(*RegionNotFoundError); missing {
		return s.sendStore(storeRaft{m})
	}
	return err
}
