package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// interop starts a server of the test service and its client.
func interop(
	t *testing.T, o Options, opts ...grpc.DialOption,
) (*Server, *rpctest.TestService, grpc_testing.TestServiceClient, *grpc.ClientConn) {
	svc := rpctest.NewTestService()
	s, addr := startWith(t, o, func(s *Server) { grpc_testing.RegisterTestServiceServer(s, svc) })
	cc := rpctest.Dial(t, addr, opts...)
	return s, svc, grpc_testing.NewTestServiceClient(cc), cc
}

func TestInteropUnary(t *testing.T) {
	s, _, c, _ := interop(t, Options{})
	_, err := c.EmptyCall(rpctest.Within(t), new(grpc_testing.Empty))
	require.NoError(t, err)
	resp, err := c.UnaryCall(rpctest.Within(t),
		&grpc_testing.SimpleRequest{ResponseSize: 314159, Payload: rpctest.Payload(271828)})
	require.NoError(t, err)
	require.Len(t, resp.Payload.Body, 314159)
	idle(t, s)
}

func TestInteropClientStreaming(t *testing.T) {
	s, _, c, _ := interop(t, Options{})
	st, err := c.StreamingInputCall(rpctest.Within(t))
	require.NoError(t, err)
	for _, n := range []int32{27182, 8, 1828, 45904} {
		require.NoError(t,
			st.Send(&grpc_testing.StreamingInputCallRequest{Payload: rpctest.Payload(n)}))
	}
	resp, err := st.CloseAndRecv()
	require.NoError(t, err)
	require.EqualValues(t, 74922, resp.AggregatedPayloadSize)
	idle(t, s)
}

func TestInteropServerStreaming(t *testing.T) {
	s, _, c, _ := interop(t, Options{})
	sizes := []int32{31415, 9, 2653, 58979}
	st, err := c.StreamingOutputCall(rpctest.Within(t),
		&grpc_testing.StreamingOutputCallRequest{ResponseParameters: rpctest.Outputs(sizes...)})
	require.NoError(t, err)
	for _, n := range sizes {
		resp, err := st.Recv()
		require.NoError(t, err)
		require.Len(t, resp.Payload.Body, int(n))
	}
	_, err = st.Recv()
	require.Equal(t, io.EOF, err)
	idle(t, s)
}

func TestInteropPingPong(t *testing.T) {
	s, _, c, _ := interop(t, Options{})
	st, err := c.FullDuplexCall(rpctest.Within(t))
	require.NoError(t, err)
	ask, get := []int32{27182, 8, 1828, 45904}, []int32{31415, 9, 2653, 58979}
	for i := range ask {
		require.NoError(t,
			st.Send(&grpc_testing.StreamingOutputCallRequest{
				ResponseParameters: rpctest.Outputs(get[i]), Payload: rpctest.Payload(ask[i]),
			}))
		resp, err := st.Recv()
		require.NoError(t, err)
		require.Len(t, resp.Payload.Body, int(get[i]))
	}
	require.NoError(t, st.CloseSend())
	_, err = st.Recv()
	require.Equal(t, io.EOF, err)
	idle(t, s)
}

func TestInteropEmptyStream(t *testing.T) {
	s, _, c, _ := interop(t, Options{})
	st, err := c.FullDuplexCall(rpctest.Within(t))
	require.NoError(t, err)
	require.NoError(t, st.CloseSend())
	_, err = st.Recv()
	require.Equal(t, io.EOF, err)
	idle(t, s)
}

