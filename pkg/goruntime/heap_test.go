package goruntime

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPercent(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		floor, live, scanned uint64
		want                 int
	}{
		{24 * mib, 6 * mib, 6 * mib, 300}, {24 * mib, 4 * mib, 8 * mib, 250},
		{24 * mib, 8 * mib, 8 * mib, 200},
		{24 * mib, 12 * mib, 12 * mib, 100}, {24 * mib, 20 * mib, 20 * mib, 100},
		{24 * mib, 40 * mib, 40 * mib, 100}, {24 * mib, 85 * mib, 90 * mib, 100},
		{24 * mib, 128 * mib, 130 * mib, 75}, {24 * mib, 256 * mib, 260 * mib, 50},
		{24 * mib, 1024 * mib, 1030 * mib, 31},
		{24 * mib, 1, 1, 600}, {24 * mib, 0, 0, 100}, {2 * mib, 1, 1, 100},
	} {
		require.Equal(t, c.want, percent(c.floor, c.live, c.scanned), "%+v", c)
	}
}

var sink []byte

// churn throws n bytes away and returns how many cycles began meanwhile.
func churn(n int) uint64 {
	s := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}}
	metrics.Read(s)
	before := s[0].Value.Uint64()
	for range n / 4096 {
		sink = make([]byte, 4096)
	}
	metrics.Read(s)
	return s[0].Value.Uint64() - before
}

func TestFloor(t *testing.T) {
	t.Setenv("GOGC", "")
	const floor, garbage = 64 << 20, 1 << 30
	defer debug.SetGCPercent(debug.SetGCPercent(normal))
	without := churn(garbage)
	f := SetHeapFloor(floor)
	runtime.GC()
	with := churn(garbage)
	t.Logf("%d cycles without a floor, %d with", without, with)
	require.Less(t, with, uint64(2*garbage/floor),
		"one cycle for each floor of garbage, and some until it has settled")
	require.Greater(t, without, 2*with)

	// A heap beyond the floor doubles; a large one grows by less.
	for _, c := range []struct{ mib, low, high int }{{70, normal, normal}, {256, 40, 60}} {
		held := make([][]byte, c.mib)
		for i := range held {
			held[i] = make([]byte, 1<<20)
		}
		for i := 0; i < 100; i++ {
			runtime.GC()
			f.mu.Lock()
			p := f.percent
			f.mu.Unlock()
			if p >= c.low && p <= c.high {
				break
			}
			require.Less(t, i, 99, "still %d with %d MiB", p, c.mib)
		}
		runtime.KeepAlive(held)
	}
	f.Stop()
	require.Equal(t, normal, debug.SetGCPercent(normal))
}

func TestChosen(t *testing.T) {
	t.Setenv("GOGC", "50")
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	f := SetHeapFloor(1 << 30)
	require.Equal(t, 50, debug.SetGCPercent(50))
	f.Stop()
	require.Equal(t, 50, debug.SetGCPercent(50))
}
