package client

import (
	"context"
	"io"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/proto/codec"
)

// clientCall is one RPC under way.
//
// Each field has one owner, from the headers to the end of the call:
//
//   - l, method, stream, info and done do not change once the call has begun.
//   - The goroutine that reads the connection owns the receiving half, from headed to hasAnswer.
//   - The connection's lock guards mu. While gone is not set, the call is among the connection's
//     calls. The one that takes it out, under the lock, ends it: it gives err by done, or the end
//     to the stream's inbox, once.
//   - A unary call that has ended without an error belongs to its caller, with answer and
//     compressed: the reading goroutine has ended it, and does not look at it again. One that ended
//     with an error may still be seen by that goroutine, and is left to the garbage collector.
type clientCall struct {
	l *link

	headed   bool
	encoding string
	in       rpc.Inflow
	parts    rpc.Assembler
	check    rpc.Checksum
	method   string
	// answer is the message of a unary call, in memory of its own; hasAnswer: it has come.
	answer     []byte
	compressed byte
	hasAnswer  bool
	// foreign is what is wrong with an answer that is not gRPC; then answer is its beginning.
	foreign *status.Status
	// stream is set for streams; it does not change.
	stream *Stream

	// done says that a unary call has ended; then err belongs to the caller.
	done chan struct{}
	err  error
	// info is what is special about the call; nil for most unary calls.
	info *callInfo

	mu struct {
		// deadline is when the connection ends the call; zero if its context does.
		deadline time.Time
		// gone: it has ended, and is not among the connection's calls any more.
		rpc.Sender
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

// beginYielding opens a call: it waits for its turn and sends the headers. The lock is given up
// while it waits.
func (l *link) beginYielding(ctx context.Context, call *clientCall, method string) error {
	own, ok := ctx.(*deadlineContext)
	parent := ctx //nolint:contextcheck // or what it was made from
	if ok {
		parent = own.Context // its own time is looked at below
	}
	for {
		switch {
		case parent.Err() != nil:
			return &notSent{st: status.FromContextError(parent.Err())}
		case l.shut.Load():
			return notSentf("connection to %s: no call is taken any more", l.c.addr)
		case len(l.mu.calls) >= int(l.mu.max) || l.mu.out.Size > rpc.MaxOut:
			wait, stop := timed(ctx)
			l.waitYielding(wait.Done())
			err := wait.Err()
			stop()
			if err != nil {
				return &notSent{st: status.FromContextError(err)}
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
	if err := l.mayCarryLocked(call.info); err != nil {
		return err
	}
	left := timeout(ctx)
	if ok && left == 0 {
		return &notSent{st: status.FromContextError(context.DeadlineExceeded)}
	}
	call.l, call.method = l, method
	l.mu.out.BeginLocked(&call.mu.Sender, l.mu.nextID, call)
	if l.c.opts.Checksum {
		call.check = rpc.Checksum{
			Sends: true, Prefixes: l.mu.enc.prefixes,
			Seed: rpc.ChecksumSeed(l.methodSumLocked(method), call.mu.ID),
		}
	}
	call.in = rpc.Inflow{Size: int64(l.c.opts.StreamWindow), Left: int64(l.c.opts.StreamWindow)}
	l.mu.nextID += 2
	l.mu.calls[call.mu.ID] = call
	if ok {
		l.boundLocked(call, own.deadline)
	}
	block := l.mu.enc.block(method, left, call.info)
	l.mu.out.HeadersLocked(call.mu.ID, block, false)
	return nil
}

// mayCarryLocked tells whether the connection may carry a call's metadata.
func (l *link) mayCarryLocked(info *callInfo) error {
	switch {
	case info == nil:
	case info.secret && !l.secure:
		return status.Error(codes.Unauthenticated,
			"the call has credentials that must not be sent over a connection without TLS")
	case len(info.md) > 0 && rpc.MetadataSize(info.md)+headerRoom > int(l.mu.maxHeaders):
		return status.Errorf(codes.Internal, "the metadata is larger than the server takes (%d)",
			l.mu.maxHeaders)
	}
	return nil
}

// headerRoom is what the protocol's headers take of the server's limit, at most but for long paths.
const headerRoom = 512

// methodSumLocked keeps the sum of the last call's method: most connections carry one most of the
// time.
func (l *link) methodSumLocked(method string) uint32 {
	if l.mu.lastMethod != method {
		l.mu.lastMethod, l.mu.lastSum = method, rpc.MethodSum(method)
	}
	return l.mu.lastSum
}

// invoke makes a unary call.
func (l *link) invoke(ctx context.Context, info *callInfo, method string, args, reply any) error {
	call := calls.Get().(*clientCall)
	call.info = info
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
		// it may have been ended by others; then the reading goroutine may be at it still
		return orDeadline(ctx, call.err)
	}
	err = call.decode(reply)
	call.recycle()
	return err
}

// orDeadline is the error of a call that ended with err. A server that ends calls at their
// deadlines cancels them, which may be known before the client's own timer has fired.
func orDeadline(ctx context.Context, err error) error {
	if status.Code(err) == codes.Canceled {
		if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
			return status.FromContextError(context.DeadlineExceeded).Err()
		}
	}
	return err
}

// decode reads the answer of a unary call.
func (call *clientCall) decode(reply any) error {
	body := call.answer
	if call.compressed != 0 {
		var err error
		if body, err = rpc.Decompress(call.compressed, call.encoding, body,
			call.maxRecv()); err != nil {
			return err
		}
	}
	return decode(&call.l.c.opts, body, reply)
}

func decode(o *Options, body []byte, v any) error {
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
	if call.mu.Gone {
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
		_ = l.mu.out.Framer.WriteRSTStream(call.mu.ID, http2.ErrCodeCancel)
	}
}

// removeLocked takes a call out; false if it was.
func (l *link) removeLocked(call *clientCall) bool {
	if call.mu.Gone {
		return false
	}
	l.mu.out.DropLocked(&call.mu.Sender)
	delete(l.mu.calls, call.mu.ID)
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
		call.stream.in.EndRecv(call.stream.outcome(err))
		call.stream.knowLocked()
		return
	}
	call.err = err
	call.done <- struct{}{} // has room
}

// maxRecv and maxSend bound one message, in bytes.
func (call *clientCall) maxRecv() int {
	if call.info != nil && call.info.maxRecv != 0 {
		return max(call.info.maxRecv, 0)
	}
	return call.l.c.opts.MaxRecv
}

func (call *clientCall) maxSend() int {
	if call.info != nil && call.info.maxSend != 0 {
		return max(call.info.maxSend, 0)
	}
	return call.l.c.opts.MaxSend
}

// sendLocked encodes a message and sends it as far as the server's windows allow. last: it is all
// that is sent.
func (call *clientCall) sendLocked(m any, last bool) error {
	l := call.l
	g, ok := m.(codec.Message)
	if !ok || call.info.encoding() != "" {
		var comp encoding.Compressor
		if call.info != nil {
			comp = call.info.compressor
		}
		buf, err := rpc.EncodeForeign(l.c.opts.Codec, comp, m, call.maxSend(), call.check.Size())
		if err == nil {
			call.check.Seal(rpc.ToServer, buf)
			call.mu.Last = last
			l.mu.out.QueueLocked(&call.mu.Sender, buf)
		}
		return err
	}
	size := g.Size()
	if limit := call.maxSend(); size > limit {
		return rpc.TooLarge("send", size, limit)
	}
	call.mu.Last = last
	total := rpc.PrefixSize + size + call.check.Size()
	return l.mu.out.MessageLocked(&call.mu.Sender, &call.check, rpc.ToServer, g, total)
}

// drainedLocked is called when what waited for windows has left.
func (call *clientCall) DrainedLocked() { call.l.wakeWaitersLocked() }
