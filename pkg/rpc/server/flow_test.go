package server

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// TestTinyWindows: answers come in as many pieces as the client's window asks for.
func TestTinyWindows(t *testing.T) {
	for name, inline := range map[string]InlineFunc{"handler": nil, "inline": echoInline} {
		for _, window := range []uint32{1, 10} {
			t.Run(fmt.Sprint(name, window), func(t *testing.T) {
				s, addr := start(t, Options{}, &rpctest.KV{}, inline)
				r := rpctest.Greet(t, addr, rpctest.Initial(window))
				const key = "0123456789abcdefghijklmnopqrstuvwxyz"
				r.Call(1, []byte(key))
				total := len(rpctest.EncodedGet([]byte(key))) // the answer has the same size
				got := 0
				for got < total {
					f := r.Until("data", func(f http2.Frame) bool {
						_, ok := f.(*http2.DataFrame)
						return ok
					}).(*http2.DataFrame)
					require.LessOrEqual(t, len(f.Data()), int(window))
					got += len(f.Data())
					require.NoError(t, r.Framer.WriteWindowUpdate(1, uint32(len(f.Data()))))
				}
				require.Equal(t, total, got)
				require.Equal(t, "0", r.Answer(1).Status)
				idle(t, s)
			})
		}
	}
}

// TestWindowsChangeDuringACall also to below zero.
func TestWindowsChangeDuringACall(t *testing.T) {
	s, addr := start(t, Options{MinPing: 1}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr, rpctest.Initial(100))
	r.Call(1, bytes.Repeat([]byte{'k'}, 1000))
	r.DataOf(1, 100)
	require.NoError(t, r.Framer.WriteSettings(rpctest.Initial(150)))
	r.DataOf(1, 50)
	require.NoError(t, r.Framer.WriteSettings(rpctest.Initial(50))) // 100 below zero
	require.NoError(t, r.Framer.WriteWindowUpdate(1, 100))          // zero
	r.DataOf(1, 0)
	require.NoError(t, r.Framer.WriteWindowUpdate(1, 7))
	r.DataOf(1, 7)
	require.NoError(t, r.Framer.WriteSettings(rpctest.Initial(60)))
	r.DataOf(1, 10)
	require.NoError(t, r.Framer.WriteSettings(rpctest.Initial(10000)))
	require.Equal(t, "0", r.Answer(1).Status)
	idle(t, s)
}

// TestConnectionWindow: all calls share it, and none is forgotten.
func TestConnectionWindow(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, echoInline)
	r := rpctest.Greet(t, addr, rpctest.Initial(1<<20))
	const calls, size = 8, 20_000
	for i := range uint32(calls) {
		r.Call(2*i+1, bytes.Repeat([]byte{'a' + byte(i)}, size))
	}
	got := map[uint32]*strings.Builder{}
	ended := 0
	for ended < calls {
		f, err := r.Next()
		require.NoError(t, err)
		switch f := f.(type) {
		case *http2.DataFrame:
			if got[f.StreamID] == nil {
				got[f.StreamID] = new(strings.Builder)
			}
			got[f.StreamID].Write(f.Data())
			require.NoError(t, r.Framer.WriteWindowUpdate(0, f.Length))
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				ended++
			}
		}
	}
	for i := range uint32(calls) {
		require.Contains(t, got[2*i+1].String(), strings.Repeat(string(rune('a'+i)), size))
	}
	idle(t, s)
}

func TestMaxFrameSize(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, echoInline)
	r := rpctest.Greet(t, addr, rpctest.Initial(1<<20),
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: 50_000})
	r.Framer.SetMaxReadFrameSize(50_000)
	require.NoError(t, r.Framer.WriteWindowUpdate(0, 1<<20))
	for i, n := range []int{20_000, 45_000, 60_000} {
		id := uint32(2*i + 1)
		key := bytes.Repeat([]byte{'k'}, n)
		r.Call(id, key)
		a := r.Answer(id)
		require.True(t, bytes.Equal(key, a.Value))
		require.Equal(t, min(len(rpctest.EncodedGet(key)), 50_000), a.LargestDataIn)
	}
	idle(t, s)
}

