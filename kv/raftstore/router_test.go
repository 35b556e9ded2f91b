package raftstore

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestTicksPassAFullMailbox: clients and other stores can fill a mailbox, but ticks are a counter
// beside it and reports of the store itself are always taken (M4).
func TestTicksPassAFullMailbox(t *testing.T) {
	r := newRouter(10, 1)
	p := &peer{regionID: 1}
	p.box = &mailbox{regionID: 1, peer: p}
	require.True(t, r.register(p))
	require.False(t, r.register(p))
	var busy *regionerr.BusyError
	commands, rafts := 0, 0
	for ; ; commands++ {
		if err := r.send(1, &message.Write{Callback: message.NewCallback()}); err != nil {
			require.True(t, errors.As(err, &busy), "%v", err)
			break
		}
	}
	require.Equal(t, 10, commands)
	for ; ; rafts++ {
		if err := r.send(1, &message.Raft{Message: &rspb.RaftMessage{}}); err != nil {
			require.True(t, errors.As(err, &busy), "%v", err)
			break
		}
	}
	require.Equal(t, maxQueuedRaftMessages, rafts)
	require.EqualValues(t, 1, r.dropped.Load())
	for range 100 {
		r.tick(1, 0, func(int) bool { return false })
	}
	require.NoError(t, r.send(1, &message.Applied{}))
	boxes, ok := r.ready.pop(nil, 10, false)
	require.True(t, ok)
	require.Len(t, boxes, 1, "a mailbox waits in the queue once")
	msgs, ticks, _ := boxes[0].take(maxTurnBytes)
	require.Equal(t, 100, ticks)
	require.Len(t, msgs, commands+rafts+1)
	require.NoError(t, r.send(1, &message.Write{Callback: message.NewCallback()}),
		"an emptied mailbox takes commands again")
	require.True(t, boxes[0].rest(msgs, false, false))
	r.ready.push(boxes[0])
	boxes, _ = r.ready.pop(nil, 10, false)
	require.Len(t, boxes, 1, "what came meanwhile gets another turn")
	msgs, ticks, _ = boxes[0].take(maxTurnBytes)
	require.Len(t, msgs, 1)
	require.Zero(t, ticks)
}

func boxOf(t *testing.T, r *router, id uint64) *mailbox {
	t.Helper()
	p := &peer{regionID: id}
	p.box = &mailbox{regionID: id, peer: p}
	require.True(t, r.register(p))
	return p.box
}

// TestLargeEntriesTakeTurns: what does not fit into a turn waits for the next one, in order, and
// counts as waiting.
func TestLargeEntriesTakeTurns(t *testing.T) {
	r := newRouter(10, 1)
	b := boxOf(t, r, 1)
	write := func(size int) message.Msg {
		return &message.Write{Payload: make([]byte, size), Callback: message.NewCallback()}
	}
	raft := func(sizes ...int) message.Msg {
		m := &rspb.RaftMessage{Message: &eraftpb.Message{}}
		for _, n := range sizes {
			m.Message.Entries = append(m.Message.Entries, &eraftpb.Entry{Data: make([]byte, n)})
		}
		return &message.Raft{Message: m}
	}
	all := []message.Msg{
		write(60), raft(30, 10), &message.Applied{}, raft(1), write(300), write(0),
		&message.Applied{Quiet: true},
	}
	for _, m := range all {
		require.NoError(t, r.push(b, m))
	}
	r.tick(2, 0, func(int) bool { return false })
	var got []message.Msg
	for i, want := range []struct{ n, ticks, left int }{{3, 2, 0}, {1, 0, 0}, {3, 0, 0}} {
		boxes, _ := r.ready.pop(nil, 10, false)
		require.Equal(t, []*mailbox{b}, boxes)
		msgs, ticks, left := b.take(100)
		require.Len(t, msgs, want.n, "turn %d", i)
		require.Equal(t, want.ticks, ticks)
		require.Equal(t, want.left, left)
		got = append(got, msgs...)
		if b.rest(msgs, false, false) {
			r.ready.push(b)
		}
	}
	require.Equal(t, all, got)
	require.Empty(t, r.ready.mu.boxes)
	require.Zero(t, b.mu.commands)
	require.Zero(t, b.mu.rafts)

	for range 3 {
		require.NoError(t, r.push(b, write(200)))
	}
	msgs, _, _ := b.take(0)
	require.Len(t, msgs, 1, "the first one comes always")
	require.Equal(t, 2, b.mu.commands)
	msgs, _, left := b.take(500)
	require.Len(t, msgs, 2)
	require.Equal(t, 100, left)
}

