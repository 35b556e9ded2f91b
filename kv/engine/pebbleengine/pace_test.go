package pebbleengine

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
)

func TestPaceRate(t *testing.T) {
	for depth, want := range map[int]float64{
		0: calmRate, compactDepth: calmRate, compactDepth + 1: 2 * calmRate,
		hurryDepth - 1: 8 * calmRate,
		hurryDepth:     0, stopDepth: 0,
	} {
		require.Equal(t, want, paceRate(depth), "%d sublevels", depth)
	}
}

func TestOwe(t *testing.T) {
	const ms = time.Millisecond
	require.Equal(t, 1000*ms, owe(0, 0, calmRate, calmRate))
	require.Equal(t, 500*ms, owe(0, 0, calmRate, 2*calmRate))
	require.Equal(t, 3*ms, owe(2*ms, 9*ms, 10, 1000),
		"what is owed is kept, what the work took is let off")
	require.Zero(t, owe(2*ms, time.Second, 10, 1000), "slow work earns nothing for later")
}

// TestFlushRate: a flush takes its time while nothing waits for it, and only then.
func TestFlushRate(t *testing.T) {
	p := newPacer()
	require.Zero(t, p.flushRate(time.Now()), "the opening waits")
	p.db.Store(new(pebble.DB))
	for waiting, want := range map[int64]float64{
		0: calmRate, 1: calmRate, 2: 0, stallMemTables: 0,
	} {
		p.immutable.Store(waiting)
		require.Equal(t, want, p.flushRate(time.Now()), "%d memtables", waiting)
	}
}

// TestFlushIsPaced: at the calm rate if it is alone, without a pause if another memtable waits.
func TestFlushIsPaced(t *testing.T) {
	e, err := Open(engine.Options{Dir: t.TempDir()})
	require.NoError(t, err)
	d := e.(*db)
	defer d.Close()
	files := pacedFS{vfs.NewMem(), d.pacer}
	f, err := files.Create("table", flushCategory)
	require.NoError(t, err)
	defer f.Close()
	p := f.(*pacedFile)
	began := time.Now()
	p.since = began
	const size = calmRate / 100 // ten milliseconds
	_, err = f.Write(make([]byte, size))
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), 10*time.Millisecond)
	d.pacer.immutable.Store(2)
	p.owed = time.Hour
	_, err = f.Write(make([]byte, 1<<10))
	require.NoError(t, err)
	require.Zero(t, p.owed)
}

// TestPacedFile: only what compactions and flushes write is paced, and Close does not wait for what
// is owed.
func TestPacedFile(t *testing.T) {
	e, err := Open(engine.Options{Dir: t.TempDir()})
	require.NoError(t, err)
	d := e.(*db)
	defer d.Close()
	files := pacedFS{vfs.NewMem(), d.pacer}
	for _, category := range []vfs.DiskWriteCategory{"pebble-wal", vfs.WriteCategoryUnspecified} {
		f, err := files.Create("other", category)
		require.NoError(t, err)
		_, paced := f.(*pacedFile)
		require.False(t, paced, category)
		require.NoError(t, f.Close())
	}
	f, err := files.Create("table", compactionCategory)
	require.NoError(t, err)
	defer f.Close()
	p := f.(*pacedFile)

	d.pacer.mu.Lock()
	// the depth is known: Close may come before the write
	d.pacer.looked = time.Now().Add(time.Hour)
	d.pacer.mu.Unlock()

	// A minute of pause is cut short when the engine closes.
	done := make(chan struct{})
	go func() { // ends with the pause
		defer close(done)
		p.owed = time.Minute
		_, _ = f.Write(make([]byte, 100))
	}()
	require.NoError(t, d.Close())
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the compaction is still in its pause")
	}
}
