package client

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// silent is a server that answers nothing: calls are ended by the client or not at all.
func silent(t *testing.T) (*Client, *rpctest.Peer) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	first := rpctest.Get(rpctest.Within(t), c, []byte("k"))
	p := l.Greeted()
	id, _ := p.Asked()
	p.Reply(id, "v")
	require.NoError(t, rpctest.Wait(t, first, "the first answer").Err)
	return c, p
}

// TestConnectionEndsCallsAtTheirDeadlines: calls end in the order of their deadlines, whatever the
// order in which they began, and those that have more time are left alone.
func TestConnectionEndsCallsAtTheirDeadlines(t *testing.T) {
	c, p := silent(t)
	now := time.Now()
	first, second := now.Add(600*time.Millisecond), now.Add(800*time.Millisecond)
	late := rpctest.Get(WithDeadline(rpctest.Within(t), second), c, []byte("late"))
	lateID, _ := p.Asked()
	soon := rpctest.Get(WithDeadline(rpctest.Within(t), first), c, []byte("soon"))
	soonID, _ := p.Asked()
	long := rpctest.Get(WithDeadline(rpctest.Within(t), now.Add(rpctest.Patience)), c,
		[]byte("long"))
	longID, _ := p.Asked()
	require.Equal(t, codes.DeadlineExceeded,
		status.Code(rpctest.Wait(t, soon, "the first deadline").Err))
	require.False(t, time.Now().Before(first))
	require.Equal(t, codes.DeadlineExceeded,
		status.Code(rpctest.Wait(t, late, "the second deadline").Err))
	require.False(t, time.Now().Before(second))
	require.Equal(t, http2.ErrCodeCancel, p.Reset(soonID))
	require.Equal(t, http2.ErrCodeCancel, p.Reset(lateID))
	p.Reply(lateID, "of nobody") // what comes after all
	p.Reply(longID, "v")
	r := rpctest.Wait(t, long, "the answer")
	require.NoError(t, r.Err)
	require.Equal(t, "v", string(r.Value))

	again := rpctest.Get(WithDeadline(rpctest.Within(t), time.Now().Add(20*time.Millisecond)), c,
		[]byte("again"))
	require.Equal(t, codes.DeadlineExceeded,
		status.Code(rpctest.Wait(t, again, "the deadline after a pause").Err))
}

func TestDeadlineOfAParent(t *testing.T) {
	c, p := silent(t)
	parent, cancel := context.WithTimeout(rpctest.Within(t), 20*time.Millisecond)
	defer cancel()
	ctx := WithDeadline(parent, time.Now().Add(rpctest.Patience))
	d, _ := ctx.Deadline()
	want, _ := parent.Deadline()
	require.Equal(t, want, d)
	require.Equal(t, codes.DeadlineExceeded,
		status.Code(rpctest.Wait(t, rpctest.Get(ctx, c, []byte("k")), "the parent's deadline").Err))

	parent, stop := context.WithCancel(rpctest.Within(t))
	cancelled := rpctest.Get(WithDeadline(parent, time.Now().Add(rpctest.Patience)), c, []byte("k"))
	_, _ = p.Asked()
	stop()
	require.Equal(t, codes.Canceled,
		status.Code(rpctest.Wait(t, cancelled, "the parent's end").Err))
}

// TestDeadlineThatHasPassed: nothing is sent, and the caller can know.
func TestDeadlineThatHasPassed(t *testing.T) {
	c, _ := silent(t)
	ctx := WithDeadline(rpctest.Within(t), time.Now().Add(-time.Second))
	require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
	err := rpctest.Wait(t, rpctest.Get(ctx, c, []byte("k")), "the call").Err
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	require.True(t, NotSent(err))
	l := c.allLinks()[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(t, l.mu.calls)
}

// TestDeadlineWithoutAConnection: a call waits for a connection no longer than that.
func TestDeadlineWithoutAConnection(t *testing.T) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c := client(t, "nowhere:1", Options{Dial: dial, ConnectTimeout: rpctest.Patience})
	err := rpctest.Wait(t,
		rpctest.Get(WithDeadline(rpctest.Within(t), time.Now().Add(20*time.Millisecond)), c, nil),
		"the deadline").Err
	require.Equal(t, codes.DeadlineExceeded, status.Code(err), "%v", err)
	require.True(t, NotSent(err))
	require.True(t, NotConnected(err))
}

// TestDeadlineOfAStream and of calls that wait for their turn.
func TestDeadlineOfAStream(t *testing.T) {
	h := newHanging()
	_, addr := start(t, server.Options{MaxStreams: 1}, &h.KV, nil)
	c := client(t, addr, Options{})
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(WithDeadline(rpctest.Within(t),
		time.Now().Add(rpctest.Patience/2)))
	require.NoError(t, err)
	rpctest.Wait(t, h.left, "the stream's handler")
	err = rpctest.Wait(t,
		rpctest.Get(WithDeadline(rpctest.Within(t), time.Now().Add(20*time.Millisecond)), c, nil),
		"the call in the queue").Err
	require.Equal(t, codes.DeadlineExceeded, status.Code(err), "%v", err)
	require.True(t, NotSent(err))
	require.False(t, NotConnected(err))
	require.NoError(t, st.Context().Err())

	c2 := client(t, addr, Options{})
	st, err = tinykvpb.NewTinyKvClient(c2).BatchCommands(WithDeadline(rpctest.Within(t),
		time.Now().Add(30*time.Millisecond)))
	require.NoError(t, err)
	require.Equal(t, codes.DeadlineExceeded, status.Code(st.RecvMsg(new(kvrpcpb.RawGetResponse))))
}
