package client

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves k until the test ends; inline, if not nil, sees gets first.
func start(
	t testing.TB, o server.Options, k *rpctest.KV, inline server.InlineFunc,
) (*server.Server, string) {
	return startWith(t, o, func(s *server.Server) {
		tinykvpb.RegisterTinyKvServer(s, k)
		if inline != nil {
			s.HandleInline(rpctest.GetPath, inline)
		}
	})
}

func startWith(
	t testing.TB, o server.Options, register func(*server.Server),
) (*server.Server, string) {
	t.Helper()
	s := server.New(o)
	register(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		require.ErrorIs(t, <-done, server.ErrStopped)
	})
	return s, l.Addr().String()
}

// echoInline answers on the reading goroutine.
func echoInline(call *server.Call, request []byte) bool {
	req := new(kvrpcpb.RawGetRequest)
	if err := req.Unmarshal(request); err != nil {
		return false
	}
	call.Reply(&kvrpcpb.RawGetResponse{Value: req.Key})
	return true
}

// fixedInline allocates nothing.
func fixedInline(call *server.Call, _ []byte) bool { call.Reply(fixedAnswer); return true }

var fixedAnswer = &kvrpcpb.RawGetResponse{Value: make([]byte, 256)}

// inlineBudget is what a server allocates for an inline call, as its own test has it.
const inlineBudget = 12