func TestHeaderTableSizeChanges(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, echoInline)
	r := rpctest.Greet(t, addr)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range uint32(60) {
		if n := []uint32{0, 60, 104, 200, 256, 4096, 1 << 20}[rnd.IntN(7)]; rnd.IntN(3) == 0 {
			// The server may use the new size as soon as it has it.
			require.NoError(t,
				r.Framer.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: n}))
			r.Framer.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(max(n, rpc.TableSize))
		}
		if rnd.IntN(4) == 0 {
			r.Open(2*i+1, "/tinykvpb.TinyKv/"+strings.Repeat("x", rnd.IntN(50)), true)
			require.Equal(t, "12", r.Answer(2*i+1).Status)
		} else {
			r.Works(2*i+1, "k")
		}
	}
	idle(t, s)
}

// TestStreamWindow: a client can send StreamWindow bytes ahead of a handler, and more when that
// takes them.
func TestStreamWindow(t *testing.T) {
	const window, size = 65535, 1000
	take := make(chan int)
	s, addr := start(t, Options{StreamWindow: window},
		&rpctest.KV{Stream: func(st grpc.ServerStream) error {
			for n := range take {
				for range n {
					if err := st.RecvMsg(new(kvrpcpb.RawGetRequest)); err != nil {
						return err
					}
				}
			}
			return nil
		}}, nil)
	t.Cleanup(func() { close(take) })
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.StreamPath, false)
	msg := rpctest.EncodedGet(make([]byte, size-rpc.PrefixSize-3))
	require.Len(t, msg, size)
	r.Sync()
	for range window / size {
		r.Data(1, msg, false)
	}
	take <- 20 // more than a quarter
	u := r.Until("a window", func(f http2.Frame) bool {
		w, ok := f.(*http2.WindowUpdateFrame)
		return ok && w.StreamID == 1
	}).(*http2.WindowUpdateFrame)
	require.GreaterOrEqual(t, int(u.Increment), window/4)
	more := (int(u.Increment) + window%size) / size
	for range more {
		r.Data(1, msg, false)
	}
	r.Sync()
	r.Data(1, msg, false)
	require.Equal(t, http2.ErrCodeFlowControl, r.Answer(1).Code)
	active, _ := only(t, s).counts()
	require.Equal(t, 1, active, "the handler does not know yet")
}

// TestQueueOfAStreamIsBounded: messages larger than the window may come, but not one after the
// other.
func TestQueueOfAStreamIsBounded(t *testing.T) {
	const window, limit = 65535, 1 << 20
	open := make(chan struct{})
	s, addr := start(t, Options{StreamWindow: window, MaxRecv: limit, MinPing: 1},
		&rpctest.KV{Stream: func(grpc.ServerStream) error {
			<-open
			return nil
		}}, nil)
	t.Cleanup(func() { close(open) })
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.StreamPath, false)
	r.Sync()
	c := only(t, s)
	c.mu.Lock()
	st := c.mu.streams[1].stream
	c.mu.Unlock()
	small, large := rpctest.EncodedGet(make([]byte, 32_000)),
		rpctest.EncodedGet(make([]byte, limit-10))
	r.Data(1, small, false)
	r.Data(1, small[:1000], false)
	r.Data(1, small[1000:], false)
	for range 8 { // the last frame of each takes one byte of the window
		r.Data(1, large[:len(large)-1], false)
		r.Data(1, large[len(large)-1:], false)
	}
	r.Sync()
	_, queued, _ := st.in.Queued()
	require.LessOrEqual(t, queued, limit+window)
}

