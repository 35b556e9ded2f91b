package rpc

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/codec"
)

// clientCall is one RPC under way. What the reading goroutine owns stands first, what the connection's lock guards is in
// mu.
type clientCall struct {
	l *link

	headed   bool
	encoding string
	in       inflow
	parts    assembler
	check    checksum
	method   string
	// answer is the message of a unary call, in memory of its own; hasAnswer: it has come.
	answer     []byte
	compressed byte
	hasAnswer  bool
	// stream is set for streams; it does not change.
	stream *ClientStream

	// done says that a unary call has ended; then err belongs to the caller.
	done chan struct{}
	err  error

	mu struct {
		// deadline is when the connection ends the call; zero if its context does.
		deadline time.Time
		// gone: it has ended, and is not among the connection's calls any more.
		sender
	}
}

// calls are unary calls that have ended well, to be used again.
var calls = sync.Pool{New: func() any { return &clientCall{done: make(chan struct{}, 1)} }}

// maxKept is the largest answer whose memory is kept for the next call.
const maxKept = 8 << 10

func (call *clientCall) recycle() {
	answer := call.answer[:0]
	if cap(answer) > maxKept {
		answer = nil
	}
	*call = clientCall{done: call.done, answer: answer}
	calls.Put(call)
}

// timeout is what is left until the context's deadline, negative if there is none.
func timeout(ctx context.Context) time.Duration {
	d, ok := ctx.Deadline()
	if !ok {
		return -1
	}
	return max(time.Until(d), 0)
}

// beginYielding opens a call: it waits for its turn and sends the headers. The lock is given up while it waits.
func (l *link) beginYielding(ctx context.Context, call *clientCall, method string) error {
	own, ok := ctx.(*deadlineContext)
	parent := ctx //nolint:contextcheck // or what it was made from
	if ok {
		parent = own.Context // its own time is looked at below
	}
	for {
		switch {
		case parent.Err() != nil:
			return &notSent{status.FromContextError(parent.Err())}
		case l.shut.Load():
			return notSentf("connection to %s: no call is taken any more", l.c.addr)
		case len(l.mu.calls) >= int(l.mu.max) || l.mu.out.size > maxOut:
			wait, stop := timed(ctx)
			l.waitYielding(wait.Done())
			err := wait.Err()
			stop()
			if err != nil {
				return &notSent{status.FromContextError(err)}
			}
			continue
		}
		break
	}
	if l.mu.nextID >= 1<<31-2 {
		l.shut.Store(true)
		l.c.up.CompareAndSwap(l, nil)
		l.endIfDrainedLocked()
		return notSentf("connection to %s: %v", l.c.addr, errOutOfIDs)
	}
	left := timeout(ctx)
	if ok && left == 0 {
		return &notSent{status.FromContextError(context.DeadlineExceeded)}
	}
	call.l, call.method = l, method
	l.mu.out.beginLocked(&call.mu.sender, l.mu.nextID, call)
	if l.c.opts.Checksum {
		call.check = checksum{sends: true, seed: checksumSeed(l.methodSumLocked(method), call.mu.id)}
	}
	call.in = inflow{size: int64(l.c.opts.StreamWindow), left: int64(l.c.opts.StreamWindow)}
	l.mu.nextID += 2
	l.mu.calls[call.mu.id] = call
	if ok {
		l.boundLocked(call, own.deadline)
	}
	block := l.mu.enc.block(method, left)
	l.mu.out.headersLocked(call.mu.id, block, false)
	return nil
}

// methodSumLocked keeps the sum of the last call's method: most connections carry one most of the time.
func (l *link) methodSumLocked(method string) uint32 {
	if l.mu.lastMethod != method {
		l.mu.lastMethod, l.mu.lastSum = method, methodSum(method)
	}
	return l.mu.lastSum
}

// invoke makes a unary call.
func (l *link) invoke(ctx context.Context, method string, args, reply any) error {
	call := calls.Get().(*clientCall)
	l.mu.Lock()
	err := l.beginYielding(ctx, call, method)
	if err == nil {
		if err = call.sendLocked(args, true); err != nil {
			l.dropLocked(call)
		}
		l.pushYielding()
		if err != nil {
			l.endIfDrainedLocked()
		}
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-call.done:
	case <-ctx.Done():
		if l.cancel(call) {
			return status.FromContextError(ctx.Err()).Err()
		}
		<-call.done // it has ended at the same moment
	}
	if call.err != nil {
		return orDeadline(ctx, call.err) // it may have been ended by others; then the reading goroutine may be at it still
	}
	err = call.decode(reply)
	call.recycle()
	return err
}

