package rpc

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	handled := &kv{get: func(_ context.Context, req *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
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
	c := dialKv(t, addr)
	for range 50 {
		for key, want := range map[string]string{"now": "now", "later": "later", "twice": "first", "other": "handler: other"} {
			resp, err := c.RawGet(within(t), &kvrpcpb.RawGetRequest{Key: []byte(key)})
			require.NoError(t, err)
			require.Equal(t, want, string(resp.Value))
		}
		for key, want := range map[string]codes.Code{
			"fail": codes.NotFound, "late failure": codes.DeadlineExceeded, "plain failure": codes.Unknown, "fail twice": codes.Aborted,
		} {
			_, err := c.RawGet(within(t), &kvrpcpb.RawGetRequest{Key: []byte(key)})
			require.Equal(t, want, status.Code(err))
		}
	}
	idle(t, s)
}

// TestInlineDeclines: the handler gets the request as it was, though the reader's memory is used again meanwhile.
func TestInlineDeclines(t *testing.T) {
	g := newGate()
	s, addr := start(t, Options{}, &kv{get: func(ctx context.Context, req *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
		<-g.open
		return g.get(ctx, req)
	}}, func(*Call, []byte) bool { return false })
	r := greet(t, addr)
	keys := []string{"first", "second", "third", "a longer key than those that were before it"}
	for i, key := range keys {
		r.call(uint32(2*i+1), []byte(key))
	}
	r.sync()
	close(g.open)
	got := map[uint32]string{}
	want := map[uint32]string{}
	for i, key := range keys {
		want[uint32(2*i+1)] = key
	}
	for len(got) < len(keys) {
		f, err := r.next()
		require.NoError(t, err)
		if d, ok := f.(*http2.DataFrame); ok {
			resp := new(kvrpcpb.RawGetResponse)
			require.NoError(t, resp.Unmarshal(d.Data()[prefixSize:]))
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
	_, addr := start(t, Options{}, &kv{}, func(call *Call, _ []byte) bool {
		at, ok := call.Deadline()
		seen <- deadline{at, ok}
		return false
	})
	r := greet(t, addr)
	r.works(1, "none")
	require.False(t, wait(t, seen, "a call").ok)
	r.open(3, getPath, false, "grpc-timeout", "1H")
	r.data(3, message5(nil), true)
	r.answer(3)
	d := wait(t, seen, "a call")
	require.True(t, d.ok)
	require.InDelta(t, time.Hour, time.Until(d.at), float64(time.Minute))
}

// TestInlineCancelled: the client does not want an answer any more that comes later.
func TestInlineCancelled(t *testing.T) {
	later := make(chan *Call, 1)
	s, addr := start(t, Options{}, &kv{}, func(call *Call, request []byte) bool {
		if keyOf(request) != "later" {
			return false
		}
		later <- call
		return true
	})
	r := greet(t, addr)
	for i := range uint32(20) {
		r.call(4*i+1, []byte("later"))
		call := wait(t, later, "a call")
		require.NoError(t, r.fr.WriteRSTStream(4*i+1, http2.ErrCodeCancel))
		if i%2 == 0 {
			r.works(4*i+3, "between") // now the server has seen the cancellation
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
	r.works(1001, "after")
	idle(t, s)
}

// TestAnswerBeforeTheRequest: a call that is refused before all of it has come, and what comes then.
func TestAnswerBeforeTheRequest(t *testing.T) {
	s, addr := start(t, Options{MaxRecv: 100}, &kv{}, echoInline)
	r := greet(t, addr)
	r.open(1, getPath, false)
	r.data(1, []byte{0, 0, 0, 1, 0, 'x'}, false)
	require.Equal(t, "8", r.answer(1).status)
	require.Equal(t, http2.ErrCodeNo, r.answer(1).code, "the rest is not wanted")
	r.data(1, make([]byte, 1000), false)
	r.data(1, nil, true)
	r.works(3, "after")
	r.open(5, "/no/such", false)
	require.Equal(t, "12", r.answer(5).status)
	r.data(5, message5([]byte("k")), true)
	r.works(7, "after")
	idle(t, s)
}