func TestInteropDeadlineOnASleepingServer(t *testing.T) {
	s, svc, c, _ := interop(t, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	st, err := c.FullDuplexCall(ctx)
	if err == nil {
		// The client may notice the deadline first.
		_ = st.Send(&grpc_testing.StreamingOutputCallRequest{Payload: rpctest.Payload(27182)})
		_, err = st.Recv()
		if code := status.Code(rpctest.Wait(t, svc.Cancelled,
			"the handler's context")); code != codes.DeadlineExceeded {
			require.Equal(t, codes.Canceled, code)
		}
	}
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	idle(t, s)
}

func TestInteropCancel(t *testing.T) {
	s, svc, c, _ := interop(t, Options{})
	t.Run("after begin", func(t *testing.T) {
		ctx, cancel := context.WithCancel(rpctest.Within(t))
		st, err := c.StreamingInputCall(ctx)
		require.NoError(t, err)
		require.NoError(t,
			st.Send(&grpc_testing.StreamingInputCallRequest{Payload: rpctest.Payload(1)}))
		rpctest.Wait(t, svc.Began, "the handler") // before that, a client may cancel without a word
		cancel()
		// CloseAndRecv might end the stream first
		err = st.RecvMsg(new(grpc_testing.StreamingInputCallResponse))
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, svc.Cancelled, "the handler")))
	})
	t.Run("after the first response", func(t *testing.T) {
		ctx, cancel := context.WithCancel(rpctest.Within(t))
		st, err := c.FullDuplexCall(ctx)
		require.NoError(t, err)
		require.NoError(t,
			st.Send(&grpc_testing.StreamingOutputCallRequest{
				ResponseParameters: rpctest.Outputs(31415), Payload: rpctest.Payload(27182),
			}))
		_, err = st.Recv()
		require.NoError(t, err)
		cancel()
		_, err = st.Recv()
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, svc.Cancelled, "the handler")))
	})
	idle(t, s)
}

func TestInteropStatus(t *testing.T) {
	s, _, c, _ := interop(t, Options{})
	for _, msg := range []string{
		"test status message", "",
		"\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n", "100% sure, %41 is no A",
		"%",
	} {
		want := &grpc_testing.EchoStatus{Code: int32(codes.Unknown), Message: msg}
		_, err := c.UnaryCall(rpctest.Within(t), &grpc_testing.SimpleRequest{ResponseStatus: want})
		require.Equal(t, codes.Unknown, status.Code(err))
		require.Equal(t, msg, status.Convert(err).Message())
		st, err := c.FullDuplexCall(rpctest.Within(t))
		require.NoError(t, err)
		require.NoError(t, st.Send(&grpc_testing.StreamingOutputCallRequest{ResponseStatus: want}))
		_, err = st.Recv()
		require.Equal(t, codes.Unknown, status.Code(err))
		require.Equal(t, msg, status.Convert(err).Message())
	}
	idle(t, s)
}

func TestInteropUnimplemented(t *testing.T) {
	s, _, c, cc := interop(t, Options{})
	_, err := c.UnimplementedCall(rpctest.Within(t), new(grpc_testing.Empty))
	require.Equal(t, codes.Unimplemented, status.Code(err))
	err = cc.Invoke(rpctest.Within(t), "/grpc.testing.TestService/Nothing", new(grpc_testing.Empty),
		new(grpc_testing.Empty))
	require.Equal(t, codes.Unimplemented, status.Code(err))
	require.Contains(t, err.Error(), "unknown method Nothing")
	_, err = grpc_testing.NewUnimplementedServiceClient(cc).UnimplementedCall(rpctest.Within(t),
		new(grpc_testing.Empty))
	require.Equal(t, codes.Unimplemented, status.Code(err))
	require.Contains(t, err.Error(), "unknown service")
	idle(t, s)
}

func TestInteropGzip(t *testing.T) {
	s, _, c, _ := interop(t, Options{MaxRecv: 1 << 20})
	zip := grpc.UseCompressor(gzip.Name)
	resp, err := c.UnaryCall(rpctest.Within(t),
		&grpc_testing.SimpleRequest{ResponseSize: 314159, Payload: rpctest.Payload(271828)}, zip)
	require.NoError(t, err)
	require.Len(t, resp.Payload.Body, 314159)
	st, err := c.StreamingInputCall(rpctest.Within(t), zip)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t,
			st.Send(&grpc_testing.StreamingInputCallRequest{Payload: rpctest.Payload(100_000)}))
	}
	sum, err := st.CloseAndRecv()
	require.NoError(t, err)
	require.EqualValues(t, 300_000, sum.AggregatedPayloadSize)
	// What is small on its way must not become large here.
	_, err = c.UnaryCall(rpctest.Within(t),
		&grpc_testing.SimpleRequest{Payload: rpctest.Payload(2 << 20)}, zip)
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	idle(t, s)
}