// orDeadline is the error of a call that ended with err. A server that ends calls at their deadlines cancels them, which
// may be known before the client's own timer has fired.
func orDeadline(ctx context.Context, err error) error {
	if status.Code(err) == codes.Canceled {
		if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
			return status.FromContextError(context.DeadlineExceeded).Err()
		}
	}
	return err
}

// pushYielding writes the output. Calls of goroutines that can run now are put beside it, unless this is the only one.
func (l *link) pushYielding() {
	if l.mu.writing || l.mu.reading {
		return
	}
	if len(l.mu.calls) > 1 {
		l.mu.writing = true // the others leave it to this one
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
		l.mu.writing = false
	}
	l.flushYielding()
}

// decode reads the answer of a unary call.
func (call *clientCall) decode(reply any) error {
	o := &call.l.c.opts
	body := call.answer
	if call.compressed != 0 {
		var err error
		if body, err = decompress(call.compressed, call.encoding, body, o.MaxRecv); err != nil {
			return err
		}
	}
	return decode(o, body, reply)
}

func decode(o *ClientOptions, body []byte, v any) error {
	if m, ok := v.(codec.Message); ok {
		m.Reset()
		if err := m.Unmarshal(body); err != nil {
			return status.Errorf(codes.Internal, "unmarshal %T: %v", v, err)
		}
		return nil
	}
	if err := o.Codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(body)}, v); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// cancel tells the server that nobody waits any more. False: the call has ended already.
func (l *link) cancel(call *clientCall) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if call.mu.gone {
		return false
	}
	l.dropLocked(call)
	l.pushYielding()
	l.endIfDrainedLocked()
	return true
}

// dropLocked ends a call that its caller does not wait for.
func (l *link) dropLocked(call *clientCall) {
	if l.removeLocked(call) {
		_ = l.mu.out.fw.WriteRSTStream(call.mu.id, http2.ErrCodeCancel)
	}
}

// removeLocked takes a call out; false if it was.
func (l *link) removeLocked(call *clientCall) bool {
	if call.mu.gone {
		return false
	}
	l.mu.out.dropLocked(&call.mu.sender)
	delete(l.mu.calls, call.mu.id)
	l.wakeWaitersLocked()
	return true
}

// endLocked ends a call and tells its caller; err is nil, io.EOF for a stream, if it went well.
func (l *link) endLocked(call *clientCall, err error) {
	if !l.removeLocked(call) {
		return
	}
	if call.stream != nil {
		if err == nil {
			err = io.EOF
		}
		call.stream.stop()
		call.stream.endRecv(orDeadline(call.stream.ctx, err))
		return
	}
	call.err = err
	call.done <- struct{}{} // has room
}

// corrupt reports a message that was damaged on its way, and returns what ends the connection.
func (l *link) corrupt(call *clientCall) error {
	if f := l.c.opts.OnCorrupt; f != nil {
		f(l.nc.RemoteAddr(), call.method)
	}
	l.sayWhy(&connError{http2.ErrCodeProtocol, ErrCorrupt.Error()})
	return ErrCorrupt
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
	_ = l.mu.out.fw.WriteRSTStream(id, code)
	if call := l.mu.calls[id]; call != nil {
		l.endLocked(call, st.Err())
	}
	l.endIfDrainedLocked()
}

// call finds an open call for the reading goroutine.
func (l *link) call(id uint32) *clientCall {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.reading = true
	return l.mu.calls[id]
}

func (l *link) onReset(f *http2.RSTStreamFrame) {
	call := l.call(f.StreamID)
	if call == nil {
		return
	}
	var err error
	if f.ErrCode == http2.ErrCodeRefusedStream {
		err = notSentf("the server refused the call before it looked at it")
	} else {
		err = status.Errorf(codeOfReset(f.ErrCode), "the server reset the call: %v", f.ErrCode)
	}
	if call.check.sends && (f.ErrCode == http2.ErrCodeProtocol || f.ErrCode == http2.ErrCodeInternal) {
		l.retire() // what the server does not understand may be in its header table
	}
	l.finish(call, err)
}

