package server

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// TestGuard: who may not call a method gets the reason, the method is not run, and the connection
// serves on.
func TestGuard(t *testing.T) {
	s, addr := startWith(t, Options{}, func(s *Server) {
		tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{})
		s.Internal(rpctest.StreamPath)
		s.Guard(rpctest.StreamPath, func(nc net.Conn) error {
			if nc.RemoteAddr() == nil {
				return nil
			}
			return status.Error(codes.PermissionDenied, "not you")
		})
		require.Panics(t, func() { s.Guard("/nothing", nil) })
		require.Panics(t, func() { s.Always(rpctest.StreamPath) }, "a stream")
	})
	c := rpctest.DialKV(t, addr)
	st, err := c.BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	_, err = st.Recv()
	require.Equal(t, codes.PermissionDenied, status.Code(err))
	require.ErrorContains(t, err, "not you")
	resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")})
	require.NoError(t, err)
	require.Equal(t, "k", string(resp.Value))
	require.False(t, only(t, s).internal, "a call that is refused proves nothing")
}

// TestAnswersThatAreAlwaysSent: what was carried out is answered, although there is no room for the
// answer.
func TestAnswersThatAreAlwaysSent(t *testing.T) {
	for _, always := range []bool{false, true} {
		s, addr := startWith(t, Options{MaxSend: 2 * mib, MaxAnswers: 8 * mib, Stall: time.Minute},
			func(s *Server) {
				tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{Get: large})
				if always {
					s.Always(rpctest.GetPath)
				}
			})
		s.Answers().Charge(8 * mib) // others hold it all
		resp, err := rpctest.DialKV(t, addr).RawGet(rpctest.Within(t),
			&kvrpcpb.RawGetRequest{Key: []byte("k")})
		if always {
			require.NoError(t, err)
			require.Len(t, resp.Value, mib)
		} else {
			require.Equal(t, codes.ResourceExhausted, status.Code(err))
		}
		s.Answers().Charge(-8 * mib)
	}
}
