package pebbleengine

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
)

// heldFlushes lets no flush begin its file before release is closed.
type heldFlushes struct {
	vfs.FS
	release chan struct{}
}

func (fs heldFlushes) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if category == "pebble-memtable-flush" {
		<-fs.release
	}
	return fs.FS.Create(name, category)
}

// TestStats: what is written is counted where it goes, and a write that waits for a flush as a
// stall.
func TestStats(t *testing.T) {
	files := heldFlushes{vfs.NewMem(), make(chan struct{})}
	const memTable = 256 << 10
	e, err := OpenFS(engine.Options{Dir: "engine", MemTableBytes: memTable}, files)
	require.NoError(t, err)
	r := e.(engine.Reporter)
	empty := r.Stats()
	require.Zero(t, empty.FlushedBytes)
	require.Zero(t, empty.WriteStalls)

	value := make([]byte, 8<<10) // random: compression must not hide it
	_, _ = rand.Read(value)
	written := make(chan error, 1)
	const writes = 10 * memTable / (8 << 10)
	go func() { // ends when all is written, at the latest with Close
		b := e.NewBatch()
		for i := range writes {
			b.Reset()
			b.Put(engine.DataKey(engine.CFDefault, fmt.Appendf(nil, "%06d", i)), value)
			if err := e.Write(b, false); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	require.Eventually(t, func() bool {
		return r.Stats().WriteStalls == 1
	}, 20*time.Second, time.Millisecond)
	s := r.Stats()
	require.GreaterOrEqual(t, s.MemTables, uint64(stallMemTables))
	require.Zero(t, s.StallTime, "it is not over")
	require.Zero(t, s.FlushedBytes)
	require.Empty(t, written)

	close(files.release)
	require.NoError(t, <-written)
	// All but the last tables are flushed in the end.
	require.Eventually(t, func() bool {
		return r.Stats().FlushedBytes > uint64(writes/2*len(value))
	}, 20*time.Second, time.Millisecond)
	s = r.Stats()
	require.Positive(t, s.StallTime)
	require.Greater(t, s.LogBytes, uint64(writes*len(value)))
	require.Positive(t, s.MemTableBytes)
	require.NoError(t, e.Close())
	require.Zero(t, r.Stats(), "of a closed engine")
}
