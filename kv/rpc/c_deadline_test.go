package rpc

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// silent is a server that answers nothing: calls are ended by the client or not at all.
func silent(t *testing.T) (*Client, *peer) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	first := get(within(t), c, []byte("k"))
	p := l.greeted()
	id, _ := p.asked()
	p.reply(id, "v")
	require.NoError(t, wait(t, first, "the first answer").err)
	return c, p
}

// TestConnectionEndsCallsAtTheirDeadlines: calls end in the order of their deadlines, whatever the order in which they
// began, and those that have more time are left alone.
func TestConnectionEndsCallsAtTheirDeadlines(t *testing.T) {
	c, p := silent(t)
	now := time.Now()
	first, second := now.Add(600*time.Millisecond), now.Add(800*time.Millisecond)
	late := get(WithDeadline(within(t), second), c, []byte("late"))
	lateID, _ := p.asked()
	soon := get(WithDeadline(within(t), first), c, []byte("soon"))
	soonID, _ := p.asked()
	long := get(WithDeadline(within(t), now.Add(patience)), c, []byte("long"))
	longID, _ := p.asked()
	require.Equal(t, codes.DeadlineExceeded, status.Code(wait(t, soon, "the first deadline").err))
	require.False(t, time.Now().Before(first))
	require.Equal(t, codes.DeadlineExceeded, status.Code(wait(t, late, "the second deadline").err))
	require.False(t, time.Now().Before(second))
	require.Equal(t, http2.ErrCodeCancel, p.reset(soonID))
	require.Equal(t, http2.ErrCodeCancel, p.reset(lateID))
	p.reply(lateID, "of nobody") // what comes after all
	p.reply(longID, "v")
	r := wait(t, long, "the answer")
	require.NoError(t, r.err)
	require.Equal(t, "v", string(r.value))

	again := get(WithDeadline(within(t), time.Now().Add(20*time.Millisecond)), c, []byte("again"))
	require.Equal(t, codes.DeadlineExceeded, status.Code(wait(t, again, "the deadline after a pause").err))
}

func TestDeadlineOfAParent(t *testing.T) {
	c, p := silent(t)
	parent, cancel := context.WithTimeout(within(t), 20*time.Millisecond)
	defer cancel()
	ctx := WithDeadline(parent, time.Now().Add(patience))
	d, _ := ctx.Deadline()
	want, _ := parent.Deadline()
	require.Equal(t, want, d)
	require.Equal(t, codes.DeadlineExceeded, status.Code(wait(t, get(ctx, c, []byte("k")), "the parent's deadline").err))

	parent, stop := context.WithCancel(within(t))
	cancelled := get(WithDeadline(parent, time.Now().Add(patience)), c, []byte("k"))
	_, _ = p.asked()
	stop()
	require.Equal(t, codes.Canceled, status.Code(wait(t, cancelled, "the parent's end").err))
}

// TestDeadlineThatHasPassed: nothing is sent, and the caller can know.
func TestDeadlineThatHasPassed(t *testing.T) {
	c, _ := silent(t)
	ctx := WithDeadline(within(t), time.Now().Add(-time.Second))
	require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
	err := wait(t, get(ctx, c, []byte("k")), "the call").err
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
	c := client(t, "nowhere:1", ClientOptions{Dial: dial, ConnectTimeout: patience})
	err := wait(t, get(WithDeadline(within(t), time.Now().Add(20*time.Millisecond)), c, nil), "the deadline").err
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	require.True(t, NotSent(err))
}

// TestDeadlineOfAStream and of calls that wait for their turn.
func TestDeadlineOfAStream(t *testing.T) {
	h := newHanging()
	_, addr := startC(t, Options{MaxStreams: 1}, &h.kv, nil)
	c := client(t, addr, ClientOptions{})
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(WithDeadline(within(t), time.Now().Add(patience/2)))
	require.NoError(t, err)
	wait(t, h.left, "the stream's handler")
	err = wait(t, get(WithDeadline(within(t), time.Now().Add(20*time.Millisecond)), c, nil), "the call in the queue").err
	require.Equal(t, codes.DeadlineExceeded, status.Code(err), "%v", err)
	require.True(t, NotSent(err))
	require.NoError(t, st.Context().Err())

	c2 := client(t, addr, ClientOptions{})
	st, err = tinykvpb.NewTinyKvClient(c2).BatchCommands(WithDeadline(within(t), time.Now().Add(30*time.Millisecond)))
	require.NoError(t, err)
	require.Equal(t, codes.DeadlineExceeded, status.Code(st.RecvMsg(new(kvrpcpb.RawGetResponse))))
}
