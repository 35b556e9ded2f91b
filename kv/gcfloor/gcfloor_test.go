package gcfloor

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		floor, live, scanned uint64
		want                 int
	}{
		{24, 3, 3, 700}, {24, 3, 6, 350}, {24, 8, 8, 200}, {24, 12, 12, 100}, {24, 20, 20, 100}, {24, 40, 40, 100},
		{1 << 40, 1, 1, most}, {24, 0, 0, normal},
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
	f := Set(floor)
	runtime.GC()
	with := churn(garbage)
	t.Logf("%d cycles without a floor, %d with", without, with)
	require.Less(t, with, uint64(2*garbage/floor), "one cycle for each floor of garbage, and some until it has settled")
	require.Greater(t, without, 2*with)

	// A large heap doubles as ever.
	held := make([][]byte, 128)
	for i := range held {
		held[i] = make([]byte, 1<<20)
	}
	for i := 0; i < 100; i++ {
		runtime.GC()
		f.mu.Lock()
		p := f.percent
		f.mu.Unlock()
		if p == normal {
			break
		}
		require.Less(t, i, 99, "still %d", p)
	}
	runtime.KeepAlive(held)
	f.Stop()
	require.Equal(t, normal, debug.SetGCPercent(normal))
}

func TestChosen(t *testing.T) {
	t.Setenv("GOGC", "50")
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	f := Set(1 << 30)
	require.Equal(t, 50, debug.SetGCPercent(50))
	f.Stop()
	require.Equal(t, 50, debug.SetGCPercent(50))
}