// TestMessageLargerThanTheWindow: also several, while the handler takes its time.
func TestMessageLargerThanTheWindow(t *testing.T) {
	s, addr := start(t, Options{StreamWindow: 65535, ConnWindow: 65535}, &rpctest.KV{}, nil)
	c := rpctest.DialKV(t, addr)
	big := bytes.Repeat([]byte{'b'}, 1<<20)
	resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: big})
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, resp.Value))

	st, err := c.BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	sizes := []int{10, 1 << 20, 40_000, 70_000, 1, 1 << 20, 1 << 20, 60_000, 60_000}
	var g rpctest.Group
	g.Go(func() error {
		for _, n := range sizes {
			if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: big[:n]}); err != nil {
				return err
			}
		}
		return st.CloseSend()
	})
	for _, n := range sizes {
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(t, st.RecvMsg(resp))
		require.True(t, bytes.Equal(big[:n], resp.Value))
	}
	require.Equal(t, io.EOF, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
	require.NoError(t, g.Wait())
	idle(t, s)
}

// TestMessagesBehindAMessageThatWaits: what follows a message that nobody takes yet stops at the
// window, and goes on once it was taken.
func TestMessagesBehindAMessageThatWaits(t *testing.T) {
	take := make(chan struct{})
	s, addr := start(t, Options{StreamWindow: 65535},
		&rpctest.KV{Stream: func(st grpc.ServerStream) error {
			select {
			case <-take:
			case <-st.Context().Done():
			}
			for {
				req := new(kvrpcpb.RawGetRequest)
				if err := st.RecvMsg(req); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := st.SendMsg(&kvrpcpb.RawGetResponse{
					Value: []byte(fmt.Sprint(len(req.Key))),
				}); err != nil {
					return err
				}
			}
		}}, nil)
	c := rpctest.DialKV(t, addr)
	st, err := c.BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	sizes := []int{20_000, 300_000, 1, 400_000}
	var g rpctest.Group
	g.Go(func() error {
		for _, n := range sizes {
			if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, n)}); err != nil {
				return err
			}
		}
		return st.CloseSend()
	})
	// The first message has come whole; the second fills the window.
	stuck := func() bool {
		conn := only(t, s)
		conn.mu.Lock()
		defer conn.mu.Unlock()
		for _, call := range conn.mu.streams {
			if call.stream == nil {
				return false // its headers are being worked off
			}
			n, _, whole := call.stream.in.Queued()
			return n == 1 && !whole
		}
		return false
	}
	require.Eventually(t, stuck, rpctest.Patience, 1e6)
	close(take)
	for _, n := range sizes {
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(t, st.RecvMsg(resp))
		require.Equal(t, fmt.Sprint(n), string(resp.Value))
	}
	require.NoError(t, g.Wait())
	idle(t, s)
}

// TestPaddingIsGivenBack: it takes part of the windows, though nobody ever takes it.
func TestPaddingIsGivenBack(t *testing.T) {
	s, addr := start(t, Options{StreamWindow: 65535, ConnWindow: 65535}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.GetPath, false)
	windows := map[uint32]int{}
	for range 2000 { // half a MiB
		require.NoError(t, r.Framer.WriteDataPadded(1, false, nil, make([]byte, 255)))
	}
	r.Until("the window", func(f http2.Frame) bool {
		if w, ok := f.(*http2.WindowUpdateFrame); ok {
			windows[w.StreamID] += int(w.Increment)
		}
		return windows[1] == 2000*256
	})
	require.GreaterOrEqual(t, windows[0], 2000*256-65535/4)
	r.Data(1, rpctest.EncodedGet([]byte("k")), true)
	require.Equal(t, "k", string(r.Answer(1).Value))
	idle(t, s)
}

// TestLargeMessages: 16 MiB both ways against the windows of 64 KiB that a client starts with.
func TestLargeMessages(t *testing.T) {
	const size = 16 << 20
	limits := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(size+1000),
		grpc.MaxCallSendMsgSize(size+1000))
	s, _, c, _ := interop(t, Options{MaxRecv: size + 1000, MaxSend: size + 1000}, limits,
		grpc.WithInitialWindowSize(65535), grpc.WithInitialConnWindowSize(65535))
	resp, err := c.UnaryCall(rpctest.Within(t),
		&grpc_testing.SimpleRequest{ResponseSize: size, Payload: rpctest.Payload(size)})
	require.NoError(t, err)
	require.Len(t, resp.Payload.Body, size)
	st, err := c.FullDuplexCall(rpctest.Within(t))
	require.NoError(t, err)
	require.NoError(t,
		st.Send(&grpc_testing.StreamingOutputCallRequest{
			ResponseParameters: rpctest.Outputs(size), Payload: rpctest.Payload(size),
		}))
	out, err := st.Recv()
	require.NoError(t, err)
	require.Len(t, out.Payload.Body, size)
	require.NoError(t, st.CloseSend())
	_, err = st.Recv()
	require.Equal(t, io.EOF, err)
	idle(t, s)
}

