package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// startGo serves with grpc's own server until the test ends.
func startGo(t testing.TB, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer(append([]grpc.ServerOption{grpc.MaxRecvMsgSize(16 << 20)}, opts...)...)
	register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

// servers runs a test against each server that a client may meet.
func servers(
	t *testing.T, register func(grpc.ServiceRegistrar), f func(t *testing.T, addr string),
) {
	t.Run("ours", func(t *testing.T) {
		s, addr := startWith(t, server.Options{MaxRecv: 16 << 20, MaxSend: 16 << 20},
			func(s *server.Server) { register(s) })
		f(t, addr)
		require.Eventually(t, func() bool {
			return s.Stats().Calls == 0
		}, rpctest.Patience, time.Millisecond, "calls are left")
	})
	t.Run("grpc-go", func(t *testing.T) { f(t, startGo(t, register)) })
	t.Run("grpc-go with our codec", func(t *testing.T) {
		f(t, startGo(t, register, codec.ServerOption()))
	})
}

func kvServers(t *testing.T, k *rpctest.KV, f func(t *testing.T, addr string)) {
	servers(t, func(s grpc.ServiceRegistrar) { tinykvpb.RegisterTinyKvServer(s, k) }, f)
}

// ofSize is a key with which a request, or an answer, has so many bytes.
func ofSize(n int) []byte {
	for m := max(n-6, 0); m <= n; m++ {
		if key := make([]byte, m); (&kvrpcpb.RawGetRequest{Key: key}).Size() == n {
			return key
		}
	}
	panic("no key makes a request of this size")
}

func TestClientSizes(t *testing.T) {
	kvServers(t, &rpctest.KV{}, func(t *testing.T, addr string) {
		c := client(t, addr, Options{})
		for _, n := range []int{0, 1, 16<<10 - 1, 16 << 10, rpc.ChunkSize / 2, 64 << 10, 1 << 20} {
			key := bytes.Repeat([]byte{'k'}, n)
			r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, key), "the answer")
			require.NoError(t, r.Err, n)
			require.True(t, bytes.Equal(key, r.Value), n)
		}
	})
}

// TestClientLimits: a message of exactly the limit passes, one of a byte more does not, and the
// connection stays.
func TestClientLimits(t *testing.T) {
	const limit = 100_000
	kvServers(t, &rpctest.KV{}, func(t *testing.T, addr string) {
		for what, o := range map[string]Options{
			"receive": {MaxRecv: limit}, "send": {MaxSend: limit},
		} {
			t.Run(what, func(t *testing.T) {
				c := client(t, addr, o)
				for range 2 {
					r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, ofSize(limit)),
						"the answer")
					require.NoError(t, r.Err)
					require.Len(t, r.Value, len(ofSize(limit)))
					r = rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, ofSize(limit+1)),
						"the answer")
					require.Equal(t, codes.ResourceExhausted, status.Code(r.Err), r.Err)
				}
				l := onlyLink(t, c)
				require.True(t, l.usable())
				require.Zero(t, l.open())
			})
		}
	})
}

func TestClientManyCallers(t *testing.T) {
	kvServers(t, &rpctest.KV{}, func(t *testing.T, addr string) {
		c := tinykvpb.NewTinyKvClient(client(t, addr, Options{}))
		var g rpctest.Group
		for worker := range 24 {
			g.Go(func() error {
				for i := range 40 {
					key := bytes.Repeat([]byte{byte(worker), byte(i)}, worker*i)
					resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: key})
					if err != nil {
						return err
					}
					if !bytes.Equal(key, resp.Value) {
						return fmt.Errorf("wrong answer to %d/%d", worker, i)
					}
				}
				return nil
			})
		}
		require.NoError(t, g.Wait())
	})
}

