package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// mirror sends a call's metadata back, that of names with t- in the trailer, and fails if the key
// says so.
func mirror(ctx context.Context, key []byte) error {
	if p, ok := peer.FromContext(ctx); !ok || p.Addr.Network() != "tcp" {
		return errors.New("no peer")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	header, trailer := metadata.MD{}, metadata.MD{}
	for name, values := range md {
		if strings.HasPrefix(name, "t-") {
			trailer[name] = values
		} else if strings.HasPrefix(name, "h-") {
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

var mirrored = metadata.MD{
	"h-a": {"x", "y"}, "h-b-bin": {"\x00\xff", ""}, "t-a": {"z"}, "t-b-bin": {"1234"},
	"other": {"o"},
}

// TestMetadata: grpc-go's client gets back what it has sent, with answers and with errors, which
// have details.
func TestMetadata(t *testing.T) {
	s, addr := start(t, Options{}, mirrorKV(), nil)
	c := rpctest.DialKV(t, addr)
	check := func(header, trailer metadata.MD, err error, fails bool) {
		t.Helper()
		require.Equal(t, mirrored["h-a"], header["h-a"])
		require.Equal(t, mirrored["h-b-bin"], header["h-b-bin"])
		require.NotContains(t, header, "other")
		require.Equal(t, mirrored["t-a"], trailer["t-a"])
		require.Equal(t, mirrored["t-b-bin"], trailer["t-b-bin"])
		if !fails {
			require.NoError(t, err)
			return
		}
		st := status.Convert(err)
		require.Equal(t, codes.NotFound, st.Code())
		require.Equal(t, "as asked for", st.Message())
		require.Len(t, st.Details(), 1)
	}
	for range 5 { // the header tables know some of it
		for _, key := range []string{"k", "fail"} {
			ctx := metadata.NewOutgoingContext(rpctest.Within(t), mirrored)
			var header, trailer metadata.MD
			_, err := c.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: []byte(key)}, grpc.Header(&header),
				grpc.Trailer(&trailer))
			check(header, trailer, err, key == "fail")

			st, err := c.BatchCommands(ctx)
			require.NoError(t, err)
			require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte(key)}))
			header, err = st.Header()
			require.NoError(t, err)
			err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
			if key != "fail" {
				require.NoError(t, err)
				require.Error(t, st.RecvMsg(new(kvrpcpb.RawGetResponse)), "the end")
				err = nil
			}
			check(header, st.Trailer(), err, key == "fail")
			_, err = c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")})
			require.NoError(t, err, "a call without metadata")
		}
	}
	idle(t, s)
}

// TestMetadataOfACall: what may be set when, and what an inline call sees.
func TestMetadataOfACall(t *testing.T) {
	_, addr := start(t, Options{MaxHeaderBytes: 4 << 10}, &rpctest.KV{},
		func(call *Call, request []byte) bool {
			require.Equal(t, rpctest.GetPath, call.Method())
			if keyOf(request) == "none" {
				require.Nil(t, call.Metadata())
				call.Reply(value(""))
				return true
			}
			require.Equal(t, []string{"x", "y"}, call.Metadata()["h-a"])
			require.Equal(t, codes.Internal, status.Code(call.SetHeader(metadata.MD{"Bad": {"x"}})))
			require.Equal(t, codes.ResourceExhausted,
				status.Code(call.SetTrailer(metadata.Pairs("a", strings.Repeat("x", 5<<10)))))
			require.NoError(t, call.SetHeader(metadata.Pairs("h", "1")))
			require.NoError(t, call.SendHeader(metadata.Pairs("h", "2")))
			require.Equal(t, codes.Internal, status.Code(call.SetHeader(metadata.Pairs("h", "3"))))
			require.NoError(t, call.SetTrailer(metadata.Pairs("t", "1")))
			call.Reply(value("v"))
			return true
		})
	c := rpctest.DialKV(t, addr)
	for range 3 {
		var header, trailer metadata.MD
		resp, err := c.RawGet(metadata.NewOutgoingContext(rpctest.Within(t), mirrored),
			&kvrpcpb.RawGetRequest{},
			grpc.Header(&header), grpc.Trailer(&trailer))
		require.NoError(t, err)
		require.Equal(t, "v", string(resp.Value))
		require.Equal(t, []string{"1", "2"}, header["h"])
		require.Equal(t, []string{"1"}, trailer["t"])
	}
	r := rpctest.Greet(t, addr)
	r.Call(1, []byte("none"))
	require.Equal(t, "0", r.Answer(1).Status)
}

// TestMalformedBinaryMetadata ends the call, and not the connection.
func TestMalformedBinaryMetadata(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.GetPath, false, "x-bin", "*")
	a := r.Answer(1)
	require.Equal(t, "13", a.Status)
	require.Contains(t, a.Message, "x-bin")
	r.Works(3, "k")
	idle(t, s)
}