// TestManyCalls: random sizes, several connections, inline or not; everybody gets what is theirs.
func TestManyCalls(t *testing.T) {
	half := func(call *Call, request []byte) bool {
		return len(request)%2 == 0 && echoInline(call, request)
	}
	s, addr := start(t, Options{StreamWindow: 100_000, ConnWindow: 200_000}, &rpctest.KV{}, half)
	var g rpctest.Group
	for conn := range uint64(3) {
		c := rpctest.DialKV(t, addr)
		for worker := range uint64(8) {
			g.Go(func() error {
				rnd := rand.New(rand.NewPCG(conn, worker))
				st, err := c.BatchCommands(rpctest.Within(t))
				if err != nil {
					return err
				}
				for range 40 {
					key := bytes.Repeat([]byte{byte(rnd.Uint32())}, 1<<rnd.IntN(18)+rnd.IntN(100))
					resp := new(kvrpcpb.RawGetResponse)
					if rnd.IntN(2) == 0 {
						resp, err = c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: key})
					} else if err = st.SendMsg(&kvrpcpb.RawGetRequest{Key: key}); err == nil {
						err = st.RecvMsg(resp)
					}
					if err != nil {
						return err
					}
					if !bytes.Equal(key, resp.Value) {
						return fmt.Errorf("wrong answer for %d bytes", len(key))
					}
				}
				return st.CloseSend()
			})
		}
	}
	require.NoError(t, g.Wait())
	idle(t, s)
}

// TestSmallWindows: a client sends 65,535 bytes before it knows what the server allows, and more
// afterwards.
func TestSmallWindows(t *testing.T) {
	s, addr := start(t, Options{StreamWindow: 1000, ConnWindow: 1000}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	r.Works(1, strings.Repeat("k", rpc.InitialWindow-100))
	_, err := rpctest.DialKV(t, addr).RawGet(rpctest.Within(t),
		&kvrpcpb.RawGetRequest{Key: make([]byte, 500_000)})
	require.NoError(t, err)
	require.EqualValues(t, rpc.MaxWindow/4, New(Options{StreamWindow: 1 << 31}).opts.StreamWindow)
	idle(t, s)
}

// TestSendAfterTheDeadline queues nothing, however often a handler tries.
func TestSendAfterTheDeadline(t *testing.T) {
	ended, look := make(chan struct{}), make(chan struct{})
	s, addr := start(t, Options{}, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		for range 100 {
			if st.SendMsg(&kvrpcpb.RawGetResponse{Value: make([]byte, 1000)}) == nil {
				return errors.New("sent without a window")
			}
		}
		close(ended)
		<-look
		return st.Context().Err()
	}}, nil)
	r := rpctest.Greet(t, addr, rpctest.Initial(0))
	r.Open(1, rpctest.StreamPath, false, "grpc-timeout", "1m")
	rpctest.Wait(t, ended, "the handler")
	c := only(t, s)
	c.mu.Lock()
	pending := c.mu.streams[1].mu.Backlog()
	c.mu.Unlock()
	close(look)
	require.Less(t, pending, 1100)
	require.NoError(t, r.Framer.WriteWindowUpdate(1, 10_000))
	require.Equal(t, "4", r.Answer(1).Status)
	idle(t, s)
}