func TestClientStreamEcho(t *testing.T) {
	kvServers(t, &rpctest.KV{}, func(t *testing.T, addr string) {
		st, err := tinykvpb.NewTinyKvClient(client(t, addr,
			Options{})).BatchCommands(rpctest.Within(t))
		require.NoError(t, err)
		sizes := []int{0, 1, 16 << 10, 70_000, 5, 1 << 20, 3}
		var g rpctest.Group
		g.Go(func() error {
			for i, n := range sizes {
				if err := st.SendMsg(&kvrpcpb.RawGetRequest{
					Key: bytes.Repeat([]byte{byte(i)}, n),
				}); err != nil {
					return err
				}
			}
			return st.CloseSend()
		})
		for i, n := range sizes {
			resp := new(kvrpcpb.RawGetResponse)
			require.NoError(t, st.RecvMsg(resp))
			require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(i)}, n), resp.Value))
		}
		for range 2 {
			require.Equal(t, io.EOF, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
		}
		require.NoError(t, g.Wait())
		require.NoError(t, st.CloseSend(), "twice")
	})
}

// testServers runs a test against the service of gRPC's interoperability tests.
func testServers(t *testing.T, f func(t *testing.T, c grpc_testing.TestServiceClient, cc *Client)) {
	servers(t, func(s grpc.ServiceRegistrar) {
		grpc_testing.RegisterTestServiceServer(s, rpctest.NewTestService())
	},
		func(t *testing.T, addr string) {
			cc := client(t, addr, Options{})
			f(t, grpc_testing.NewTestServiceClient(cc), cc)
		})
}

func TestClientKindsOfCalls(t *testing.T) {
	testServers(t, func(t *testing.T, c grpc_testing.TestServiceClient, _ *Client) {
		_, err := c.EmptyCall(rpctest.Within(t), new(grpc_testing.Empty))
		require.NoError(t, err)
		resp, err := c.UnaryCall(rpctest.Within(t),
			&grpc_testing.SimpleRequest{ResponseSize: 314159, Payload: rpctest.Payload(271828)})
		require.NoError(t, err)
		require.Len(t, resp.Payload.Body, 314159)
		in, err := c.StreamingInputCall(rpctest.Within(t))
		require.NoError(t, err)
		for _, n := range []int32{27182, 8, 1828, 45904} {
			require.NoError(t,
				in.Send(&grpc_testing.StreamingInputCallRequest{Payload: rpctest.Payload(n)}))
		}
		sum, err := in.CloseAndRecv()
		require.NoError(t, err)
		require.EqualValues(t, 74922, sum.AggregatedPayloadSize)
		sizes := []int32{31415, 9, 2653, 58979}
		out, err := c.StreamingOutputCall(rpctest.Within(t),
			&grpc_testing.StreamingOutputCallRequest{ResponseParameters: rpctest.Outputs(sizes...)})
		require.NoError(t, err)
		for _, n := range sizes {
			resp, err := out.Recv()
			require.NoError(t, err)
			require.Len(t, resp.Payload.Body, int(n))
		}
		_, err = out.Recv()
		require.Equal(t, io.EOF, err)
	})
}

func TestClientStatus(t *testing.T) {
	long := strings.Repeat("é%", 300)
	testServers(t, func(t *testing.T, c grpc_testing.TestServiceClient, _ *Client) {
		for _, msg := range []string{
			"plain", "", "\t\nwhitespace\r\nand ☺ and 😈\n", "100% sure, %41 is no A", "%", "%2",
			long,
		} {
			want := &grpc_testing.EchoStatus{Code: int32(codes.DataLoss), Message: msg}
			_, err := c.UnaryCall(rpctest.Within(t),
				&grpc_testing.SimpleRequest{ResponseStatus: want})
			require.Equal(t, codes.DataLoss, status.Code(err))
			require.Equal(t, msg, status.Convert(err).Message())
			require.False(t, NotSent(err))
			out, err := c.StreamingOutputCall(rpctest.Within(t),
				&grpc_testing.StreamingOutputCallRequest{ResponseStatus: want})
			require.NoError(t, err)
			_, err = out.Recv()
			require.Equal(t, msg, status.Convert(err).Message())
		}
		// Longer than a server sends: it may be cut, not more.
		_, err := c.UnaryCall(rpctest.Within(t),
			&grpc_testing.SimpleRequest{
				ResponseStatus: &grpc_testing.EchoStatus{
					Code: 5, Message: strings.Repeat("x", 20_000),
				},
			})
		require.Equal(t, codes.NotFound, status.Code(err))
		require.GreaterOrEqual(t, len(status.Convert(err).Message()), rpc.MaxMessageHeader)
	})
}