// onData takes a part of the server's messages.
func (l *link) onData(f *http2.DataFrame) error {
	n := int64(f.Length)
	give, err := l.in.data(n)
	if err != nil {
		return err
	}
	if give > 0 {
		l.mu.Lock()
		_ = l.mu.out.fw.WriteWindowUpdate(0, uint32(give))
		l.mu.Unlock()
	}
	call := l.call(f.StreamID)
	if call == nil {
		return nil // it was cancelled
	}
	if st := call.stream; st != nil {
		call.in.left += st.returned.Swap(0)
	}
	if !call.in.take(n) {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	if !call.headed {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	data := f.Data()
	padding := n - int64(len(data))
	for len(data) > 0 {
		msg, kept, rest, err := call.parts.add(data, l.c.opts.MaxRecv+call.check.slack())
		if err == nil && msg != nil {
			err = call.deliver(msg, kept)
		}
		if errors.Is(err, ErrCorrupt) {
			return l.corrupt(call)
		}
		if err != nil {
			l.reset(call.mu.id, http2.ErrCodeCancel, status.Convert(err))
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
	if call.parts.need > 0 && call.in.left < call.in.size/2 {
		if size := int64(len(call.parts.msg)); call.stream != nil {
			due += call.stream.early(size)
		} else {
			due += size - call.parts.early
			call.parts.early = size
		}
	}
	if due == 0 {
		return
	}
	call.in.left += due
	call.l.mu.Lock()
	defer call.l.mu.Unlock()
	call.windowUpdateLocked(due)
}

func (call *clientCall) windowUpdateLocked(n int64) {
	if !call.mu.gone && n > 0 {
		_ = call.l.mu.out.fw.WriteWindowUpdate(call.mu.id, uint32(n))
		call.l.kickLocked()
	}
}

// deliver takes a complete message. kept: it is the call's own memory.
func (call *clientCall) deliver(msg []byte, kept bool) error {
	compressed := msg[0]
	call.parts = assembler{}
	body, err := call.check.open(toClient, msg[prefixSize:])
	if err != nil {
		return err
	}
	if st := call.stream; st != nil {
		size := int64(len(msg))
		if compressed == 0 && st.offerInline(body) {
			if give := st.took(size); give > 0 {
				st.giveBack(give)
			}
			return nil
		}
		if !kept {
			body = append([]byte(nil), body...)
		}
		st.push(message{body: body, compressed: compressed, owed: size})
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
	case call.parts.started():
		err = status.Error(codes.Internal, "the call ended within a message")
	case call.stream == nil && !call.hasAnswer:
		err = status.Error(codes.Internal, "the server ended a unary call without an answer")
	}
	l := call.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if !call.mu.gone && (!call.mu.last || len(call.mu.pending) > 0) { // it wants no more of what is being sent
		_ = l.mu.out.fw.WriteRSTStream(call.mu.id, http2.ErrCodeNo)
	}
	l.endLocked(call, err)
	l.endIfDrainedLocked()
}

// sendLocked encodes a message and sends it as far as the server's windows allow. last: it is all that is sent.
func (call *clientCall) sendLocked(m any, last bool) error {
	l := call.l
	g, ok := m.(codec.Message)
	if !ok {
		buf, err := encodeForeign(l.c.opts.Codec, m, l.c.opts.MaxSend, call.check.size())
		if err == nil {
			call.check.seal(toServer, buf[prefixSize:])
			call.mu.last = last
			l.mu.out.queueLocked(&call.mu.sender, buf)
		}
		return err
	}
	size := g.Size()
	if size > l.c.opts.MaxSend {
		return tooLarge("send", size, l.c.opts.MaxSend)
	}
	call.mu.last = last
	return l.mu.out.messageLocked(&call.mu.sender, &call.check, toServer, g, prefixSize+size+call.check.size())
}

// drainedLocked is called when what waited for windows has left.
func (call *clientCall) drainedLocked() { call.l.wakeWaitersLocked() }
