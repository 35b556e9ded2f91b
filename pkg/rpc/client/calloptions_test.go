package client

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// mirror sends metadata back: that of names with t- in the trailer, with h- in the headers. A key
// "fail" fails.
func mirror(ctx context.Context, key []byte) error {
	md, _ := metadata.FromIncomingContext(ctx)
	header, trailer := metadata.MD{}, metadata.MD{}
	for name, values := range md {
		switch {
		case strings.HasPrefix(name, "t-"):
			trailer[name] = values
		case strings.HasPrefix(name, "h-"):
			header[name] = values
		}
	}
	if err := errors.Join(grpc.SetHeader(ctx, header), grpc.SetTrailer(ctx, trailer)); err != nil {
		return err
	}
	if string(key) != "fail" {
		return nil
	}
	st, err := status.New(codes.NotFound, "as asked for").WithDetails(durationpb.New(5))
	if err != nil {
		return err
	}
	return st.Err()
}

func mirrorKV() *rpctest.KV {
	return &rpctest.KV{
		Get: func(
			ctx context.Context, req *kvrpcpb.RawGetRequest,
		) (*kvrpcpb.RawGetResponse, error) {
			return &kvrpcpb.RawGetResponse{Value: req.Key}, mirror(ctx, req.Key)
		},
		Stream: func(st grpc.ServerStream) error {
			req := new(kvrpcpb.RawGetRequest)
			if err := st.RecvMsg(req); err != nil {
				return err
			}
			if err := mirror(st.Context(), req.Key); err != nil {
				return err
			}
			return st.SendMsg(&kvrpcpb.RawGetResponse{Value: req.Key})
		},
	}
}

// kvBoth runs a test against both servers, which have the project's codec.
func kvBoth(t *testing.T, k *rpctest.KV, f func(t *testing.T, addr string)) {
	t.Run("ours", func(t *testing.T) {
		s, addr := start(t, server.Options{MaxRecv: 16 << 20, MaxSend: 16 << 20}, k, nil)
		f(t, addr)
		require.Eventually(t, func() bool {
			return s.Stats().Calls == 0
		}, rpctest.Patience, time.Millisecond)
	})
	t.Run("grpc-go", func(t *testing.T) {
		f(t,
			startGo(t, func(s grpc.ServiceRegistrar) {
				tinykvpb.RegisterTinyKvServer(s, k)
			}, codec.ServerOption()))
	})
}

// TestMetadata: what is sent with a call comes back, with answers and with errors, which have
// details.
func TestMetadata(t *testing.T) {
	sent := metadata.MD{
		"h-a": {"x", "y"}, "h-b-bin": {"\x00\xff", ""}, "t-a": {"z"}, "t-b-bin": {"1234"},
		"h-long": {strings.Repeat("l", 300)},
	}
	kvBoth(t, mirrorKV(), func(t *testing.T, addr string) {
		c := tinykvpb.NewTinyKvClient(client(t, addr, Options{Checksum: true}))
		check := func(header, trailer metadata.MD, err error, fails bool) {
			t.Helper()
			for _, name := range []string{"h-a", "h-b-bin", "h-long"} {
				require.Equal(t, sent[name], header[name])
			}
			require.Equal(t, sent["t-a"], trailer["t-a"])
			require.Equal(t, sent["t-b-bin"], trailer["t-b-bin"])
			if !fails {
				require.NoError(t, err)
				return
			}
			st := status.Convert(err)
			require.Equal(t, codes.NotFound, st.Code())
			require.Equal(t, "as asked for", st.Message())
			require.Len(t, st.Details(), 1)
			require.EqualValues(t, 5, st.Details()[0].(*durationpb.Duration).Nanos)
		}
		for range 5 {
			for _, key := range []string{"k", "fail"} {
				ctx := metadata.NewOutgoingContext(rpctest.Within(t), sent)
				var header, trailer metadata.MD
				_, err := c.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: []byte(key)},
					grpc.Header(&header), grpc.Trailer(&trailer))
				check(header, trailer, err, key == "fail")

				header, trailer = nil, nil
				st, err := c.BatchCommands(ctx, grpc.Header(&header), grpc.Trailer(&trailer))
				require.NoError(t, err)
				require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte(key)}))
				early, err := st.Header()
				require.NoError(t, err)
				require.Equal(t, sent["h-a"], early["h-a"])
				err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
				if key != "fail" {
					require.NoError(t, err)
					require.Equal(t, io.EOF, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
					err = nil
				}
				check(header, trailer, err, key == "fail")
				require.Equal(t, trailer, st.Trailer())
				_, err = c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")})
				require.NoError(t, err, "a call without metadata")
			}
		}
	})
}