func TestClientUnimplemented(t *testing.T) {
	testServers(t, func(t *testing.T, c grpc_testing.TestServiceClient, cc *Client) {
		_, err := c.UnimplementedCall(rpctest.Within(t), new(grpc_testing.Empty))
		require.Equal(t, codes.Unimplemented, status.Code(err))
		err = cc.Invoke(rpctest.Within(t), "/no/such", new(grpc_testing.Empty),
			new(grpc_testing.Empty))
		require.Equal(t, codes.Unimplemented, status.Code(err))
		require.False(t, NotSent(err))
		// A stream of one request ends before that is sent: RecvMsg says so, not SendMsg.
		st, err := cc.NewStream(rpctest.Within(t), &grpc.StreamDesc{ServerStreams: true},
			"/no/such")
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			return onlyLink(t, cc).open() == 0
		}, rpctest.Patience, time.Millisecond)
		require.NoError(t, st.SendMsg(new(grpc_testing.Empty)))
		require.NoError(t, st.CloseSend())
		require.Equal(t, codes.Unimplemented, status.Code(st.RecvMsg(new(grpc_testing.Empty))))
		// One of many says that it has ended.
		st, err = cc.NewStream(rpctest.Within(t),
			&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/no/such")
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			return onlyLink(t, cc).open() == 0
		}, rpctest.Patience, time.Millisecond)
		require.Equal(t, io.EOF, st.SendMsg(new(grpc_testing.Empty)))
		require.Equal(t, codes.Unimplemented, status.Code(st.RecvMsg(new(grpc_testing.Empty))))
	})
}

// hanging is a service whose handlers wait until their context ends.
type hanging struct {
	rpctest.KV
	left  chan time.Duration
	ended chan error
}

func newHanging() *hanging {
	h := &hanging{left: make(chan time.Duration, 64), ended: make(chan error, 64)}
	hang := func(ctx context.Context) error {
		d, _ := ctx.Deadline()
		h.left <- time.Until(d)
		<-ctx.Done()
		h.ended <- ctx.Err()
		return status.FromContextError(ctx.Err()).Err()
	}
	h.Get = func(ctx context.Context, _ *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
		return nil, hang(ctx)
	}
	h.KV.Stream = func(st grpc.ServerStream) error { return hang(st.Context()) }
	return h
}

func TestClientDeadline(t *testing.T) {
	h := newHanging()
	kvServers(t, &h.KV, func(t *testing.T, addr string) {
		cc := client(t, addr, Options{})
		c := tinykvpb.NewTinyKvClient(cc)
		for name, call := range map[string]func(ctx context.Context) error{
			"unary": func(ctx context.Context) error {
				_, err := c.RawGet(ctx, &kvrpcpb.RawGetRequest{})
				return err
			},
			"stream": func(ctx context.Context) error {
				st, err := c.BatchCommands(ctx)
				if err != nil {
					return err
				}
				return st.RecvMsg(new(kvrpcpb.RawGetResponse))
			},
		} {
			t.Run(name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(rpctest.Within(t), 60*time.Millisecond)
				defer cancel()
				err := call(ctx)
				require.Equal(t, codes.DeadlineExceeded, status.Code(err), err)
				deadline, _ := ctx.Deadline()
				require.False(t, time.Now().Before(deadline), "the call ended too early")
				left := rpctest.Wait(t, h.left, "the handler")
				require.LessOrEqual(t, left, 60*time.Millisecond+time.Millisecond)
				rpctest.Wait(t, h.ended, "the handler's context")
				ctx, cancel = context.WithTimeout(context.Background(), time.Hour)
				defer cancel()
				returned := make(chan error, 1)
				go func() { returned <- call(ctx) }()
				require.InDelta(t, time.Hour, rpctest.Wait(t, h.left, "the handler"),
					float64(rpctest.Patience))
				cancel()
				require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, returned, "the call")))
				require.ErrorIs(t, rpctest.Wait(t, h.ended, "the handler's context"),
					context.Canceled)
			})
		}
	})
}

