package client

import (
	"context"
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// cpuTime is what this process has used, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	var r syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return r.Utime.Nano() + r.Stime.Nano()
}

// batchKV answers batches of gets, as a store does.
func batchKV() *rpctest.KV {
	return &rpctest.KV{
		Get: func(context.Context, *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
			return fixedAnswer, nil
		},
		Stream: func(st grpc.ServerStream) error {
			for {
				req := new(kvrpcpb.BatchCommandsRequest)
				if err := st.RecvMsg(req); err != nil {
					return err
				}
				resp := new(kvrpcpb.BatchCommandsResponse)
				for _, c := range req.Commands {
					resp.Replies = append(resp.Replies,
						&kvrpcpb.BatchReply{Id: c.Id, Get: fixedAnswer})
				}
				if err := st.SendMsg(resp); err != nil {
					return err
				}
			}
		},
	}
}

// batcher puts gets that come together into one message of a stream, and hands the answers out.
type batcher struct {
	st      tinykvpb.TinyKv_BatchCommandsClient
	queue   chan *kvrpcpb.BatchCommand
	waiting sync.Map // of chan struct{} by id
}

// maxBatch is the largest batch; TiKV's clients have as many.
const maxBatch = 128

func newBatcher(b *testing.B, c tinykvpb.TinyKvClient) *batcher {
	ctx, cancel := context.WithCancel(context.Background())
	st, err := c.BatchCommands(ctx)
	require.NoError(b, err)
	x := &batcher{st: st, queue: make(chan *kvrpcpb.BatchCommand, maxBatch)}
	var wg sync.WaitGroup
	wg.Go(func() { x.send(ctx) })
	wg.Go(func() { x.receive() })
	b.Cleanup(func() { cancel(); wg.Wait() })
	return x
}

func (x *batcher) send(ctx context.Context) {
	for {
		req := new(kvrpcpb.BatchCommandsRequest)
		select {
		case c := <-x.queue:
			req.Commands = append(req.Commands, c)
		case <-ctx.Done():
			return
		}
		for len(req.Commands) < maxBatch && len(x.queue) > 0 {
			req.Commands = append(req.Commands, <-x.queue)
		}
		if x.st.Send(req) != nil {
			return
		}
	}
}

func (x *batcher) receive() {
	for {
		resp, err := x.st.Recv()
		if err != nil {
			return
		}
		for _, r := range resp.Replies {
			if done, ok := x.waiting.LoadAndDelete(r.Id); ok {
				done.(chan struct{}) <- struct{}{}
			}
		}
	}
}

// BenchmarkTogether has 128 callers that get 256 bytes each, over one connection, in one process
// with the server: one call each through pkg/rpc, one call each through grpc-go, and batches on a
// stream through grpc-go, which is how clients make up for what a call costs there. cpu-ns/op is
// the CPU of both sides.
func BenchmarkTogether(b *testing.B) {
	const callers = 128
	k := batchKV()
	goAddr := func(b *testing.B) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		s := grpc.NewServer(codec.ServerOption(), grpc.NumStreamWorkers(128))
		tinykvpb.RegisterTinyKvServer(s, k)
		go func() { _ = s.Serve(l) }() // ends with Stop
		b.Cleanup(s.Stop)
		return l.Addr().String()
	}
	unary := func(c tinykvpb.TinyKvClient) func() func() error {
		return func() func() error {
			req := &kvrpcpb.RawGetRequest{Key: make([]byte, 16)}
			return func() error { _, err := c.RawGet(context.Background(), req); return err }
		}
	}
	for name, caller := range map[string]func(b *testing.B) func() func() error{
		"pkg-rpc calls": func(b *testing.B) func() func() error {
			_, addr := start(b, server.Options{}, k, fixedInline)
			return unary(tinykvpb.NewTinyKvClient(client(b, addr, Options{})))
		},
		"grpc-go calls": func(b *testing.B) func() func() error {
			return unary(rpctest.DialKV(b, goAddr(b)))
		},
		"grpc-go batches": func(b *testing.B) func() func() error {
			x := newBatcher(b, rpctest.DialKV(b, goAddr(b)))
			var ids sync.Mutex
			next := uint64(0)
			return func() func() error {
				done, req := make(chan struct{}, 1), &kvrpcpb.RawGetRequest{Key: make([]byte, 16)}
				return func() error {
					ids.Lock()
					next++
					id := next
					ids.Unlock()
					x.waiting.Store(id, done)
					x.queue <- &kvrpcpb.BatchCommand{Id: id, Get: req}
					<-done
					return nil
				}
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			newCaller := caller(b)
			require.NoError(b, newCaller()())
			work := make(chan struct{}, callers)
			var g rpctest.Group
			begin := cpuTime(b)
			b.ReportAllocs()
			b.ResetTimer()
			for range callers {
				g.Go(func() error {
					call := newCaller()
					for range work {
						if err := call(); err != nil {
							return err
						}
					}
					return nil
				})
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			require.NoError(b, g.Wait())
			b.StopTimer()
			b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N), "cpu-ns/op")
		})
	}
}
