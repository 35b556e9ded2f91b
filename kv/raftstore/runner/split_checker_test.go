package runner

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// gauged is an engine that takes as much room as the test says, and counts how often it is read.
type gauged struct {
	engine.Engine
	disk, memory uint64
	snapshots    int
}

func (g *gauged) ApproximateSize(start, _ []byte) (uint64, error) {
	if string(start) == string(engine.DataKey(engine.CFs[0], nil)) {
		return g.disk, nil
	}
	return 0, nil
}

func (g *gauged) Stats() engine.Stats { return engine.Stats{MemTableBytes: g.memory} }

func (g *gauged) NewSnapshot() engine.Snapshot {
	g.snapshots++
	return g.Engine.NewSnapshot()
}

const (
	splitSize = 1000
	maxSize   = 1500
	pairs     = 60 // of 10 bytes
)

func newGauged(t *testing.T) *gauged {
	t.Helper()
	g := &gauged{Engine: memengine.New()}
	t.Cleanup(func() { _ = g.Close() })
	b := g.NewBatch()
	for i := range pairs {
		b.Put(engine.DataKey(engine.CFs[0], fmt.Appendf(nil, "%05d", i)), []byte("value"))
	}
	require.NoError(t, g.Write(b, false))
	return g
}

// check has the region checked once.
func check(t *testing.T, e engine.Engine, task Check) *message.SplitChecked {
	t.Helper()
	var got *message.SplitChecked
	c := NewSplitChecker(e, splitSize, maxSize, func(id uint64, m message.Msg) error {
		require.EqualValues(t, 7, id)
		got = m.(*message.SplitChecked)
		return nil
	})
	task.Region, task.RegionID = &metapb.Region{Id: 7}, 7
	require.True(t, c.Check(task))
	c.handle(<-c.queue)
	require.NoError(t, got.Err)
	return got
}

// TestOverwritesAreNotCountedAgain: what looks like growth but takes no room on disk is not read
// again.
func TestOverwritesAreNotCountedAgain(t *testing.T) {
	g := newGauged(t)
	g.disk, g.memory = 500, 100
	first := check(t, g, Check{Guess: message.RegionSize{Size: 1}, Fits: true})
	have := message.RegionSize{Size: pairs * 10, Keys: pairs}
	require.Equal(t, have, first.RegionSize)
	require.Equal(t, message.Counted{RegionSize: have, Disk: 500, Memory: 100}, first.Counted)
	require.Equal(t, 1, g.snapshots)

	guess := message.RegionSize{Size: 6000, Keys: 600}
	for _, c := range []struct {
		disk, memory uint64
		want         message.RegionSize
		counted      bool
		why          string
	}{
		{500, 100, have, false, "nothing has grown"},
		{300, 50, have, false, "a compaction is no deletion"},
		{800, 100, message.RegionSize{Size: 900, Keys: 90}, false, "half as much again"},
		{1200, 150, have, true, "at 600 bytes for 500 on disk that may be all of maxSize"},
		{500, 800, have, true, "so may be what is in memory"},
	} {
		g.disk, g.memory, g.snapshots = c.disk, c.memory, 0
		got := check(t, g, Check{Guess: guess, Last: first.Counted})
		require.Equal(t, c.want, got.RegionSize, c.why)
		require.Equal(t, c.counted, got.Counted != message.Counted{}, c.why)
		require.Equal(t, c.counted, g.snapshots > 0, c.why)

		g.snapshots = 0
		got = check(t, g, Check{Guess: guess, Last: first.Counted, Fits: true})
		require.Zero(t, got.Counted, "it need not be counted")
		require.Zero(t, g.snapshots)
		require.LessOrEqual(t, got.Size, guess.Size)
		require.GreaterOrEqual(t, got.Size, have.Size)
	}

	g.disk, g.memory = 800, 100
	small := message.RegionSize{Size: 20, Keys: 2}
	require.Equal(t, small, check(t, g, Check{Guess: small, Last: first.Counted}).RegionSize,
		"no more than what was written comes to: keys were deleted")
}

// TestCountsWhatIsNotKnown: without an earlier count, with none of anything on disk, and on engines
// that do not tell what they have in memory.
func TestCountsWhatIsNotKnown(t *testing.T) {
	g := newGauged(t)
	guess := message.RegionSize{Size: 600, Keys: 60}
	counted := message.Counted{RegionSize: guess, Disk: 500}
	g.disk = 500
	check(t, g, Check{Guess: guess, Fits: true})
	check(t, g, Check{Guess: guess, Last: message.Counted{RegionSize: guess, Memory: 600}})
	require.Equal(t, 2, g.snapshots)
	check(t, g, Check{Guess: guess, Last: counted})
	require.Equal(t, 2, g.snapshots)

	mute := struct{ engine.Engine }{g}
	got := check(t, mute, Check{Guess: guess, Last: counted})
	require.Equal(t, 3, g.snapshots)
	require.Equal(t, message.Counted{RegionSize: guess}, got.Counted)
	more := message.RegionSize{Size: 700, Keys: 70}
	require.Equal(t, more,
		check(t, mute, Check{Guess: more, Last: got.Counted, Fits: true}).RegionSize)
	require.Equal(t, 3, g.snapshots)
}

// TestTooBigIsCountedAndSplit: the key comes with the count.
func TestTooBigIsCountedAndSplit(t *testing.T) {
	g := newGauged(t)
	b := g.NewBatch()
	for i := range 200 {
		b.Put(engine.DataKey(engine.CFs[0], fmt.Appendf(nil, "%05d", 100+i)), []byte("value"))
	}
	require.NoError(t, g.Write(b, false))
	g.disk = 2600
	got := check(t, g,
		Check{
			Guess: message.RegionSize{Size: 2600, Keys: 260},
			Last:  message.Counted{RegionSize: message.RegionSize{Size: 600, Keys: 60}, Disk: 600},
		})
	require.EqualValues(t, 2600, got.Size)
	require.Equal(t, "00140", string(got.SplitKey))
}

// TestCheckEnds: what waits when the store stops is answered, so that nobody waits for it.
func TestCheckEnds(t *testing.T) {
	c := NewSplitChecker(newGauged(t), splitSize, maxSize, func(uint64, message.Msg) error {
		return nil
	})
	answered := false
	c.Middle(&metapb.Region{Id: 7, StartKey: []byte("z")}, func(key []byte, err error) {
		answered = key == nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Run(ctx)
	require.True(t, answered)
}