// TestQuietReportsWaitForATurn: a report that nobody waits for gets no turn of its own, but is
// never left lying: the next message, the next tick, a peer that sleeps or one that waits for it
// sees to that.
func TestQuietReportsWaitForATurn(t *testing.T) {
	cases := map[string]struct {
		before, after func(r *router, b *mailbox)
		wakes         bool
	}{
		"nobody waits": {},
		"a message": {after: func(r *router, b *mailbox) {
			_ = r.push(b, &message.Write{})
		}, wakes: true},
		"a tick": {after: func(r *router, _ *mailbox) {
			r.tick(1, 0, func(int) bool { return false })
		}, wakes: true},
		"a sleeper": {before: func(_ *router, b *mailbox) {
			b.asleep.Store(true)
		}, wakes: true},
		"a waiting peer": {before: func(_ *router, b *mailbox) {
			b.rest(nil, false, true)
		}, wakes: true},
		"a peer that does not wait any more": {before: func(_ *router, b *mailbox) {
			b.rest(nil, false, true)
			b.rest(nil, false, false)
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRouter(10, 1)
			b := boxOf(t, r, 1)
			if c.before != nil {
				c.before(r, b)
			}
			require.NoError(t, r.push(b, &message.Applied{Quiet: true}))
			if c.after != nil {
				c.after(r, b)
			}
			require.Equal(t, c.wakes, len(r.ready.mu.boxes) == 1)
			msgs, _, _ := b.take(maxTurnBytes)
			require.IsType(t, &message.Applied{}, msgs[0], "in its place")
		})
	}
	t.Run("what came during a turn", func(t *testing.T) {
		r := newRouter(10, 1)
		b := boxOf(t, r, 1)
		require.NoError(t, r.push(b, &message.Start{}))
		msgs, _, _ := b.take(maxTurnBytes)
		require.NoError(t, r.push(b, &message.Applied{Quiet: true}))
		require.False(t, b.rest(msgs, false, false), "quiet")
		require.NoError(t, r.push(b, &message.Start{}))
		msgs, _, _ = b.take(maxTurnBytes)
		require.Len(t, msgs, 2)
		require.NoError(t, r.push(b, &message.Applied{Quiet: true}))
		require.True(t, b.rest(msgs, false, true), "the turn began to wait for it")
	})
}

// TestHelpersLeaveAGoodTurnToTheFirst: the first raft worker takes what waits, so that it shares a
// sync; others help with long queues, and when the first has not come back since the last tick.
func TestHelpersLeaveAGoodTurnToTheFirst(t *testing.T) {
	r := newRouter(10, 2)
	var boxes []*mailbox
	for id := range uint64(3*goodTurn + 1) {
		boxes = append(boxes, boxOf(t, r, id+1))
	}
	help := func() <-chan []*mailbox {
		got := make(chan []*mailbox, 1)
		go func() {
			taken, _ := r.ready.pop(nil, 256, true)
			got <- taken
		}()
		return got
	}
	first := func() []*mailbox {
		taken, ok := r.ready.pop(nil, 256, false)
		require.True(t, ok)
		return taken
	}

	r.ready.push(boxes[:goodTurn]...)
	require.Len(t, first(), goodTurn, "all of a good turn")

	r.ready.push(boxes...)
	require.Len(t, <-help(), goodTurn+goodTurn/2+1, "its share of a long queue")
	require.Len(t, first(), goodTurn)
	require.Len(t, first(), goodTurn/2)

	r.ready.push(boxes[0])
	r.ready.unstick()
	require.False(t, r.ready.mu.stuck, "the first worker may still come")
	helper := help()
	r.ready.unstick()
	require.Len(t, <-helper, 1, "the first worker has hung for a whole tick")

	helper = help()
	r.ready.close()
	require.Empty(t, <-helper)
}
