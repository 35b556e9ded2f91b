package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

func keyOf(request []byte) string {
	req := new(kvrpcpb.RawGetRequest)
	_ = req.Unmarshal(request)
	return string(req.Key)
}

func value(v string) *kvrpcpb.RawGetResponse { return &kvrpcpb.RawGetResponse{Value: []byte(v)} }

// TestInlineAnswers at once, later, with an error, twice, or not at all.
func TestInlineAnswers(t *testing.T) {
	handled := &rpctest.KV{Get: func(
		_ context.Context, req *kvrpcpb.RawGetRequest,
	) (*kvrpcpb.RawGetResponse, error) {
		return value("handler: " + string(req.Key)), nil
	}}
	s, addr := start(t, Options{}, handled, func(call *Call, request []byte) bool {
		switch keyOf(request) {
		case "now":
			call.Reply(value("now"))
		case "later":
			go call.Reply(value("later"))
		case "fail":
			call.Fail(status.Error(codes.NotFound, "nothing"))
		case "late failure":
			go call.Fail(context.DeadlineExceeded)
		case "plain failure":
			call.Fail(errors.New("plain"))
		case "twice":
			call.Reply(value("first"))
			call.Reply(value("second"))
			call.Fail(errors.New("third"))
		case "fail twice":
			call.Fail(status.Error(codes.Aborted, "first"))
			call.Reply(value("second"))
		default:
			return false
		}
		return true
	})
	c := rpctest.DialKV(t, addr)
	for range 50 {
		for key, want := range map[string]string{
			"now": "now", "later": "later", "twice": "first", "other": "handler: other",
		} {
			resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte(key)})
			require.NoError(t, err)
			require.Equal(t, want, string(resp.Value))
		}
		for key, want := range map[string]codes.Code{
			"fail": codes.NotFound, "late failure": codes.DeadlineExceeded,
			"plain failure": codes.Unknown, "fail twice": codes.Aborted,
		} {
			_, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte(key)})
			require.Equal(t, want, status.Code(err))
		}
	}
	idle(t, s)
}

// TestInlineDeclines: the handler gets the request as it was, though the reader's memory is used
// again meanwhile.
func TestInlineDeclines(t *testing.T) {
	g := newGate()
	s, addr := start(t, Options{},
		&rpctest.KV{Get: func(
			ctx context.Context, req *kvrpcpb.RawGetRequest,
		) (*kvrpcpb.RawGetResponse, error) {
			<-g.open
			return g.get(ctx, req)
		}}, func(*Call, []byte) bool { return false })
	r := rpctest.Greet(t, addr)
	keys := []string{"first", "second", "third", "a longer key than those that were before it"}
	for i, key := range keys {
		r.Call(uint32(2*i+1), []byte(key))
	}
	r.Sync()
	close(g.open)
	got := map[uint32]string{}
	want := map[uint32]string{}
	for i, key := range keys {
		want[uint32(2*i+1)] = key
	}
	for len(got) < len(keys) {
		f, err := r.Next()
		require.NoError(t, err)
		if d, ok := f.(*http2.DataFrame); ok {
			resp := new(kvrpcpb.RawGetResponse)
			require.NoError(t, resp.Unmarshal(d.Data()[rpc.PrefixSize:]))
			got[d.StreamID] = string(resp.Value)
		}
	}
	require.Equal(t, want, got)
	idle(t, s)
}

// TestInlineDeadline: the client's deadline is known.
func TestInlineDeadline(t *testing.T) {
	type deadline struct {
		at time.Time
		ok bool
	}
	seen := make(chan deadline, 1)
	_, addr := start(t, Options{}, &rpctest.KV{}, func(call *Call, _ []byte) bool {
		at, ok := call.Deadline()
		seen <- deadline{at, ok}
		return false
	})
	r := rpctest.Greet(t, addr)
	r.Works(1, "none")
	require.False(t, rpctest.Wait(t, seen, "a call").ok)
	r.Open(3, rpctest.GetPath, false, "grpc-timeout", "1H")
	r.Data(3, rpctest.EncodedGet(nil), true)
	r.Answer(3)
	d := rpctest.Wait(t, seen, "a call")
	require.True(t, d.ok)
	require.InDelta(t, time.Hour, time.Until(d.at), float64(time.Minute))
}

// TestInlineCancelled: the client does not want an answer any more that comes later.
func TestInlineCancelled(t *testing.T) {
	later := make(chan *Call, 1)
	s, addr := start(t, Options{}, &rpctest.KV{}, func(call *Call, request []byte) bool {
		if keyOf(request) != "later" {
			return false
		}
		later <- call
		return true
	})
	r := rpctest.Greet(t, addr)
	for i := range uint32(20) {
		r.Call(4*i+1, []byte("later"))
		call := rpctest.Wait(t, later, "a call")
		require.NoError(t, r.Framer.WriteRSTStream(4*i+1, http2.ErrCodeCancel))
		if i%2 == 0 {
			r.Works(4*i+3, "between") // now the server has seen the cancellation
			active, streams := only(t, s).counts()
			require.Equal(t, 1, active, "it counts until it is answered")
			require.Zero(t, streams)
		}
		if i%3 == 0 {
			call.Fail(errors.New("too late"))
		} else {
			call.Reply(value("too late"))
		}
	}
	r.Works(1001, "after")
	idle(t, s)
}

// TestAnswerBeforeTheRequest: a call that is refused before all of it has come, and what comes
// then.
func TestAnswerBeforeTheRequest(t *testing.T) {
	s, addr := start(t, Options{MaxRecv: 100}, &rpctest.KV{}, echoInline)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.GetPath, false)
	r.Data(1, []byte{0, 0, 0, 1, 0, 'x'}, false)
	require.Equal(t, "8", r.Answer(1).Status)
	require.Equal(t, http2.ErrCodeNo, r.Answer(1).Code, "the rest is not wanted")
	r.Data(1, make([]byte, 1000), false)
	r.Data(1, nil, true)
	r.Works(3, "after")
	r.Open(5, "/no/such", false)
	require.Equal(t, "12", r.Answer(5).Status)
	r.Data(5, rpctest.EncodedGet([]byte("k")), true)
	r.Works(7, "after")
	idle(t, s)
}
