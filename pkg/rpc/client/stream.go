package client

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/proto/codec"
)

// ClientStream is a stream under way. One goroutine may receive while another sends. It ends when
// the server ends it, or with its context: a caller that does not receive until an error comes must
// cancel that.
type Stream struct {
	call *clientCall
	ctx  context.Context
	// desc says on which sides there is one message only.
	desc *grpc.StreamDesc
	// stop ends the watch for the context's end.
	stop func() bool
	// ended is what RecvMsg has returned at the end. Owned by the receiver.
	ended error
	// returned is what was given back to the server's window and the reading goroutine has not
	// counted yet.
	returned atomic.Int64
	// known is closed when there are headers, or will be none. isKnown says that it is, under the
	// connection's lock.
	known   chan struct{}
	isKnown bool
	in      rpc.Inbox
}

var _ grpc.ClientStream = (*Stream)(nil)

// newStream begins a stream.
func (l *link) newStream(
	ctx context.Context, info *callInfo, desc *grpc.StreamDesc, method string,
) (*Stream, error) {
	st := &Stream{desc: desc, known: make(chan struct{})}
	st.ctx = context.WithValue(ctx, clientStreamKey{}, st)
	st.in.Init(int64(l.c.opts.StreamWindow))
	st.call = &clientCall{l: l, stream: st, info: info}
	st.stop = context.AfterFunc(ctx, func() {
		st.in.EndRecv(status.FromContextError(ctx.Err()).Err())
		l.cancel(st.call)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.beginYielding(ctx, st.call, method); err != nil {
		st.stop()
		return nil, err
	}
	l.pushYielding()
	return st, nil
}

type clientStreamKey struct{}

// ClientStreamOf returns the stream that a stream's context belongs to, or nil if it is another
// client's. Generated code hides it.
func StreamOf(ctx context.Context) *Stream {
	st, _ := ctx.Value(clientStreamKey{}).(*Stream)
	return st
}

// OnMessage has f see each message, encoded, on the goroutine that reads the connection, while
// somebody waits in RecvMsg. f must not wait for anything and must not keep msg. If it returns
// false RecvMsg returns the message. Messages are seen in order, by one of the two at a time. When
// the stream is cancelled f may be about to return as RecvMsg does.
func (st *Stream) OnMessage(f func(msg []byte) bool) { st.in.OnMessage(f) }

// offerInline has OnMessage see a message, if it may.
func (st *Stream) offerInline(msg []byte) bool {
	f := st.in.Inline()
	return f != nil && f(msg)
}

func (st *Stream) giveBack(n int64) {
	l := st.call.l
	l.mu.Lock()
	defer l.mu.Unlock()
	st.returned.Add(n) // before the server can know
	st.call.windowUpdateLocked(n)
}

// RecvMsg implements grpc.ClientStream. After the server's last message it returns io.EOF, or the
// error with which the server ended the stream. If there is one message only, as the answer to a
// stream of requests, it returns that when it is known how the call ended.
//
// A stream whose context has ended before the server ended it never ends well.
func (st *Stream) RecvMsg(v any) error {
	if st.ended != nil {
		return st.ended
	}
	err := st.recv(v)
	if err != nil && err != io.EOF {
		st.call.l.cancel(st.call) // unless it is the end that the server has told
	}
	if st.ended = err; err != nil {
		st.call.info.finish(st.call.l, noEOF(err))
	}
	return err
}

// noEOF is the outcome of a stream whose end RecvMsg has returned.
func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// outcome is what the end of a stream comes to; err is io.EOF if the server says that it went well.
// It may be seen before the watch for the context's end has come to run.
func (st *Stream) outcome(err error) error {
	if late := st.contextError(); late != nil && err == io.EOF {
		return late
	}
	return orDeadline(st.ctx, err)
}

// contextError is the error of a stream whose context has ended.
func (st *Stream) contextError() error {
	if err := st.ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return nil
}

func (st *Stream) recv(v any) error {
	m, end := st.next()
	if st.desc.ServerStreams {
		if end != nil {
			return end
		}
		return st.decode(m, v)
	}
	switch {
	case end == io.EOF:
		return status.Error(codes.Internal, "the server ended the call without an answer")
	case end != nil:
		return end
	}
	if _, end = st.next(); end == nil {
		st.in.EndRecv(status.Error(codes.Internal, "more than one answer"))
		return status.Error(codes.Internal, "more than one answer")
	} else if end != io.EOF {
		return end
	}
	return st.decode(m, v)
}

// next waits for the next message or the end.
func (st *Stream) next() (m rpc.Message, end error) {
	for {
		m, give, ok, end := st.in.Pop()
		if give > 0 {
			st.giveBack(give)
		}
		if ok || end != nil {
			return m, end
		}
		<-st.in.Ready // the end comes, at the latest, with the context's
	}
}

func (st *Stream) decode(m rpc.Message, v any) error {
	o := &st.call.l.c.opts
	if m.Compressed != 0 {
		var err error
		if m.Body, err = rpc.Decompress(m.Compressed, st.call.encoding, m.Body,
			st.call.maxRecv()); err != nil {
			return err
		}
	}
	return decode(o, m.Body, v)
}

// SendMsg implements grpc.ClientStream. It returns when the server's window has taken the message,
// and io.EOF if the stream has ended: RecvMsg says why. Another error is this side's, and ends the
// stream.
//
// For a stream of one request it returns nil where it would return io.EOF: generated code would
// take that for the call's error, and not ask.
func (st *Stream) SendMsg(m any) error {
	err := st.send(m, false)
	if err == io.EOF && !st.desc.ClientStreams {
		return nil
	}
	return err
}

func (st *Stream) send(m any, last bool) error {
	call := st.call
	l := call.l
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case call.mu.Gone || st.ctx.Err() != nil:
		return io.EOF
	case call.mu.Last:
		return errSentAll
	case m == nil:
		l.mu.out.FinishLocked(&call.mu.Sender)
	default:
		if err := call.sendLocked(m, last); err != nil {
			st.abortLocked(err)
			l.pushYielding()
			return err
		}
	}
	waits := call.mu.Backlog() > 0
	l.pushYielding()
	for !call.mu.Gone && (call.mu.Backlog() > 0 || l.mu.out.Size > rpc.MaxOut) {
		waits = true
		l.waitYielding(st.ctx.Done())
		if err := st.ctx.Err(); err != nil {
			return io.EOF
		}
	}
	if call.mu.Gone && waits { // what was left is dropped
		return io.EOF
	}
	return nil
}

// abortLocked ends a stream of which a message cannot be sent.
func (st *Stream) abortLocked(err error) {
	l := st.call.l
	_ = l.mu.out.Framer.WriteRSTStream(st.call.mu.ID, http2.ErrCodeCancel)
	l.endLocked(st.call, err)
	l.endIfDrainedLocked()
}

// TrySend sends a message on the caller's time if that needs no waiting, neither for the server's
// windows nor for what is to be written before it. If it returns false nothing was sent, and
// SendMsg will wait, or say why not. It may be called by the goroutine that may call SendMsg.
func (st *Stream) TrySend(m codec.Message) bool {
	call := st.call
	l := call.l
	size := m.Size()
	total := rpc.PrefixSize + size + call.check.Size()
	l.mu.Lock()
	defer l.mu.Unlock()
	if call.mu.Gone || call.mu.Last || l.mu.closed != nil || l.mu.out.Size > 0 || l.try == nil ||
		size > call.maxSend() || call.info.encoding() != "" ||
		!l.mu.out.TakesLocked(&call.mu.Sender, total) {
		return false
	}
	if call.sendLocked(m, false) != nil {
		return false
	}
	l.flushYielding()
	return true
}

var errSentAll = errors.New("rpc: SendMsg after CloseSend")

// CloseSend implements grpc.ClientStream.
func (st *Stream) CloseSend() error {
	if err := st.send(nil, true); err != nil && !errors.Is(err, io.EOF) &&
		!errors.Is(err, errSentAll) {
		return err
	}
	return nil
}

// Context implements grpc.ClientStream.
func (st *Stream) Context() context.Context { return st.ctx }

// Header implements grpc.ClientStream: it waits until the server has sent its headers, and returns
// the stream's error if it ends without.
func (st *Stream) Header() (metadata.MD, error) {
	select {
	case <-st.known:
	case <-st.ctx.Done():
	}
	l := st.call.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if st.call.mu.Headed {
		return st.call.info.header, nil
	}
	if end := st.in.End(); end != nil {
		return nil, noEOF(end)
	}
	return nil, st.contextError()
}

// Trailer implements grpc.ClientStream: the metadata that came with the end, once RecvMsg has
// returned that.
func (st *Stream) Trailer() metadata.MD {
	l := st.call.l
	l.mu.Lock()
	defer l.mu.Unlock()
	return st.call.info.trailer
}

// knowLocked wakes those who wait in Header.
func (st *Stream) knowLocked() {
	if !st.isKnown {
		st.isKnown = true
		close(st.known)
	}
}
