package rpc

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// startC serves k until the test ends; inline, if not nil, sees gets first.
func startC(t testing.TB, o Options, k *kv, inline InlineFunc) (*Server, string) {
	return startWithC(t, o, func(s *Server) {
		tinykvpb.RegisterTinyKvServer(s, k)
		if inline != nil {
			s.HandleInline(getPath, inline)
		}
	})
}

func startWithC(t testing.TB, o Options, register func(*Server)) (*Server, string) {
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

// echoInlineC answers on the reading goroutine.
func echoInlineC(call *Call, request []byte) bool {
	req := new(kvrpcpb.RawGetRequest)
	if err := req.Unmarshal(request); err != nil {
		return false
	}
	call.Reply(&kvrpcpb.RawGetResponse{Value: req.Key})
	return true
}

// fixedInlineC allocates nothing.
func fixedInlineC(call *Call, _ []byte) bool { call.Reply(fixedAnswer); return true }

var fixedAnswer = &kvrpcpb.RawGetResponse{Value: make([]byte, 256)}

// inlineBudgetC is what a server allocates for an inline call, as its own test has it.
const inlineBudgetC = 12