// TestClientCompressedAnswers: a server may compress whatever the client says.
func TestClientCompressedAnswers(t *testing.T) {
	register := func(s grpc.ServiceRegistrar) { tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{}) }
	//lint:ignore SA1019 the other way asks the client first
	zip := grpc.RPCCompressor(grpc.NewGZIPCompressor())
	addr := startGo(t, register, codec.ServerOption(), zip)
	c := client(t, addr, Options{MaxRecv: 1 << 20})
	for _, n := range []int{0, 1, 100_000, 1<<20 - 10} {
		key := bytes.Repeat([]byte{'z'}, n)
		r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, key), "the answer")
		require.NoError(t, r.Err)
		require.True(t, bytes.Equal(key, r.Value))
	}
	r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, make([]byte, 2<<20)), "the answer")
	require.Equal(t, codes.ResourceExhausted, status.Code(r.Err), "small on its way, large here")
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	for _, n := range []int{3, 100_000} {
		require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, n)}))
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(t, st.RecvMsg(resp))
		require.Len(t, resp.Value, n)
	}
	require.NoError(t, st.CloseSend())
	require.Equal(t, io.EOF, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
}

// TestClientAnswerBeforeTheEnd: a server that has heard enough ends a stream whose client still
// sends.
func TestClientAnswerBeforeTheEnd(t *testing.T) {
	enough := errors.New("enough")
	kvServers(t, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		if err := st.RecvMsg(new(kvrpcpb.RawGetRequest)); err != nil {
			return err
		}
		return enough
	}}, func(t *testing.T, addr string) {
		cc := client(t, addr, Options{})
		st, err := tinykvpb.NewTinyKvClient(cc).BatchCommands(rpctest.Within(t))
		require.NoError(t, err)
		for err == nil { // into the windows, then it waits for them
			err = st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, 500_000)})
		}
		require.Equal(t, io.EOF, err)
		require.Equal(t, enough.Error(),
			status.Convert(st.RecvMsg(new(kvrpcpb.RawGetResponse))).Message())
		require.Zero(t, onlyLink(t, cc).open())
	})
}

// TestCancelBeforeTheAnswer: what was cancelled before CloseAndRecv is never answered well,
// although the server may be quicker than the watch for the context's end.
func TestCancelBeforeTheAnswer(t *testing.T) {
	servers(t, func(s grpc.ServiceRegistrar) {
		svc := rpctest.NewTestService()
		svc.Began, svc.Cancelled = make(chan struct{}, 5000), make(chan error, 5000)
		grpc_testing.RegisterTestServiceServer(s, svc)
	}, func(t *testing.T, addr string) {
		c := grpc_testing.NewTestServiceClient(client(t, addr, Options{}))
		for range 1500 {
			ctx, cancel := context.WithCancel(rpctest.Within(t))
			st, err := c.StreamingInputCall(ctx)
			require.NoError(t, err)
			cancel()
			_, err = st.CloseAndRecv()
			require.Equal(t, codes.Canceled, status.Code(err), "%v", err)
		}
	})
}
