package server_test

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

const benchCount = 20_000

func benchCluster(b *testing.B) (*server.Server, *client.Client) {
	b.Helper()
	s := servertest.StartTest(b)
	c, err := client.New(b.Context(), []string{s.ClientURL()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	if err := c.Bootstrap(b.Context(), &metapb.Store{Id: 1, Address: "s1"}, nil); err != nil {
		b.Fatal(err)
	}
	return s, c
}

func benchRequest(s *server.Server, i int) *schedulerpb.RegionHeartbeatRequest {
	key := func(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }
	m := &metapb.Region{
		Id: uint64(i + 1), StartKey: key(i), EndKey: key(i + 1), RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peers: []*metapb.Peer{{Id: uint64(3*i + 1), StoreId: 1}, {Id: uint64(3*i + 2), StoreId: 2}, {Id: uint64(3*i + 3), StoreId: 3}},
	}
	return &schedulerpb.RegionHeartbeatRequest{
		Header: &schedulerpb.RequestHeader{ClusterId: s.ClusterID()}, Region: m, Leader: m.Peers[0],
		ApproximateSize: 96 << 20, Term: 6,
	}
}

// BenchmarkHeartbeats sends heartbeats over four streams, a tenth of them with a new size. Client and
// server share the machine.
func BenchmarkHeartbeats(b *testing.B) {
	s, _ := benchCluster(b)
	const streams = 4
	var wg sync.WaitGroup
	stats := func() uint64 { return s.Cluster().Heartbeats() }
	before := stats()
	perStream := b.N/streams + 1
	b.ResetTimer()
	for g := range streams {
		wg.Add(1)
		go func() {
			defer wg.Done()
			stream, err := servertest.DirectClient(b, s.ClientAddr()).RegionHeartbeat(b.Context())
			if err != nil {
				b.Error(err)
				return
			}
			reqs := make([]*schedulerpb.RegionHeartbeatRequest, benchCount/streams)
			for i := range reqs {
				reqs[i] = benchRequest(s, i*streams+g)
			}
			for i := range perStream {
				req := reqs[i%len(reqs)]
				if i%10 == 0 {
					req.ApproximateSize += 1 << 20
				}
				if err := stream.Send(req); err != nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	for end := time.Now().Add(time.Minute); stats()-before < uint64(perStream*streams) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(perStream*streams)/b.Elapsed().Seconds(), "heartbeats/s")
}

// BenchmarkTSO has 512 callers share batched requests.
func BenchmarkTSO(b *testing.B) {
	_, c := benchCluster(b)
	b.SetParallelism(256)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, _, err := c.GetTS(b.Context()); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ts/s")
}

// BenchmarkGetRegion looks regions up by gRPC with 32 callers.
func BenchmarkGetRegion(b *testing.B) {
	s, c := benchCluster(b)
	for i := range benchCount {
		if err := s.Cluster().HandleRegionHeartbeat(benchRequest(s, i)); err != nil {
			b.Fatal(err)
		}
	}
	var n atomic.Uint64
	b.SetParallelism(16)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			key := binary.BigEndian.AppendUint64(nil, n.Add(1)%benchCount)
			if r, err := c.GetRegion(b.Context(), key); err != nil || r == nil {
				b.Error(r, err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
}