// TestMetadataThatIsRefused: nothing of the call is sent.
func TestMetadataThatIsRefused(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	kv := tinykvpb.NewTinyKvClient(c)
	for _, md := range []metadata.MD{{"bad key": {"x"}}, {"k": {"\x00"}}} {
		_, err := kv.RawGet(metadata.NewOutgoingContext(rpctest.Within(t), md),
			new(kvrpcpb.RawGetRequest))
		require.Equal(t, codes.Internal, status.Code(err))
		_, err = kv.BatchCommands(metadata.NewOutgoingContext(rpctest.Within(t), md))
		require.Equal(t, codes.Internal, status.Code(err))
	}
	large := metadata.NewOutgoingContext(rpctest.Within(t),
		metadata.Pairs("k", strings.Repeat("x", 2000)))
	res := rpctest.Get(large, c, nil)
	p := l.Greeted(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 2000})
	err := rpctest.Wait(t, res, "the call").Err
	require.Equal(t, codes.Internal, status.Code(err))
	require.ErrorContains(t, err, "larger than the server takes")
	works(p, c, "k")
}

// TestMalformedAnswerMetadata ends the call.
func TestMalformedAnswerMetadata(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, nil)
	p := l.Greeted()
	id, _ := p.Asked()
	p.Headers(id, false, ":status", "200", "content-type", "application/grpc", "x-bin", "*")
	require.Equal(t, codes.Internal, status.Code(rpctest.Wait(t, res, "the call").Err))
	works(p, c, "next")
}

// creds are credentials of a call.
type creds struct {
	secret bool
	err    error
	uri    string
}

func (c *creds) GetRequestMetadata(_ context.Context, uri ...string) (map[string]string, error) {
	c.uri = uri[0]
	return map[string]string{"H-Token": "t"}, c.err
}
func (c *creds) RequireTransportSecurity() bool { return c.secret }

func TestCallCredentials(t *testing.T) {
	kvBoth(t, mirrorKV(), func(t *testing.T, addr string) {
		c := tinykvpb.NewTinyKvClient(client(t, addr, Options{}))
		get := func(cr *creds) (header metadata.MD, err error) {
			_, err = c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")},
				grpc.PerRPCCredentials(cr), grpc.Header(&header))
			return header, err
		}
		good := &creds{}
		header, err := get(good)
		require.NoError(t, err)
		require.Equal(t, []string{"t"}, header["h-token"])
		require.Equal(t, "https://"+addr+"/tinykvpb.TinyKv", good.uri)
		_, err = get(&creds{secret: true})
		require.Equal(t, codes.Unauthenticated, status.Code(err), "no TLS")
		_, err = get(&creds{err: errors.New("no token")})
		require.Equal(t, codes.Unauthenticated, status.Code(err))
		_, err = get(&creds{err: status.Error(codes.Aborted, "later")})
		require.Equal(t, codes.Aborted, status.Code(err))
	})
}

