package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// diary is what interceptors have seen, in order on either side.
type diary struct {
	mu             sync.Mutex
	client, server []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	if strings.HasPrefix(line, "server") {
		d.server = append(d.server, line)
	} else {
		d.client = append(d.client, line)
	}
}

func (d *diary) take() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := strings.Join(append(d.client, d.server...), "\n")
	d.client, d.server = nil, nil
	return text
}

// noted is a stream around another one, as loggers and tracers make it.
type noted struct {
	grpc.ClientStream
	d *diary
}

func (n *noted) RecvMsg(m any) error {
	err := n.ClientStream.RecvMsg(m)
	if err == io.EOF {
		n.d.note("client end")
	} else {
		n.d.note("client received: %v", status.Code(err))
	}
	return err
}

// clientInterceptors inject metadata, note what comes of calls, try again, and give up, as such
// packages do.
func clientInterceptors(d *diary) ([]grpc.UnaryClientInterceptor, []grpc.StreamClientInterceptor) {
	unary := func(name string) grpc.UnaryClientInterceptor {
		return func(
			ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption,
		) error {
			d.note("%s of %s to %v", name, method, cc.Target() != "")
			err := next(metadata.AppendToOutgoingContext(ctx, "trail", name), method, req, reply,
				cc, opts...)
			d.note("%s: %v", name, status.Code(err))
			return err
		}
	}
	again := func(
		ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		err := next(ctx, method, req, reply, cc, opts...)
		if status.Code(err) == codes.Aborted {
			err = next(metadata.AppendToOutgoingContext(ctx, "again", "1"), method, req, reply, cc,
				opts...)
		}
		return err
	}
	impatient := func(
		ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		if md, _ := metadata.FromOutgoingContext(ctx); len(md.Get("leave")) > 0 {
			var leave context.CancelFunc
			ctx, leave = context.WithCancel(ctx)
			leave()
		}
		return next(ctx, method, req, reply, cc, opts...)
	}
	stream := func(
		ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		d.note("stream %s %v %v to %v", method, desc.ClientStreams, desc.ServerStreams,
			cc.Target() != "")
		st, err := next(metadata.AppendToOutgoingContext(ctx, "trail", "stream"), desc, cc, method,
			opts...)
		if err != nil {
			return nil, err
		}
		return &noted{st, d}, nil
	}
	second := func(
		ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		return next(metadata.AppendToOutgoingContext(ctx, "trail", "second"), desc, cc, method,
			opts...)
	}
	return []grpc.UnaryClientInterceptor{unary("outer"), again, unary("inner"), impatient},
		[]grpc.StreamClientInterceptor{stream, second}
}

type userKey struct{}

// user is a server's stream with a context of its own.
type user struct {
	grpc.ServerStream
	ctx context.Context
	d   *diary
}

func (u *user) Context() context.Context { return u.ctx }

func (u *user) RecvMsg(m any) error {
	err := u.ServerStream.RecvMsg(m)
	u.d.note("server received: %v", err == nil)
	return err
}

// serverInterceptors recover from panics, refuse callers without a token, and tell handlers who
// calls.
func serverInterceptors(d *diary) ([]grpc.UnaryServerInterceptor, []grpc.StreamServerInterceptor) {
	auth := func(ctx context.Context) (context.Context, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if len(md.Get("token")) != 1 {
			return nil, status.Error(codes.Unauthenticated, "no token")
		}
		return context.WithValue(ctx, userKey{}, md.Get("token")[0]), nil
	}
	recovered := func(err *error) {
		if p := recover(); p != nil {
			*err = status.Errorf(codes.Internal, "panic: %v", p)
		}
	}
	return []grpc.UnaryServerInterceptor{
			func(
				ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
			) (_ any, err error) {
				defer recovered(&err)
				d.note("server %s %T", info.FullMethod, req)
				_, ok := info.Server.(tinykvpb.TinyKvServer)
				d.note("server impl %v", ok)
				return next(ctx, req)
			},
			func(
				ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler,
			) (any, error) {
				ctx, err := auth(ctx)
				if err != nil {
					return nil, err
				}
				return next(ctx, req)
			},
		}, []grpc.StreamServerInterceptor{
			func(
				impl any, st grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler,
			) (err error) {
				defer recovered(&err)
				d.note("server stream %s %v %v", info.FullMethod, info.IsClientStream,
					info.IsServerStream)
				return next(impl, st)
			},
			func(
				impl any, st grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler,
			) error {
				ctx, err := auth(st.Context())
				if err != nil {
					return err
				}
				return next(impl, &user{st, ctx, d})
			},
		}
}

