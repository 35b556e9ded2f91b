package raftstore

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestTicksPassAFullMailbox: clients and other stores can fill a mailbox, but ticks are a counter beside
// it and reports of the store itself are always taken (M4).
func TestTicksPassAFullMailbox(t *testing.T) {
	r := newRouter(10)
	p := &peer{regionID: 1}
	p.box = &mailbox{regionID: 1, peer: p}
	require.True(t, r.register(p))
	require.False(t, r.register(p))
	var busy *BusyError
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
		r.tick(1, 0)
	}
	require.NoError(t, r.send(1, &message.Applied{}))
	boxes, ok := r.ready.pop(nil, 10, 1)
	require.True(t, ok)
	require.Len(t, boxes, 1, "a mailbox waits in the queue once")
	msgs, ticks := boxes[0].take()
	require.Equal(t, 100, ticks)
	require.Len(t, msgs, commands+rafts+1)
	require.NoError(t, r.send(1, &message.Write{Callback: message.NewCallback()}), "an emptied mailbox takes commands again")
	r.rest(boxes[0], msgs, false)
	boxes, _ = r.ready.pop(nil, 10, 1)
	require.Len(t, boxes, 1, "what came meanwhile gets another turn")
	msgs, ticks = boxes[0].take()
	require.Len(t, msgs, 1)
	require.Zero(t, ticks)
}
