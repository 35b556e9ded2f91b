package core_test

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// benchRegions is 1M without -short, as the figures in docs/scheduler.md.
func benchRegions() int {
	if testing.Short() {
		return 100_000
	}
	return 1_000_000
}

func benchKey(i, n int) []byte {
	if i == 0 || i == n {
		return nil
	}
	key := make([]byte, 24)
	binary.BigEndian.PutUint64(key, uint64(i))
	return key
}

func benchHeartbeat(i, n int) *schedulerpb.RegionHeartbeatRequest {
	m := &metapb.Region{
		Id: uint64(i + 1), StartKey: benchKey(i, n), EndKey: benchKey(i+1, n),
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
	for j := range 3 {
		m.Peers = append(m.Peers,
			&metapb.Peer{Id: uint64(3*i + j + 1), StoreId: uint64((i+j*7)%100 + 1)})
	}
	return &schedulerpb.RegionHeartbeatRequest{
		Region: m, Leader: m.Peers[i%3], ApproximateSize: 96 << 20, Term: 6,
	}
}

func filled(b *testing.B) (*core.BasicCluster, int) {
	b.Helper()
	n := benchRegions()
	c := core.NewBasicCluster()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(n) {
		if _, err := c.PutRegion(core.RegionFromHeartbeat(benchHeartbeat(i, n))); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Logf("%d regions, %.0f B of heap each", n,
		float64(after.HeapAlloc-before.HeapAlloc)/float64(n))
	return c, n
}

func BenchmarkMap(b *testing.B) {
	c, n := filled(b)
	run := func(name string, do func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			do(b)
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := after.Utime.Nano() +
				after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(b.N)/(float64(cpu)/1e9), "op/core-s")
		})
	}
	run("unchanged", func(b *testing.B) {
		// The request is at hand, as one just received is; the record is any of all.
		hb, rng := benchHeartbeat(1, n), rand.New(rand.NewPCG(2, 2))
		b.ResetTimer()
		for range b.N {
			i := 1 + rng.IntN(n-2)
			m := hb.Region
			m.Id = uint64(i + 1)
			binary.BigEndian.PutUint64(m.StartKey, uint64(i))
			binary.BigEndian.PutUint64(m.EndKey, uint64(i+1))
			for j, p := range m.Peers {
				p.Id, p.StoreId = uint64(3*i+j+1), uint64((i+j*7)%100+1)
			}
			hb.Leader = m.Peers[i%3]
			if !c.Region(m.Id).Unchanged(hb) {
				b.Fatal("changed")
			}
		}
	})
	rng := rand.New(rand.NewPCG(3, 3))
	run("size", func(b *testing.B) {
		for i := range b.N {
			r := c.Region(uint64(rng.IntN(n) + 1)).Clone(core.WithSize(int64(i%200 + 1)))
			if _, err := c.PutRegion(r); err != nil {
				b.Fatal(err)
			}
		}
	})
	run("leader", func(b *testing.B) {
		for range b.N {
			old := c.Region(uint64(rng.IntN(n) + 1))
			r := old.Clone(core.WithLeaderStore(old.Peers()[rng.IntN(3)].StoreID))
			if _, err := c.PutRegion(r); err != nil {
				b.Fatal(err)
			}
		}
	})
	run("lookup", func(b *testing.B) {
		for range b.N {
			if c.RegionByKey(benchKey(rng.IntN(n), n)) == nil {
				b.Fatal("none")
			}
		}
	})
}

// TestAllocationsOfTheMap: what every heartbeat and every question for a region asks of the map.
func TestAllocationsOfTheMap(t *testing.T) {
	const n = 1000
	c := core.NewBasicCluster()
	var hbs []*schedulerpb.RegionHeartbeatRequest
	var keys [][]byte
	for i := range n {
		hbs = append(hbs, benchHeartbeat(i, n))
		keys = append(keys,
			append(binary.BigEndian.AppendUint64(nil, uint64(i)), make([]byte, 17)...))
		_, err := c.PutRegion(core.RegionFromHeartbeat(hbs[i]))
		require.NoError(t, err)
	}
	i := 0
	next := func() int { i++; return i % n }
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		i := next()
		require.True(t, c.Region(uint64(i+1)).Unchanged(hbs[i]))
	}), 0.0, "an unchanged heartbeat")
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		i := next()
		require.True(t, c.RegionByKey(keys[i]) != nil)
	}), 0.0, "a lookup by key")
}
