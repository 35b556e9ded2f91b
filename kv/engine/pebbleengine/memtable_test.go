package pebbleengine

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
)

func TestTargetSize(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ least, limit, data, want int64 }{
		{12 * mib, 64 * mib, 0, 12 * mib},
		{12 * mib, 64 * mib, dataOfLeast, 12 * mib},
		{12 * mib, 64 * mib, 2 * dataOfLeast, 24 * mib},
		{12 * mib, 64 * mib, 1 << 30, math.MaxInt64},
		{12 * mib, 12 * mib, 1 << 30, math.MaxInt64},
		{12 * mib, 64 * mib, math.MaxInt64, math.MaxInt64},
	} {
		require.Equal(t, c.want, targetSize(c.least, c.limit, c.data), "%+v", c)
	}
}

// flushes writes so many MiB in batches of 16 KiB and returns how many memtables were begun
// meanwhile. Each one, its successors and what is read afterwards is as if nothing had been flushed
// early.
func flushes(t *testing.T, opts engine.Options, mib int) int {
	opts.Dir = "d"
	fs := vfs.NewMem()
	eng, err := OpenFS(opts, fs)
	require.NoError(t, err)
	rnd := rand.New(rand.NewPCG(1, 2))
	value := make([]byte, 16<<10)
	for i := range value {
		value[i] = byte(rnd.Uint32())
	}
	key := func(i int) []byte { return binary.BigEndian.AppendUint64([]byte("k"), uint64(i)) }
	begun, used := 0, int64(0)
	d := eng.(*db)
	for i := range mib * 64 {
		// else the memtable takes what comes
		if d.pacer.immutable.Load() >= nearStall && d.room.size.Load() >= d.room.limit {
			require.Eventually(t, func() bool {
				return d.pacer.immutable.Load() < nearStall
			}, time.Minute, time.Millisecond)
		}
		b := eng.NewBatch()
		b.Put(key(i), value)
		require.NoError(t, eng.Write(b, false))
		now := d.room.used.Load()
		if now < used {
			begun++
		}
		used = now
	}
	for i := range mib * 64 {
		v, found, err := eng.Get(key(i))
		require.NoError(t, err)
		require.True(t, found)
		require.Len(t, v, len(value))
	}
	require.NoError(t, eng.Close())
	return begun
}

// TestSmallStoresFlushEarly: with little data memtables are flushed at their least size, and with
// none given when they are full.
func TestSmallStoresFlushEarly(t *testing.T) {
	const mib = 24
	early := flushes(t, engine.Options{MemTableBytes: 16 << 20, LeastMemTableBytes: 1 << 20}, mib)
	late := flushes(t, engine.Options{MemTableBytes: 16 << 20}, mib)
	require.GreaterOrEqual(t, early, mib-6, "the first ones are smaller")
	require.LessOrEqual(t, early, mib+6)
	require.Less(t, late, 8)
}
