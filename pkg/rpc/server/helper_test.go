package server

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves k until the test ends; inline, if not nil, sees gets first.
func start(t testing.TB, o Options, k *rpctest.KV, inline InlineFunc) (*Server, string) {
	return startWith(t, o, func(s *Server) {
		tinykvpb.RegisterTinyKvServer(s, k)
		if inline != nil {
			s.HandleInline(rpctest.GetPath, inline)
		}
	})
}

func startWith(t testing.TB, o Options, register func(*Server)) (*Server, string) {
	t.Helper()
	s := New(o)
	register(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		require.ErrorIs(t, <-done, ErrStopped)
	})
	return s, l.Addr().String()
}

func (s *Server) allConns() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*conn
	for c := range s.mu.conns {
		out = append(out, c)
	}
	return out
}

// counts is what a connection believes about its calls.
func (c *conn) counts() (active, streams int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.mu.active), len(c.mu.streams)
}

// idle waits until no connection has calls.
func idle(t testing.TB, s *Server) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, c := range s.allConns() {
			if a, n := c.counts(); a != 0 || n != 0 {
				return false
			}
		}
		return true
	}, rpctest.Patience, time.Millisecond, "calls are left")
}

// only is the one connection of a server.
func only(t testing.TB, s *Server) *conn {
	t.Helper()
	require.Eventually(t, func() bool {
		return len(s.allConns()) == 1
	}, rpctest.Patience, time.Millisecond)
	return s.allConns()[0]
}