func TestInteropMessageSizes(t *testing.T) {
	s, _, c, _ := interop(t, Options{MaxRecv: 100_000, MaxSend: 200_000})
	t.Run("unary", func(t *testing.T) {
		_, err := c.UnaryCall(rpctest.Within(t),
			&grpc_testing.SimpleRequest{Payload: rpctest.Payload(100_001)})
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		_, err = c.UnaryCall(rpctest.Within(t), &grpc_testing.SimpleRequest{ResponseSize: 200_001})
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		_, err = c.UnaryCall(rpctest.Within(t),
			&grpc_testing.SimpleRequest{Payload: rpctest.Payload(99_900), ResponseSize: 199_900})
		require.NoError(t, err)
	})
	t.Run("stream", func(t *testing.T) {
		st, err := c.FullDuplexCall(rpctest.Within(t))
		require.NoError(t, err)
		require.NoError(t,
			st.Send(&grpc_testing.StreamingOutputCallRequest{
				ResponseParameters: rpctest.Outputs(10), Payload: rpctest.Payload(99_000),
			}))
		_, err = st.Recv()
		require.NoError(t, err)
		require.NoError(t,
			st.Send(&grpc_testing.StreamingOutputCallRequest{Payload: rpctest.Payload(100_001)}))
		_, err = st.Recv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		st, err = c.FullDuplexCall(rpctest.Within(t))
		require.NoError(t, err)
		require.NoError(t,
			st.Send(&grpc_testing.StreamingOutputCallRequest{
				ResponseParameters: rpctest.Outputs(200_001),
			}))
		_, err = st.Recv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	idle(t, s)
}

func TestGogo(t *testing.T) {
	for name, inline := range map[string]InlineFunc{"handler": nil, "inline": echoInline} {
		t.Run(name, func(t *testing.T) {
			s, addr := start(t, Options{}, &rpctest.KV{}, inline)
			c := rpctest.DialKV(t, addr)
			for _, n := range []int{0, 1, 1000, 16 << 10, 40_000, 1 << 20} {
				key := bytes.Repeat([]byte{'k'}, n)
				resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: key})
				require.NoError(t, err)
				require.True(t, bytes.Equal(key, resp.Value))
			}
			idle(t, s)
		})
	}
}

// echoInline answers on the reading goroutine.
func echoInline(call *Call, request []byte) bool {
	req := new(kvrpcpb.RawGetRequest)
	if err := req.Unmarshal(request); err != nil {
		return false
	}
	call.Reply(&kvrpcpb.RawGetResponse{Value: req.Key})
	return true
}

// TestOtherClient calls through net/http's HTTP/2, which has nothing in common with grpc's.
func TestOtherClient(t *testing.T) {
	s, _, _, cc := interop(t, Options{})
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	msg, err := proto.Marshal(&grpc_testing.SimpleRequest{
		ResponseSize: 100_000, Payload: rpctest.Payload(70_000),
	})
	require.NoError(t, err)
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
	req, err := http.NewRequestWithContext(rpctest.Within(t), http.MethodPost,
		"http://"+cc.Target()+"/grpc.testing.TestService/UnaryCall", bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, "0", resp.Trailer.Get("Grpc-Status"))
	out := new(grpc_testing.SimpleResponse)
	require.NoError(t, proto.Unmarshal(got[rpc.PrefixSize:], out))
	require.Len(t, out.Payload.Body, 100_000)

	// A request that is not gRPC gets a sentence that says so.
	req, err = http.NewRequestWithContext(rpctest.Within(t), http.MethodGet,
		"http://"+cc.Target()+"/", strings.NewReader(""))
	require.NoError(t, err)
	resp, err = tr.RoundTrip(req)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Equal(t, 405, resp.StatusCode)
	idle(t, s)
}