// interceptedKV answers with who calls, and by which interceptors of the client the call went; by
// its key it panics, or asks to be called again.
func interceptedKV() *rpctest.KV {
	say := func(ctx context.Context, key []byte) ([]byte, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		switch {
		case string(key) == "panic":
			panic("at the disco")
		case string(key) == "twice" && len(md.Get("again")) == 0:
			return nil, status.Error(codes.Aborted, "again")
		case string(key) == "wait":
			inWait <- struct{}{}
			<-ctx.Done()
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		return []byte(fmt.Sprint(ctx.Value(userKey{}), md.Get("trail"))), nil
	}
	return &rpctest.KV{
		Get: func(
			ctx context.Context, req *kvrpcpb.RawGetRequest,
		) (*kvrpcpb.RawGetResponse, error) {
			v, err := say(ctx, req.Key)
			return &kvrpcpb.RawGetResponse{Value: v}, err
		},
		Stream: func(st grpc.ServerStream) error {
			req := new(kvrpcpb.RawGetRequest)
			if err := st.RecvMsg(req); err != nil {
				return err
			}
			v, err := say(st.Context(), req.Key)
			if err != nil {
				return err
			}
			return st.SendMsg(&kvrpcpb.RawGetResponse{Value: v})
		},
	}
}

// inWait has each call of a handler that waits for the end of its context.
var inWait = make(chan struct{}, 1)

// interceptedStory makes calls of all kinds, and returns what came of them and what interceptors
// have seen.
func interceptedStory(t *testing.T, cc grpc.ClientConnInterface, d *diary) string {
	var out strings.Builder
	tell := func(what string, v []byte, err error) {
		fmt.Fprintf(&out, "%s: %q %v %q\n", what, v, status.Code(err),
			status.Convert(err).Message())
		for line := range strings.Lines(d.take()) {
			fmt.Fprintf(&out, "  %s\n", strings.TrimSpace(line))
		}
	}
	with := metadata.AppendToOutgoingContext(t.Context(), "token", "me")
	for _, key := range []string{"k", "panic", "twice"} {
		resp := new(kvrpcpb.RawGetResponse)
		err := cc.Invoke(with, rpctest.GetPath, &kvrpcpb.RawGetRequest{Key: []byte(key)}, resp)
		tell("get "+key, resp.Value, err)
		v, err := streamGet(with, cc, key)
		tell("stream "+key, v, err)
	}
	resp := new(kvrpcpb.RawGetResponse)
	tell("without a token", nil,
		cc.Invoke(t.Context(), rpctest.GetPath, &kvrpcpb.RawGetRequest{Key: []byte("k")}, resp))
	_, err := streamGet(t.Context(), cc, "k")
	tell("stream without a token", nil, err)
	tell("cancelled by an interceptor", nil,
		cc.Invoke(metadata.AppendToOutgoingContext(with, "leave", "1"), rpctest.GetPath,
			&kvrpcpb.RawGetRequest{}, resp))
	// The handler has the call before it is cancelled, so that what its interceptors note is in
	// this story.
	leaving, cancel := context.WithCancel(with)
	defer cancel()
	waits := make(chan error, 1)
	go func() {
		waits <- cc.Invoke(leaving, rpctest.GetPath, &kvrpcpb.RawGetRequest{Key: []byte("wait")},
			resp)
	}()
	<-inWait
	cancel()
	tell("cancelled by its caller", nil, <-waits)
	return out.String()
}

func streamGet(ctx context.Context, cc grpc.ClientConnInterface, key string) ([]byte, error) {
	st, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		rpctest.StreamPath)
	if err != nil {
		return nil, err
	}
	// the server may have refused already
	if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte(key)}); err != nil && err != io.EOF {
		return nil, err
	}
	resp := new(kvrpcpb.RawGetResponse)
	if err := st.RecvMsg(resp); err != nil {
		return nil, err
	}
	if err := st.RecvMsg(new(kvrpcpb.RawGetResponse)); err != io.EOF {
		return nil, fmt.Errorf("no end: %w", err)
	}
	return resp.Value, nil
}

