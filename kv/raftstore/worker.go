package raftstore

import (
	"fmt"
	"runtime"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// raftWorker is one goroutine that runs regions. In one turn it takes up to TurnRegions ready
// regions and carries all of them through the same steps, so that they share one raft-log write
// with one sync, one message batch per remote store, and one hand-off to each apply worker:
//
//  1. per region: messages, then ticks, then the raft Ready
//  2. send what may leave before the sync: a leader's appends (thesis 10.2.1; its own vote for the
//     entries counts only after step 3); hand committed entries that earlier turns have synced to the
//     apply workers
//  3. engine batch (accepted raft snapshots only, synced), then the raft-log batch, synced if any
//     Ready demands it
//  4. send the rest: votes and answers promise what is on disk now
//  5. hand the other committed entries to the apply workers, Advance
//
// It never waits for the network, the placement service, a raft snapshot or a full queue. Which
// worker takes what is up to the readyQueue.
type raftWorker struct {
	store *Store
	id    int
	turn  turn
}

// turn gathers what the regions of one turn want done.
type turn struct {
	log    raftlog.Batch
	sync   bool
	synced time.Duration // when log was written, as the store's age
	states engine.Batch
	out    map[uint64][]*rspb.RaftMessage
	room   []rspb.RaftMessage // for messages
	ready  []*peer
	apply  [][]apply.Task
	// ends are destructions. They begin after the turn's writes: one of those may be about the same
	// region, whose raft log a destruction deletes.
	ends []apply.Task
	// held remembers the messages of each mailbox, to give the slice back.
	held [][]message.Msg
	// again are the mailboxes that want another turn.
	again []*mailbox
}

// messageChunk is how many messages are allocated at once. A chunk lives as long as one of its
// messages.
const messageChunk = 16

func newRaftWorker(s *Store, id int) *raftWorker {
	w := &raftWorker{store: s, id: id}
	w.turn.out = map[uint64][]*rspb.RaftMessage{}
	w.turn.apply = make([][]apply.Task, len(s.appliers))
	w.turn.states = s.engine.NewBatch()
	return w
}

func (w *raftWorker) run() {
	cfg := &w.store.cfg.Raftstore
	var boxes []*mailbox
	for {
		var ok bool
		boxes, ok = w.store.router.ready.pop(boxes[:0], cfg.TurnRegions, w.id > 0)
		if !ok {
			return
		}
		if err := w.runTurn(boxes); err != nil {
			w.store.fail(err)
			return
		}
		clear(boxes)
	}
}

func (w *raftWorker) runTurn(boxes []*mailbox) error {
	t := &w.turn
	t.held = t.held[:0]
	room := maxTurnBytes
	for _, b := range boxes {
		msgs, ticks, left := b.take(room)
		room = left
		t.held = append(t.held, msgs)
		p := b.peer
		p.handleMessages(t, msgs)
		p.handleTicks(t, ticks)
		if p.collectReady(t) {
			t.ready = append(t.ready, p)
		}
	}
	sent := w.flushMessages()
	w.flushApply()
	if sent && !t.log.Empty() {
		// What could run beside it, requests and what the transport has left to others to send,
		// would else wait until the sync has given its processor away.
		runtime.Gosched()
	}
	if err := w.persist(); err != nil {
		return err
	}
	for _, p := range t.ready {
		p.afterPersist(t)
	}
	w.flushMessages()
	for _, task := range t.ends {
		t.addApply(w.store.appliers.of(task.RegionID), task)
	}
	clear(t.ends)
	t.ends = t.ends[:0]
	w.flushApply()
	for i, b := range boxes {
		if b.rest(t.held[i], b.peer.wantsTurn(), b.peer.awaitsApplied()) {
			t.again = append(t.again, b)
		}
	}
	w.store.router.ready.push(t.again...)
	clear(t.again)
	t.again = t.again[:0]
	clear(t.ready)
	t.ready = t.ready[:0]
	w.store.work.turns.Add(1)
	w.store.work.turnRegions.Add(uint64(len(boxes)))
	return nil
}

// persist makes the turn durable. The state Applying of an accepted raft snapshot comes first: a
// crash in between is found at start and the log is reset then (see recoverPeer).
func (w *raftWorker) persist() error {
	t := &w.turn
	if t.states.Len() > 0 {
		if err := w.store.engine.Write(t.states, true); err != nil {
			return fmt.Errorf("persist accepted raft snapshots: %w", err)
		}
		t.states.Reset()
	}
	if !t.log.Empty() {
		if err := w.store.log.Write(&t.log, t.sync); err != nil {
			return fmt.Errorf("persist raft log: %w", err)
		}
		t.synced = w.store.age()
	}
	t.log.Clear()
	t.sync = false
	return nil
}

// flushMessages hands the turn's messages over and tells whether there were any.
func (w *raftWorker) flushMessages() (sent bool) {
	for store, msgs := range w.turn.out {
		if len(msgs) > 0 {
			sent = true
			for _, m := range msgs {
				m.Incarnation = w.store.incarnation
			}
			w.store.trans.Send(store, msgs)
			// The transport owns the slice now.
			w.turn.out[store] = nil
		}
	}
	return sent
}

func (w *raftWorker) flushApply() {
	for i, tasks := range w.turn.apply {
		if len(tasks) > 0 {
			w.store.appliers[i].Push(tasks...)
			w.turn.apply[i] = tasks[:0]
			clear(tasks)
		}
	}
}

func (t *turn) addApply(worker int, task apply.Task) {
	t.apply[worker] = append(t.apply[worker], task)
}

// newMessage returns room for a message. Messages lie in chunks, to be allocated together.
func (t *turn) newMessage() *rspb.RaftMessage {
	if len(t.room) == 0 {
		t.room = make([]rspb.RaftMessage, messageChunk)
	}
	m := &t.room[0]
	t.room = t.room[1:]
	return m
}

func (t *turn) send(storeID uint64, m *rspb.RaftMessage) {
	t.out[storeID] = append(t.out[storeID], m)
}