// TestCallSizes: limits of a call replace those of the client, both ways.
func TestCallSizes(t *testing.T) {
	kvBoth(t, &rpctest.KV{}, func(t *testing.T, addr string) {
		c := tinykvpb.NewTinyKvClient(client(t, addr, Options{MaxRecv: 1 << 10, MaxSend: 1 << 10}))
		get := func(n int, opts ...grpc.CallOption) codes.Code {
			_, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: make([]byte, n)},
				opts...)
			st, err2 := c.BatchCommands(rpctest.Within(t), opts...)
			require.NoError(t, err2)
			if err2 = st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, n)}); err2 == nil {
				err2 = st.RecvMsg(new(kvrpcpb.RawGetResponse))
				if err2 == nil {
					require.NoError(t, st.CloseSend())
					require.Equal(t, io.EOF, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
				}
			}
			require.Equal(t, status.Code(err), status.Code(err2), "%v %v", err, err2)
			return status.Code(err)
		}
		require.Equal(t, codes.OK, get(1000))
		require.Equal(t, codes.ResourceExhausted, get(2000))
		require.Equal(t, codes.ResourceExhausted, get(2000, grpc.MaxCallSendMsgSize(4000)),
			"the answer")
		require.Equal(t, codes.ResourceExhausted, get(2000, grpc.MaxCallRecvMsgSize(4000)),
			"the request")
		require.Equal(t, codes.OK,
			get(2000, grpc.MaxCallSendMsgSize(4000), grpc.MaxCallRecvMsgSize(4000)))
		require.Equal(t, codes.ResourceExhausted, get(10, grpc.MaxCallSendMsgSize(0)))
	})
}

// TestCompressedRequests: the server unpacks them; what is not known is refused.
func TestCompressedRequests(t *testing.T) {
	register := func(s grpc.ServiceRegistrar) {
		grpc_testing.RegisterTestServiceServer(s, rpctest.NewTestService())
	}
	servers(t, register, func(t *testing.T, addr string) {
		sums := grpc_testing.NewTestServiceClient(client(t, addr, Options{Checksum: true}))
		_, err := sums.EmptyCall(rpctest.Within(t), new(grpc_testing.Empty),
			grpc.UseCompressor("gzip"))
		require.Equal(t, codes.Unimplemented, status.Code(err))
		for range 2 {
			c := grpc_testing.NewTestServiceClient(client(t, addr, Options{}))
			st, err := c.StreamingInputCall(rpctest.Within(t), grpc.UseCompressor("gzip"))
			require.NoError(t, err)
			for range 3 {
				require.NoError(t,
					st.Send(&grpc_testing.StreamingInputCallRequest{
						Payload: rpctest.Payload(50_000),
					}))
			}
			resp, err := st.CloseAndRecv()
			require.NoError(t, err)
			require.EqualValues(t, 150_000, resp.AggregatedPayloadSize)
			out, err := c.UnaryCall(rpctest.Within(t),
				&grpc_testing.SimpleRequest{Payload: rpctest.Payload(1e5), ResponseSize: 7},
				grpc.UseCompressor("gzip"))
			require.NoError(t, err)
			require.Len(t, out.Payload.Body, 7)
			for _, o := range []grpc.CallOption{
				grpc.UseCompressor("nothing"), grpc.CallContentSubtype("json"),
				grpc.ForceCodecV2(otherCodec{codec.New()}),
			} {
				_, err = c.EmptyCall(rpctest.Within(t), new(grpc_testing.Empty), o)
				require.Contains(t, []codes.Code{codes.Internal, codes.Unimplemented},
					status.Code(err))
			}
			_, err = c.EmptyCall(rpctest.Within(t), new(grpc_testing.Empty),
				grpc.CallContentSubtype("proto"), codec.CallOption())
			require.NoError(t, err)
		}
	})
}

// otherCodec has another name.
type otherCodec struct{ encoding.CodecV2 }

func (otherCodec) Name() string { return "json" }