// TestInterceptors: both sides call interceptors as grpc-go's do. The story with grpc-go on both
// sides is the yardstick.
func TestInterceptors(t *testing.T) {
	var d diary
	su, ss := serverInterceptors(&d)
	cu, cs := clientInterceptors(&d)
	_, ours := startWith(t, server.Options{UnaryInterceptors: su, StreamInterceptors: ss},
		func(s *server.Server) {
			tinykvpb.RegisterTinyKvServer(s, interceptedKV())
			s.HandleInline(rpctest.GetPath, func(*server.Call, []byte) bool {
				panic("it would pass by the interceptors")
			})
		})
	gs := grpc.NewServer(grpc.ChainUnaryInterceptor(su...), grpc.ChainStreamInterceptor(ss...),
		codec.ServerOption())
	tinykvpb.RegisterTinyKvServer(gs, interceptedKV())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- gs.Serve(l) }()
	t.Cleanup(func() { gs.Stop(); require.NoError(t, <-served) })

	story := func(addr string, own bool) string {
		if own {
			c := New(addr, Options{UnaryInterceptors: cu, StreamInterceptors: cs})
			defer func() { require.NoError(t, c.Close()) }()
			return interceptedStory(t, c, &d)
		}
		cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithChainUnaryInterceptor(cu...), grpc.WithChainStreamInterceptor(cs...),
			grpc.WithDefaultCallOptions(codec.CallOption()))
		require.NoError(t, err)
		defer func() { require.NoError(t, cc.Close()) }()
		return interceptedStory(t, cc, &d)
	}
	want := story(l.Addr().String(), false)
	require.Contains(t, want, `get k: "me[outer inner]" OK`)
	require.Contains(t, want, `stream k: "me[stream second]" OK`)
	require.Contains(t, want, `get panic: "" Internal "panic: at the disco"`)
	require.Contains(t, want, `get twice: "me[outer inner]" OK`)
	require.Contains(t, want, `without a token: "" Unauthenticated`)
	require.Contains(t, want, `cancelled by an interceptor: "" Canceled`)
	for name, got := range map[string]string{
		"client": story(l.Addr().String(), true), "server": story(ours, false),
		"both": story(ours, true),
	} {
		require.Equal(t, want, got, name)
	}
}

// TestInterceptorsUseTheirConnection: an interceptor may make a call of its own on the connection
// that it gets.
func TestInterceptorsUseTheirConnection(t *testing.T) {
	_, addr := start(t, server.Options{}, &rpctest.KV{}, nil)
	c := New(addr, Options{UnaryInterceptors: []grpc.UnaryClientInterceptor{
		func(
			ctx context.Context, method string, _, reply any, cc *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption,
		) error {
			return cc.Invoke(ctx, method, &kvrpcpb.RawGetRequest{Key: []byte("instead")}, reply,
				codec.CallOption())
		},
	}})
	defer func() { require.NoError(t, c.Close()) }()
	resp := new(kvrpcpb.RawGetResponse)
	require.NoError(t,
		c.Invoke(t.Context(), rpctest.GetPath, &kvrpcpb.RawGetRequest{Key: []byte("k")}, resp))
	require.Equal(t, "instead", string(resp.Value))
}
