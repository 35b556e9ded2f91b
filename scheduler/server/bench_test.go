package server_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/proto/codec"
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
		Id: uint64(i + 1), StartKey: key(i), EndKey: key(i + 1),
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peers: []*metapb.Peer{
			{Id: uint64(3*i + 1), StoreId: 1}, {Id: uint64(3*i + 2), StoreId: 2},
			{Id: uint64(3*i + 3), StoreId: 3},
		},
	}
	return &schedulerpb.RegionHeartbeatRequest{
		Header: &schedulerpb.RequestHeader{ClusterId: s.ClusterID()}, Region: m, Leader: m.Peers[0],
		ApproximateSize: 96 << 20, Term: 6,
	}
}

// BenchmarkHeartbeats sends heartbeats over four streams, a tenth of them with a new size. Client
// and server share the machine.
func BenchmarkHeartbeats(b *testing.B) {
	s, _ := benchCluster(b)
	const streams = 4
	var wg sync.WaitGroup
	stats := func() uint64 { return s.Cluster().Heartbeats() }
	before := stats()
	perStream := b.N/streams + 1
	cpu := cpuTime()
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
	for end := time.Now().Add(time.Minute); stats()-before < uint64(perStream*streams) &&
		time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	report(b, "heartbeats", perStream*streams, cpu)
}

// BenchmarkTSO gets timestamps one by one with many callers of one client, and by the hundred over
// bare streams as another client-side batching would.
func BenchmarkTSO(b *testing.B) {
	s, c := benchCluster(b)
	for _, callers := range []int{512, 4096} {
		b.Run(fmt.Sprintf("callers-%d", callers), func(b *testing.B) {
			cpu := cpuTime()
			inParallel(b, callers, func() error {
				_, _, err := c.GetTS(b.Context())
				return err
			})
			report(b, "ts", b.N, cpu)
		})
	}
	b.Run("streams-8-count-100", func(b *testing.B) {
		var worst atomic.Int64
		cpu := cpuTime()
		var wg sync.WaitGroup
		for range 8 {
			stream, err := servertest.DirectClient(b, s.ClientAddr()).Tso(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range b.N/8 + 1 {
					began := time.Now()
					err := stream.Send(&schedulerpb.TsoRequest{
						Header: &schedulerpb.RequestHeader{ClusterId: s.ClusterID()}, Count: 100,
					})
					if err == nil {
						_, err = stream.Recv()
					}
					if err != nil {
						b.Error(err)
						return
					}
					worst.Store(max(worst.Load(), int64(time.Since(began))))
				}
			}()
		}
		wg.Wait()
		report(b, "ts", 100*b.N, cpu)
		b.ReportMetric(float64(worst.Load())/1e6, "max-ms")
	})
}

// report states the rate by the clock and by the CPU time of the process, which client and server
// share: the second says what one core does, whatever else the machine is busy with.
func report(b *testing.B, unit string, n int, cpu time.Duration) {
	b.Helper()
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), unit+"/s")
	b.ReportMetric(float64(n)/(cpuTime()-cpu).Seconds(), unit+"/core-s")
	b.ReportMetric(0, "ns/op")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inParallel spreads b.N calls over the given number of goroutines.
func inParallel(b *testing.B, callers int, call func() error) {
	b.Helper()
	b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := call(); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// echo answers GetRegion with what it always answers: what gRPC itself costs with messages of that
// size.
type echo struct {
	schedulerpb.UnimplementedSchedulerServer
	resp *schedulerpb.GetRegionResponse
}

func (e *echo) GetRegion(
	context.Context, *schedulerpb.GetRegionRequest,
) (*schedulerpb.GetRegionResponse, error) {
	return e.resp, nil
}

// BenchmarkGetRegion looks regions up with 128 callers: by bare gRPC at a service that does
// nothing, by bare gRPC at the placement service, and by the client.
func BenchmarkGetRegion(b *testing.B) {
	const callers = 128
	s, c := benchCluster(b)
	for i := range benchCount {
		if err := s.Cluster().HandleRegionHeartbeat(benchRequest(s, i)); err != nil {
			b.Fatal(err)
		}
	}
	var n atomic.Uint64
	next := func() []byte { return binary.BigEndian.AppendUint64(nil, n.Add(1)%benchCount) }
	run := func(name string, get func(key []byte) (*metapb.Region, error)) {
		b.Run(name, func(b *testing.B) {
			cpu := cpuTime()
			inParallel(b, callers, func() error {
				if r, err := get(next()); err != nil || r == nil {
					return fmt.Errorf("got %v: %w", r, err)
				}
				return nil
			})
			report(b, "lookups", b.N, cpu)
		})
	}
	header := &schedulerpb.RequestHeader{ClusterId: s.ClusterID()}
	bare := func(stub schedulerpb.SchedulerClient) func(key []byte) (*metapb.Region, error) {
		return func(key []byte) (*metapb.Region, error) {
			resp, err := stub.GetRegion(b.Context(),
				&schedulerpb.GetRegionRequest{Header: header, RegionKey: key})
			return resp.GetRegion(), err
		}
	}
	stub := servertest.DirectClient(b, s.ClientAddr())
	resp, err := stub.GetRegion(b.Context(),
		&schedulerpb.GetRegionRequest{Header: header, RegionKey: next()})
	if err != nil {
		b.Fatal(err)
	}
	run("bare-echo", bare(servertest.DirectClient(b, serveEcho(b, &echo{resp: resp}))))
	run("bare-unary", bare(stub))
	run("client", func(key []byte) (*metapb.Region, error) {
		r, err := c.GetRegion(b.Context(), key)
		if r == nil {
			return nil, err
		}
		return r.Meta, err
	})
}

func serveEcho(b *testing.B, e *echo) string {
	b.Helper()
	gs := grpc.NewServer(codec.ServerOption())
	schedulerpb.RegisterSchedulerServer(gs, e)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a benchmark
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = gs.Serve(l) }() // ends with Stop
	b.Cleanup(gs.Stop)
	return l.Addr().String()
}
