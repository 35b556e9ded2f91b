package server

import (
	"context"
	"io"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// Stream is what the handler of a stream sees: a grpc.ServerStream. One goroutine may receive while
// another sends.
//
// A handler may have the reading goroutine work its messages off, see OnMessage.
type Stream struct {
	call *Call
	ctx  context.Context
	// sendable wakes the handler: something has left.
	sendable chan struct{}
	// returned is what was given back to the client's window and the reading goroutine has not
	// counted yet.
	returned atomic.Int64
	// reserved is the part of MaxStreamWindows that the stream's window has; 0 if it has the first
	// window only.
	reserved int64
	in       rpc.Inbox
	// keeps and hold belong to the goroutine that receives: see KeepCharges.
	keeps bool
	hold  *Hold
}

// startStream calls the handler on a goroutine.
func (call *Call) startStream() {
	st := &Stream{call: call, sendable: make(chan struct{}, 1)}
	window := int64(call.c.s.opts.StreamWindow)
	if call.m.internal {
		window *= 4
	}
	more := window - call.in.Size
	if more > 0 && call.windows().Take(window) {
		st.reserved = window
		call.in = rpc.Inflow{Size: window, Left: window}
	}
	st.in.Init(call.in.Size)
	var cancel context.CancelFunc
	st.ctx, cancel = call.context()
	st.ctx = context.WithValue(st.ctx, streamKey{}, st)
	call.c.mu.Lock()
	// if the connection was closed meanwhile, the context knows
	call.stream, call.mu.cancel = st, cancel
	if st.reserved > 0 {
		call.windowUpdateLocked(more)
	}
	call.c.mu.Unlock()
	call.c.s.wg.Add(1)
	// Owned by the server, which waits for it; its context ends with the call.
	go func() {
		defer call.c.s.wg.Done()
		defer cancel()
		if err := call.runStream(st); err != nil {
			call.Fail(err)
		} else {
			call.end(rpc.StatusOK)
		}
	}()
}

// runStream calls the handler, behind the interceptor.
func (call *Call) runStream(st *Stream) error {
	if f := call.c.s.stream; f != nil {
		info := call.m.info
		return f(call.m.impl, st, &info, call.m.stream)
	}
	return call.m.stream(call.m.impl, st)
}

// windows is what bounds the windows of streams.
func (call *Call) windows() *rpc.Budget {
	if call.m.internal {
		return call.c.s.windows[1]
	}
	return call.c.s.windows[0]
}

func (st *Stream) wakeSender() { rpc.Wake(st.sendable) }

type streamKey struct{}

// StreamOf returns the stream that a handler's context belongs to, or nil if it comes from another
// server. Generated code hides it from the handler.
func StreamOf(ctx context.Context) *Stream {
	st, _ := ctx.Value(streamKey{}).(*Stream)
	return st
}

// OnMessage has f see each message, encoded, on the goroutine that reads the connection, while the
// handler waits in RecvMsg. f must not wait for anything and must not keep msg. If it returns false
// the handler receives the message. Messages are seen in order, by one of the two at a time.
func (st *Stream) OnMessage(f func(msg []byte) bool) { st.in.OnMessage(f) }

// Offer is SendMsg for those who must not wait: what the client's window does not take yet is kept.
// Backlog says how much that is.
func (st *Stream) Offer(m any) error {
	c := st.call.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.call.mu.Gone {
		return io.EOF
	}
	if err := st.call.sendLocked(m); err != nil {
		return err
	}
	c.kickLocked()
	return nil
}

// Backlog is how many bytes were sent but not taken by the client's window yet.
func (st *Stream) Backlog() int {
	st.call.c.mu.Lock()
	defer st.call.c.mu.Unlock()
	return st.call.mu.Backlog()
}

// offerInline has the handler's OnMessage see a message, if it may. One whose charge the handler
// keeps goes through RecvMsg.
func (st *Stream) offerInline(msg []byte, charged int64) bool {
	f := st.in.Inline() // the handler waits in RecvMsg: it has set keeps
	if f == nil || charged > 0 && st.keeps {
		return false
	}
	c := st.call.c
	c.mu.Lock()
	c.mu.reading = true // what f offers leaves with the reader's next flush
	c.mu.Unlock()
	return f(msg)
}

// RecvMsg implements grpc.ServerStream. After the client's last message it returns io.EOF.
func (st *Stream) RecvMsg(v any) error {
	body, err := st.RecvBytes()
	if err == nil {
		err = st.call.c.s.opts.Codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(body)}, v)
		if err != nil {
			err = status.Error(codes.Internal, err.Error())
			st.Hold().End()
		}
	}
	return err
}

