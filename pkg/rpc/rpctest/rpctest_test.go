package rpctest_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestPeer: grpc-go's client understands what a Peer says.
func TestPeer(t *testing.T) {
	l := rpctest.Listen(t)
	cc := rpctest.Dial(t, l.Address())
	res := rpctest.Get(rpctest.Within(t), cc, []byte("k"))
	p := l.Greeted()
	require.NoError(t, p.Framer.WriteSettingsAck())
	id, key := p.Asked()
	require.Equal(t, "k", key)
	p.Reply(id, "v")
	r := rpctest.Wait(t, res, "the answer")
	require.NoError(t, r.Err)
	require.Equal(t, "v", string(r.Value))
}
