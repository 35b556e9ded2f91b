package raftstore

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// handRun is a store whose workers are run by hand, one after the other, with regions that have no
// other replica: the way of a write through mailbox, raft, raft log and state machine without the
// network, the disk and the changes of goroutines.
type handRun struct {
	t       testing.TB
	s       *Store
	raft    *raftWorker
	regions []*metapb.Region
	value   []byte
	next    uint64
	boxes   []*mailbox
}

func newHandRun(t testing.TB, regions int) *handRun {
	h := &handRun{t: t, value: make([]byte, 256)}
	for i := range regions {
		start, end := fmt.Sprintf("%04d", i), fmt.Sprintf("%04d", i+1)
		h.regions = append(h.regions, region(uint64(i+1), start, end, 1, 1, voter(uint64(i+1), 1)))
	}
	h.s, _ = newTestStore(t, h.regions...)
	t.Cleanup(h.s.Stop)
	require.NoError(t, (&recovery{h.s}).run())
	h.raft = newRaftWorker(h.s, 0)
	h.settle()
	return h
}

// settle runs turns until nothing is left to do.
func (h *handRun) settle() {
	for applied := true; applied || len(h.s.router.ready.mu.boxes) > 0; {
		if len(h.s.router.ready.mu.boxes) > 0 {
			h.boxes, _ = h.s.router.ready.pop(h.boxes[:0], 256, false)
			require.NoError(h.t, h.raft.runTurn(h.boxes))
		}
		var err error
		applied, err = h.s.appliers[0].RunQueued()
		require.NoError(h.t, err)
	}
}

// writes is one write to each of n keys, spread over the regions, carried out together.
func (h *handRun) writes(n int) {
	last := make([]*message.Callback, 0, 1)
	for i := range n {
		r := h.regions[i%len(h.regions)]
		key := binary.BigEndian.AppendUint64(append(make([]byte, 0, 16), r.StartKey...),
			h.next%1000)
		h.next++
		w := &message.Write{
			Header: message.Header{RegionID: r.Id, Peer: r.Peers[0], Epoch: r.RegionEpoch},
			MinKey: key, MaxKey: key, Callback: message.NewCallback(),
			Payload: message.AppendPut(make([]byte, 0, 320), "default", key, h.value),
		}
		h.s.Write(w)
		last = append(last[:0], w.Callback)
	}
	h.settle()
	require.True(h.t, last[0].Answered())
	if h.next%4096 < uint64(n) {
		h.compact()
	}
}

// compact keeps the raft log short, as log GC would.
func (h *handRun) compact() {
	for _, r := range h.regions {
		p := h.s.router.get(r.Id).peer
		p.compact.propose()
		require.NoError(h.t, h.s.router.push(p.box, &message.Start{}))
	}
	h.settle()
}

var writeCases = []struct {
	regions, writes int
	allocs          float64 // per write, as measured with Go 1.26
}{
	{1, 1, 28}, {1, 16, 9}, {1, 64, 8}, {32, 32, 19}, {32, 128, 11},
}

// BenchmarkWrite is the CPU of a store for writes that are carried out together; the figures are
// for one.
func BenchmarkWrite(b *testing.B) {
	for _, c := range writeCases {
		b.Run(fmt.Sprintf("regions=%d/writes=%d", c.regions, c.writes), func(b *testing.B) {
			h := newHandRun(b, c.regions)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += c.writes {
				h.writes(c.writes)
			}
		})
	}
}

// TestAllocationsOfAWrite bounds what a write allocates on its way through the store: its message,
// the entry, and its share of what a turn of its region needs.
func TestAllocationsOfAWrite(t *testing.T) {
	for _, c := range writeCases {
		h := newHandRun(t, c.regions)
		got := testing.AllocsPerRun(200, func() { h.writes(c.writes) }) / float64(c.writes)
		require.LessOrEqual(t, got, c.allocs, "%d writes to %d regions", c.writes, c.regions)
	}
}