// RecvBytes is RecvMsg without decoding: a handler may decode a large message in parts. The message
// is the handler's own. Errors are those of RecvMsg.
func (st *Stream) RecvBytes() ([]byte, error) {
	for {
		m, give, ok, end := st.in.Pop()
		if ok {
			st.takeCharge(m.Charged)
			if give > 0 {
				st.giveBack(give)
			}
			body, err := st.plain(m)
			if err != nil {
				st.Hold().End()
			}
			return body, err
		}
		if end != nil {
			st.Hold().End() // of the last message, if the handler has not asked for it
			return nil, end
		}
		select {
		case <-st.in.Ready:
		case <-st.ctx.Done():
			return nil, status.FromContextError(st.ctx.Err()).Err()
		}
	}
}

// KeepCharges has messages stay charged after RecvMsg has returned them, until the handler gives
// back what Hold returns. OnMessage does not see messages that are charged then. For the goroutine
// that receives, before its first RecvMsg.
func (st *Stream) KeepCharges() { st.keeps = true }

// Hold returns what the message is charged that RecvMsg has returned last, once; nil if it is
// charged nothing. The handler gives it back, also after the call has ended. For the goroutine that
// receives.
func (st *Stream) Hold() *Hold {
	h := st.hold
	st.hold = nil
	return h
}

// takeCharge ends the charge of a message that the handler takes, or has the handler hold it.
func (st *Stream) takeCharge(charged int64) {
	st.Hold().End() // one that the handler has not asked for
	switch {
	case charged == 0:
	case st.keeps:
		st.hold = st.call.intake().lend(st.call, charged)
	default:
		st.call.uncharge(charged)
	}
}

// plain is a message without its compression.
func (st *Stream) plain(m rpc.Message) ([]byte, error) {
	if m.Compressed == 0 {
		return m.Body, nil
	}
	return rpc.Decompress(m.Compressed, st.call.encoding, m.Body, st.call.c.s.opts.MaxRecv)
}

func (st *Stream) giveBack(n int64) {
	c := st.call.c
	c.mu.Lock()
	defer c.mu.Unlock()
	st.returned.Add(n) // before the client can know
	st.call.windowUpdateLocked(n)
}

// SendMsg implements grpc.ServerStream. It returns when the client's window has taken the message.
func (st *Stream) SendMsg(m any) error {
	c := st.call.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.ctx.Err(); err != nil {
		return status.FromContextError(err).Err() // what does not wait must not be queued
	}
	if !st.call.mu.Gone {
		if err := st.call.sendLocked(m); err != nil {
			return err
		}
		c.pushYielding()
	}
	for !st.call.mu.Gone && st.call.mu.Backlog() > 0 {
		c.kickLocked()
		c.mu.Unlock()
		select {
		case <-st.sendable:
		case <-st.ctx.Done():
		}
		c.mu.Lock()
		if err := st.ctx.Err(); err != nil {
			return status.FromContextError(err).Err()
		}
	}
	for c.mu.out.Size > rpc.MaxOut && c.mu.closed == nil {
		c.wakeWriter()
		c.mu.space.Wait()
	}
	if st.call.mu.Gone {
		if err := st.ctx.Err(); err != nil {
			return status.FromContextError(err).Err()
		}
		return io.EOF
	}
	return nil
}

// Context implements grpc.ServerStream: it ends with the call, its deadline or its connection.
func (st *Stream) Context() context.Context { return st.ctx }

// SendHeader implements grpc.ServerStream, see Call.SendHeader.
func (st *Stream) SendHeader(md metadata.MD) error { return st.call.SendHeader(md) }

// SetHeader implements grpc.ServerStream, see Call.SetHeader.
func (st *Stream) SetHeader(md metadata.MD) error { return st.call.SetHeader(md) }

// SetTrailer implements grpc.ServerStream. What cannot be sent is left out: there is no way to say
// so.
func (st *Stream) SetTrailer(md metadata.MD) { _ = st.call.SetTrailer(md) }