// TestWaitForReady: such a call waits for a server that cannot be reached, as long as its context
// allows.
func TestWaitForReady(t *testing.T) {
	l := rpctest.Listen(t)
	attempts := make(chan struct{}, 100)
	up := make(chan struct{})
	c := client(t, l.Address(),
		Options{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond,
			Dial: func(ctx context.Context, addr string) (net.Conn, error) {
				select {
				case <-up:
					return new(net.Dialer).DialContext(ctx, "tcp", addr)
				default:
					attempts <- struct{}{}
					return nil, errors.New("down")
				}
			}})
	kv := tinykvpb.NewTinyKvClient(c)
	_, err := kv.RawGet(rpctest.Within(t), new(kvrpcpb.RawGetRequest))
	require.Equal(t, codes.Unavailable, status.Code(err), "a call that does not wait")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = kv.BatchCommands(ctx, grpc.WaitForReady(true))
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	require.True(t, NotSent(err))
	_, err = kv.RawGet(WithDeadline(context.Background(), time.Now().Add(10*time.Millisecond)),
		new(kvrpcpb.RawGetRequest), grpc.WaitForReady(true))
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	for len(attempts) > 0 {
		<-attempts
	}
	done := make(chan error, 1)
	go func() {
		_, err := kv.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")},
			grpc.WaitForReady(true))
		done <- err
	}()
	for range 3 {
		rpctest.Wait(t, attempts, "an attempt")
	}
	close(up)
	p := l.Greeted()
	id, _ := p.Asked()
	p.Reply(id, "v")
	require.NoError(t, rpctest.Wait(t, done, "the call"))
}

// TestWaitForReadyEndsWithTheClient: Close does not wait for those who wait.
func TestWaitForReadyEndsWithTheClient(t *testing.T) {
	dialed := make(chan struct{}, 1)
	c := client(t, "nowhere:1",
		Options{MinBackoff: time.Hour, MaxBackoff: time.Hour,
			Dial: func(context.Context, string) (net.Conn, error) {
				dialed <- struct{}{}
				return nil, errors.New("down")
			}})
	done := make(chan error, 1)
	go func() {
		_, err := tinykvpb.NewTinyKvClient(c).RawGet(rpctest.Within(t), new(kvrpcpb.RawGetRequest),
			grpc.WaitForReady(true))
		done <- err
	}()
	rpctest.Wait(t, dialed, "the attempt")
	rpctest.Returns(t, "Close", func() { _ = c.Close() })
	require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, done, "the call")))
}

// TestPeerAndOnFinish are filled in and called once, when the call has ended.
func TestPeerAndOnFinish(t *testing.T) {
	kvBoth(t, mirrorKV(), func(t *testing.T, addr string) {
		c := tinykvpb.NewTinyKvClient(client(t, addr, Options{}))
		for key, want := range map[string]codes.Code{"k": codes.OK, "fail": codes.NotFound} {
			var p peer.Peer
			var ends []codes.Code
			opts := []grpc.CallOption{
				grpc.Peer(&p),
				grpc.OnFinish(func(err error) { ends = append(ends, status.Code(err)) }),
			}
			_, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte(key)}, opts...)
			require.Equal(t, want, status.Code(err))
			require.Equal(t, []codes.Code{want}, ends)
			require.Equal(t, addr, p.Addr.String())
			p, ends = peer.Peer{}, nil
			st, err := c.BatchCommands(rpctest.Within(t), opts...)
			require.NoError(t, err)
			require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte(key)}))
			for err == nil {
				err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
			}
			require.Error(t, st.RecvMsg(new(kvrpcpb.RawGetResponse)), "again")
			require.Equal(t, []codes.Code{want}, ends)
			require.Equal(t, addr, p.Addr.String())
		}
	})
}

// TestHeaderOfAStreamThatEnds: Header does not wait for headers that will not come.
func TestHeaderOfAStreamThatEnds(t *testing.T) {
	k := &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		if st.RecvMsg(new(kvrpcpb.RawGetRequest)) == io.EOF {
			return status.Error(codes.NotFound, "nothing")
		}
		<-st.Context().Done()
		return st.Context().Err()
	}}
	kvBoth(t, k, func(t *testing.T, addr string) {
		c := tinykvpb.NewTinyKvClient(client(t, addr, Options{}))
		st, err := c.BatchCommands(rpctest.Within(t))
		require.NoError(t, err)
		require.NoError(t, st.CloseSend())
		md, err := st.Header()
		require.Empty(t, md)
		require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
		ctx, cancel := context.WithCancel(rpctest.Within(t))
		st, err = c.BatchCommands(ctx)
		require.NoError(t, err)
		require.NoError(t, st.SendMsg(new(kvrpcpb.RawGetRequest)))
		got := make(chan error, 1)
		go func() { _, err := st.Header(); got <- err }()
		cancel()
		require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, got, "Header")))
	})
}