// TestContentLength: a request that is longer or shorter than it says is malformed (RFC 9113,
// 8.1.1).
func TestContentLength(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	msg := rpctest.EncodedGet([]byte("key"))
	for name, tc := range map[string]struct {
		length []string
		send   func(r *rpctest.Raw, id uint32)
		reset  bool
	}{
		"right": {[]string{"content-length", "10"}, func(r *rpctest.Raw, id uint32) {
			r.Data(id, msg, true)
		}, false},
		"in frames": {[]string{"content-length", "10"}, func(r *rpctest.Raw, id uint32) {
			r.Data(id, msg[:3], false)
			r.Data(id, msg[3:], true)
		}, false},
		"padded": {[]string{"content-length", "10"}, func(r *rpctest.Raw, id uint32) {
			_ = r.Framer.WriteDataPadded(id, true, msg, make([]byte, 9))
		}, false},
		"longer": {[]string{"content-length", "9"}, func(r *rpctest.Raw, id uint32) {
			r.Data(id, msg, true)
		}, true},
		"shorter": {[]string{"content-length", "11"}, func(r *rpctest.Raw, id uint32) {
			r.Data(id, msg, true)
		}, true},
		"nothing": {[]string{"content-length", "1"}, func(r *rpctest.Raw, id uint32) {
			r.Data(id, nil, true)
		}, true},
		"trailers": {[]string{"content-length", "11"}, func(r *rpctest.Raw, id uint32) {
			r.Data(id, msg, false)
			_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, EndHeaders: true, EndStream: true,
			})
		}, true},
		"twice": {
			[]string{"content-length", "10", "content-length", "10"},
			func(r *rpctest.Raw, id uint32) { r.Data(id, msg, true) }, false,
		},
		"contradiction": {
			[]string{"content-length", "10", "content-length", "11"}, func(*rpctest.Raw, uint32) {},
			true,
		},
		"no number": {[]string{"content-length", "+10"}, func(*rpctest.Raw, uint32) {}, true},
	} {
		t.Run(name, func(t *testing.T) {
			require.Len(t, msg, 10)
			r := rpctest.Greet(t, addr)
			for i := range uint32(3) {
				id := 4*i + 1
				r.Open(id, rpctest.GetPath, false, tc.length...)
				tc.send(r, id)
				a := r.Answer(id)
				require.Equal(t, tc.reset, a.Reset, "%+v", a)
				if tc.reset {
					require.Equal(t, http2.ErrCodeProtocol, a.Code)
				} else {
					require.Equal(t, "key", string(a.Value))
				}
				r.Works(id+2, "next")
			}
		})
	}
	idle(t, s)
}

// TestNotGRPCIsAnsweredAtItsEnd: a request that is no call has its answer when it has ended, or has
// used its window up.
func TestNotGRPCIsAnsweredAtItsEnd(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	html := []string{"content-type", "text/html"}
	open := func(id uint32, extra ...string) {
		r.Buf.Reset()
		block := r.Block(rpctest.GetPath, extra...)
		require.NoError(t,
			r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: block, EndHeaders: true,
			}))
	}
	open(1, html...)
	r.Data(1, []byte("some"), false)
	r.Sync() // fails if the answer came before: it is read with the ping's
	require.Equal(t, 1, s.Stats().Calls)
	r.Data(1, []byte("more"), true)
	a := r.Answer(1)
	require.Equal(t, "415", a.HTTP)
	require.False(t, a.Reset)

	open(3, html...)
	r.Data(3, make([]byte, 65535), false)
	require.Equal(t, "415", r.Answer(3).HTTP)

	open(5, html...)
	require.NoError(t, r.Framer.WriteRSTStream(5, http2.ErrCodeCancel))
	r.Sync()
	idle(t, s)
	r.Works(7, "k")
}

// TestMetadataIsBounded: what clients hold of it in calls that do not end counts as requests do.
func TestMetadataIsBounded(t *testing.T) {
	const limit = 64 << 10
	s, addr := start(t, Options{MaxRecv: 1 << 10, MaxRequests: limit}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	large := strings.Repeat("x", 10<<10)
	for id := uint32(1); id < 100; id += 2 {
		r.Open(id, []string{rpctest.GetPath, rpctest.StreamPath}[id/2%2], false, "k", large)
	}
	require.Eventually(t, func() bool {
		return s.Stats().BusyRequests >= 43
	}, rpctest.Patience, time.Millisecond)
	require.LessOrEqual(t, s.Stats().RequestBytes, int64(limit))
	require.Equal(t, "8", r.Answer(99).Status)
	rpctest.Greet(t, addr).Works(1, "k")
	require.NoError(t, r.Conn.Close())
	idle(t, s)
	// A call does not count any more before the last of its bytes does not.
	require.Eventually(t, func() bool {
		return s.Stats().RequestBytes == 0
	}, rpctest.Patience, time.Millisecond)
}