// TestCancelOfEndlessAnswers: however much is sent, the server reads what the client says.
func TestCancelOfEndlessAnswers(t *testing.T) {
	value := make([]byte, 50_000)
	s, addr := start(t, Options{}, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		for {
			if err := st.SendMsg(&kvrpcpb.RawGetResponse{Value: value}); err != nil {
				return err
			}
		}
	}}, nil)
	r := rpctest.Greet(t, addr, rpctest.Initial(rpc.MaxWindow))
	require.NoError(t, r.Framer.WriteWindowUpdate(0, rpc.MaxWindow-rpc.InitialWindow))
	var total atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<20)
		for {
			n, err := r.Conn.Read(buf)
			if err != nil {
				return
			}
			total.Add(int64(n))
		}
	}()
	const streams = 8
	for i := range uint32(streams) {
		r.Open(2*i+1, rpctest.StreamPath, false)
	}
	more := func(n int64) {
		from := total.Load()
		require.Eventually(t, func() bool {
			return total.Load()-from > n
		}, rpctest.Patience, time.Millisecond)
	}
	more(10 << 20)
	from := total.Load()
	for i := range uint32(streams) {
		require.NoError(t, r.Framer.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
	}
	idle(t, s)
	require.Less(t, total.Load()-from, int64(512<<20), "sent after the client had enough")
	_ = r.Conn.Close()
	rpctest.Wait(t, done, "the client")
}

// fedConn is a connection on which something more is to be written whenever something was.
type fedConn struct {
	net.Conn
	c      *conn
	writes int
}

func (f *fedConn) Write(b []byte) (int, error) {
	if f.writes++; f.writes < 100 {
		f.c.mu.Lock()
		defer f.c.mu.Unlock()
		_ = f.c.mu.out.Framer.WritePing(true, [8]byte{})
	}
	return len(b), nil
}

func (f *fedConn) Close() error { return nil }

// TestFlushEnds though others go on: who reads must not write for ever, but what is left must be.
func TestFlushEnds(t *testing.T) {
	f := &fedConn{}
	c := newConn(New(Options{}), f)
	f.c = c
	defer c.close(nil)
	c.mu.Lock()
	_ = c.mu.out.Framer.WritePing(true, [8]byte{})
	c.flushYielding()
	c.mu.Unlock()
	require.Less(t, f.writes, 10)
	require.Len(t, c.wake, 1, "the writer is woken")
	c.mu.Lock()
	c.writeYielding(1 << 30)
	c.mu.Unlock()
	require.Equal(t, 100, f.writes)
}

// TestCompressedMessagesInTheQueue are as large as they came until the handler takes them.
func TestCompressedMessagesInTheQueue(t *testing.T) {
	const messages, size = 40, 500_000
	open := make(chan struct{})
	s, addr := start(t, Options{}, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		select {
		case <-open:
		case <-st.Context().Done():
		}
		for range messages {
			req := new(kvrpcpb.RawGetRequest)
			if err := st.RecvMsg(req); err != nil {
				return err
			}
			if len(req.Key) != size {
				return fmt.Errorf("%d bytes", len(req.Key))
			}
		}
		if err := st.RecvMsg(new(kvrpcpb.RawGetRequest)); status.Code(err) != codes.Internal {
			return fmt.Errorf("nonsense was taken: %w", err)
		}
		return nil
	}}, nil)
	var zip bytes.Buffer
	w := gzip.NewWriter(&zip)
	_, _ = w.Write(rpctest.EncodedGet(make([]byte, size))[rpc.PrefixSize:])
	require.NoError(t, w.Close())
	msg := append(binary.BigEndian.AppendUint32([]byte{1}, uint32(zip.Len())), zip.Bytes()...)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.StreamPath, false, "grpc-encoding", "gzip")
	r.Data(1, bytes.Repeat(msg, messages), false)
	r.Data(1, []byte{1, 0, 0, 0, 3, 1, 2, 3}, true)
	r.Sync()
	c := only(t, s)
	c.mu.Lock()
	st := c.mu.streams[1].stream
	c.mu.Unlock()
	_, queued, _ := st.in.Queued()
	require.Less(t, queued, 2*messages*len(msg))
	close(open)
	a := r.Answer(1)
	require.Equal(t, "0", a.Status, a.Message)
	idle(t, s)
}
