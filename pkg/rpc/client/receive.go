package client

import (
	"errors"
	"slices"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// corrupt reports a message that was damaged on its way, and returns what ends the connection.
func (l *link) corrupt(call *clientCall) error {
	if f := l.c.opts.OnCorrupt; f != nil {
		f(l.nc.RemoteAddr(), call.method)
	}
	l.sayWhy(&rpc.ConnError{Code: http2.ErrCodeProtocol, Why: rpc.ErrCorrupt.Error()})
	return rpc.ErrCorrupt
}

// finish ends a call from the reading goroutine.
func (l *link) finish(call *clientCall, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(call, err)
	l.endIfDrainedLocked()
}

// reset ends a call that broke the protocol.
func (l *link) reset(id uint32, code http2.ErrCode, st *status.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.mu.out.Framer.WriteRSTStream(id, code)
	if call := l.mu.calls[id]; call != nil {
		l.endLocked(call, st.Err())
	}
	l.endIfDrainedLocked()
}

// call finds an open call for the reading goroutine; nil if it has ended. An error ends the
// connection: there was never such a call.
func (l *link) call(id uint32) (*clientCall, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.reading = true
	call := l.mu.calls[id]
	if call == nil && (id%2 == 0 || id >= l.mu.nextID) {
		return nil,
			&rpc.ConnError{
				Code: http2.ErrCodeProtocol, Why: "a frame of a stream that was never opened",
			}
	}
	return call, nil
}

// ends are the streams that the server has ended last, of which nothing more may come. Streams that
// were ended from here are none of them: what still comes of those was on its way. Owned by the
// reading goroutine.
type ends struct {
	ids  [16]uint32
	next int
}

// note notes a frame of a call's answer; last: it ends the stream. An error ends the connection:
// the server had ended it before.
func (e *ends) note(id uint32, last bool) error {
	if slices.Contains(e.ids[:], id) {
		return &rpc.ConnError{
			Code: http2.ErrCodeStreamClosed, Why: "a frame of a stream that has ended",
		}
	}
	if last {
		e.ids[e.next] = id
		e.next = (e.next + 1) % len(e.ids)
	}
	return nil
}

func (l *link) onReset(f *http2.RSTStreamFrame) error {
	call, err := l.call(f.StreamID)
	if err != nil {
		return err
	}
	// after its end a server may reset a stream whose request is not complete
	_ = l.ends.note(f.StreamID, true)
	if call == nil {
		return nil
	}
	if f.ErrCode == http2.ErrCodeRefusedStream {
		err = notSentf("the server refused the call before it looked at it")
	} else {
		err = status.Errorf(codeOfReset(f.ErrCode), "the server reset the call: %v", f.ErrCode)
	}
	if call.check.Sends &&
		(f.ErrCode == http2.ErrCodeProtocol || f.ErrCode == http2.ErrCodeInternal) {
		l.retire() // what the server does not understand may be in its header table
	}
	l.finish(call, err)
	return nil
}

// maxForeign is how much of an answer that is not gRPC an error quotes, in bytes.
const maxForeign = 1 << 10

// onForeign takes a part of an answer that is not gRPC: a proxy may say there what is wrong.
func (l *link) onForeign(call *clientCall, f *http2.DataFrame) {
	data := f.Data()
	call.answer = append(call.answer, data[:min(len(data), maxForeign-len(call.answer))]...)
	if !f.StreamEnded() && len(call.answer) < maxForeign {
		return
	}
	st := call.foreign
	if len(call.answer) > 0 {
		st = status.Newf(st.Code(), "%s: %q", st.Message(), call.answer)
	}
	if f.StreamEnded() {
		l.finish(call, st.Err())
	} else {
		l.reset(call.mu.ID, http2.ErrCodeCancel, st)
	}
}

// onData takes a part of the server's messages.
func (l *link) onData(f *http2.DataFrame) error {
	n := int64(f.Length)
	give, err := l.in.Data(n)
	if err != nil {
		return err
	}
	if give > 0 {
		l.mu.Lock()
		_ = l.mu.out.Framer.WriteWindowUpdate(0, uint32(give))
		l.mu.Unlock()
	}
	call, err := l.call(f.StreamID)
	if err == nil {
		err = l.ends.note(f.StreamID, f.StreamEnded())
	}
	if err != nil || call == nil { // it was cancelled
		return err
	}
	if st := call.stream; st != nil {
		call.in.Left += st.returned.Swap(0)
	}
	if !call.in.Take(n) {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	if !call.headed {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	if call.foreign != nil {
		l.onForeign(call, f)
		return nil
	}
	data := f.Data()
	padding := n - int64(len(data))
	for len(data) > 0 {
		limit := call.maxRecv() + call.check.Slack()
		msg, kept, rest, err := call.parts.Add(data, limit, false, &call.check)
		if err == nil && msg != nil {
			err = call.deliver(msg, kept)
		}
		if errors.Is(err, rpc.ErrCorrupt) {
			return l.corrupt(call)
		}
		if err != nil {
			l.reset(call.mu.ID, http2.ErrCodeCancel, status.Convert(err))
			return nil
		}
		data = rest
	}
	if f.StreamEnded() { // an answer ends with headers
		l.finish(call, status.Error(codes.Internal, "the server ended the call without a status"))
		return nil
	}
	call.giveBack(padding)
	return nil
}

// giveBack lets the server send more: what is needed for the message that has begun to come.
func (call *clientCall) giveBack(padding int64) {
	due := padding
	if call.parts.Need > 0 && call.in.Left < call.in.Size/2 {
		if size := int64(len(call.parts.Msg)); call.stream != nil {
			due += call.stream.in.Early(size)
		} else {
			due += size - call.parts.Early
			call.parts.Early = size
		}
	}
	if due == 0 {
		return
	}
	call.in.Left += due
	call.l.mu.Lock()
	defer call.l.mu.Unlock()
	call.windowUpdateLocked(due)
}

func (call *clientCall) windowUpdateLocked(n int64) {
	if !call.mu.Gone && n > 0 {
		_ = call.l.mu.out.Framer.WriteWindowUpdate(call.mu.ID, uint32(n))
		call.l.kickLocked()
	}
}

// deliver takes a complete message. kept: it is the call's own memory.
func (call *clientCall) deliver(msg []byte, kept bool) error {
	compressed := rpc.Compressed(msg)
	call.parts = rpc.Assembler{}
	body, err := call.check.Open(rpc.ToClient, msg[rpc.PrefixSize:])
	if err != nil {
		return err
	}
	if st := call.stream; st != nil {
		size := int64(len(msg))
		if compressed == 0 && st.offerInline(body) {
			if give := st.in.Took(size); give > 0 {
				st.giveBack(give)
			}
			return nil
		}
		if !kept {
			body = append([]byte(nil), body...)
		}
		st.in.Push(rpc.Message{Body: body, Compressed: compressed, Owed: size})
		return nil
	}
	if call.hasAnswer {
		return status.Error(codes.Internal, "more than one answer to a unary call")
	}
	call.hasAnswer, call.compressed = true, compressed
	if kept {
		call.answer = body
	} else {
		call.answer = append(call.answer[:0], body...)
	}
	return nil
}

// onEnd: the server has said all and how it went.
func (call *clientCall) onEnd(st *status.Status) {
	err := st.Err()
	switch {
	case err != nil:
	case call.parts.Started():
		err = status.Error(codes.Internal, "the call ended within a message")
	case call.stream == nil && !call.hasAnswer:
		err = status.Error(codes.Internal, "the server ended a unary call without an answer")
	}
	l := call.l
	l.mu.Lock()
	defer l.mu.Unlock()
	// the server takes no more of what is being sent
	if !call.mu.Gone && (!call.mu.Last || call.mu.Backlog() > 0) {
		_ = l.mu.out.Framer.WriteRSTStream(call.mu.ID, http2.ErrCodeNo)
	}
	l.endLocked(call, err)
	l.endIfDrainedLocked()
}
