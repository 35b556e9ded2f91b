package server

import (
	"context"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/trace"
)

// Call is one RPC under way.
//
// Each field has one owner, from the headers to the end of the call:
//
//   - c, m, began, deadline, encoding and more.md do not change once the headers are read.
//   - The goroutine that reads the connection owns the receiving half. ended and stream it writes
//     under the connection's lock, so that others may read them under it.
//   - request goes from there to the handler, once, when the call is dispatched; then it is the
//     handler's, as is room.
//   - The connection's lock guards mu: what is sent, and the end.
//   - The intake's lock guards bill.
//   - answered is set by the one that ends the call, which then calls finishLocked, once.
type Call struct {
	c *conn
	// ended: the client has sent everything. discard: the messages broke a rule, or were too many;
	// the rest is not looked at. The flags stand together: a call takes 288 bytes, and more would
	// cost the next size.
	ended, discard         bool
	hasRequest, dispatched bool
	// began is when the headers were read, by conn.micros.
	began uint32
	m     *method
	// deadline is when the client stops waiting, since the connection began; 0 if it never does.
	deadline time.Duration
	encoding string

	in    rpc.Inflow
	parts rpc.Assembler
	check rpc.Checksum
	// request is the message of a unary call, once it is complete: hasRequest.
	request []byte
	// claim is the message that is coming, if it needs more than its first frame and what is
	// reserved for a stream.
	claim *claim
	// charged: the call has been charged for requests.
	charged, answered atomic.Bool
	bill              struct {
		// held is what the call is charged for, open its claim.
		held int64
		open *claim
	}
	// room is what the handler of a unary call has taken for its answer; nil before it is called.
	room *Room
	// stream is set for calls of stream methods.
	stream *Stream
	// more is what few calls have; nil for others. It is part of the receiving half.
	more *callMore

	mu struct {
		// gone: cancelled by the client, or ended from here.
		rpc.Sender
		// finish, if set, ends the call after what is pending.
		finish *status.Status
		cancel context.CancelFunc
		// md goes with the answer, if there is any.
		md *answerMetadata
	}
}

// onHeaders begins a call, or ends a client's messages.
func (c *conn) onHeaders(f *http2.HeadersFrame) error {
	id := f.StreamID
	if id%2 == 0 {
		return &rpc.ConnError{
			Code: http2.ErrCodeProtocol, Why: "a client's streams have odd numbers",
		}
	}
	if f.HasPriority() && f.Priority.StreamDep == id {
		c.sawStream(id)
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if id <= c.lastID {
		call := c.call(id)
		if call == nil || call.ended { // no gRPC client sends headers twice
			return &rpc.ConnError{
				Code: http2.ErrCodeStreamClosed, Why: "headers on a stream that has ended",
			}
		}
		if !f.StreamEnded() {
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
		}
		return call.onEnd()
	}
	req, httpStatus, bad := c.head.request()
	if bad == errMalformed {
		c.sawStream(id)
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	m, refused := c.method(req.path)
	if c.onTrial || refused == nil && m.internal && !c.internal {
		if err := c.classify(m); err != nil {
			return err
		}
	}
	call := c.newCall(id, m, &req)
	if err := c.enter(call, id); err != nil {
		return err
	}
	c.last = call
	call.m = m
	switch {
	case httpStatus != 0:
		return call.refuseHTTP(bad, httpStatus, req.isHead, f.StreamEnded())
	case bad != nil:
		call.ended = f.StreamEnded()
		call.Fail(bad)
		return nil
	case refused != nil:
		call.ended = f.StreamEnded()
		call.Fail(refused)
		return nil
	}
	if !call.holdMetadata() {
		call.ended = f.StreamEnded()
		call.busy()
		return nil
	}
	if call.m.stream != nil {
		call.startStream()
	}
	if f.StreamEnded() {
		return call.onEnd()
	}
	return nil
}

// enter puts a new call among those of the connection; an error says why it is not taken.
func (c *conn) enter(call *Call, id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID = id
	c.mu.reading = true
	switch {
	case c.mu.closed != nil:
		return c.mu.closed
	case c.mu.goingAway || c.mu.active >= c.s.opts.MaxStreams ||
		len(c.mu.streams) >= int(c.s.opts.MaxStreams):
		// Too many handlers run, or too many answers wait for the client's windows.
		if !c.mu.goingAway {
			c.s.stats.refusedCalls.Add(1)
		}
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	c.mu.active++
	c.mu.streams[id] = call
	c.mu.out.BeginLocked(&call.mu.Sender, id, call)
	return nil
}

func (c *conn) newCall(id uint32, m *method, req *request) *Call {
	window := int64(c.s.opts.FirstWindow)
	call := &Call{c: c, encoding: req.encoding, in: rpc.Inflow{Size: window, Left: window}}
	if req.checksum {
		call.check = rpc.Checksum{
			Sends: true, Checks: true, Prefixes: req.prefixes,
			Seed: rpc.ChecksumSeed(m.sumOf(req.path), id),
		}
	}
	age := time.Since(c.keep.Began)
	call.began = uint32(age.Microseconds())
	if req.timeout >= 0 {
		call.deadline = max(age+min(req.timeout, math.MaxInt64/2), 1)
	}
	if req.length >= 0 || req.md != nil {
		call.more = &callMore{left: req.length, md: req.md}
	}
	return call
}

// refuseHTTP answers a request that is not gRPC. A client that sends more with it has the answer
// when it has sent that, or has used its window up: only clients of gRPC expect an answer before.
func (call *Call) refuseHTTP(err error, httpStatus int, isHead, ended bool) error {
	if call.more == nil {
		call.more = &callMore{left: -1}
	}
	x := call.more
	x.md = nil
	x.refusal, x.httpStatus, x.isHead = status.Convert(err), httpStatus, isHead
	call.discard = true
	if ended {
		return call.onEnd()
	}
	return nil
}

// callMore is what few calls have.
type callMore struct {
	// left is how many bytes of messages the client has still to send; negative if it has not said.
	// md is its metadata.
	left int64
	md   metadata.MD
	// refusal is the answer to a request that is not gRPC, with its HTTP status.
	refusal    *status.Status
	httpStatus int
	// isHead: it was a HEAD, whose answer has no body.
	isHead bool
}

// sumOf begins the checksums of a call; m is nil if the connection may not call it.
func (m *method) sumOf(path string) uint32 {
	if m == nil {
		return rpc.MethodSum(path)
	}
	return m.sum
}

// method finds a method, and says why the connection may not call it; nil if it may. One that may
// not is not returned.
func (c *conn) method(path string) (m *method, refused error) {
	if m = c.s.methods[path]; m == nil {
		return nil, c.s.unknown(path)
	}
	if m.guard != nil {
		if refused = m.guard(c.nc); refused != nil {
			return nil, refused
		}
	}
	return m, nil
}

// unknown says what is not there: the service or only the method.
func (s *Server) unknown(path string) error {
	service, name, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !ok {
		return status.Errorf(codes.Unimplemented, "malformed method name %q", path)
	}
	if _, ok := s.services[service]; !ok {
		return status.Errorf(codes.Unimplemented, "unknown service %s", service)
	}
	return status.Errorf(codes.Unimplemented, "unknown method %s for service %s", name, service)
}

// onEnd: the client has sent everything.
func (call *Call) onEnd() error {
	call.c.mu.Lock()
	call.ended = true
	call.c.mu.Unlock()
	if x := call.more; x != nil {
		if x.left > 0 { // it has said that there would be more (RFC 9113, 8.1.1)
			return http2.StreamError{StreamID: call.mu.ID, Code: http2.ErrCodeProtocol}
		}
		if x.refusal != nil {
			call.endHTTP(x)
			return nil
		}
	}
	switch {
	case call.discard || call.answered.Load():
	case call.isWithin():
		call.refuse(status.Error(codes.Internal, "the call ended within a message"))
	case call.stream != nil:
		call.stream.in.EndRecv(io.EOF)
	case !call.hasRequest:
		call.Fail(status.Error(codes.Internal, "a unary call without a request"))
	default:
		call.dispatch()
	}
	return nil
}

// refuse ends a call whose messages break a rule; the handler of a stream does it, when it has seen
// those before.
func (call *Call) refuse(err error) {
	call.dropParts()
	if call.stream != nil {
		call.stream.in.EndRecv(err)
	} else {
		call.Fail(err)
	}
}

// dispatch has a complete unary call carried out.
func (call *Call) dispatch() {
	call.dispatched = true
	if call.c.full.Load() {
		call.c.s.answers.Refuse()
		call.refuseBusy(NoRoom)
		return
	}
	if f := call.m.inline; f != nil {
		if !trace.Asked(call.Metadata()) && f(call, call.request) {
			call.request = nil // the connection keeps its last call
			return
		}
		// The request lies in the reader's buffer, perhaps.
		call.request = append([]byte(nil), call.request...)
	}
	call.c.s.run(call)
}

// runUnary calls the handler and answers with its result.
func (call *Call) runUnary() {
	ctx, cancel := call.context()
	defer cancel()
	if !call.onCancel(cancel) {
		call.Fail(status.Error(codes.Canceled, "cancelled by the client"))
		return
	}
	// interceptors may keep the answer
	call.room = &Room{b: call.c.s.answers, keeps: call.c.s.unary == nil}
	ctx, traced := call.traced(WithRoom(ctx, call.room))
	reply, err := call.m.unary(call.m.impl, ctx, call.decode, call.c.s.unary)
	traced()
	if err != nil {
		call.Fail(err)
	} else {
		call.Reply(reply)
	}
	call.room.end()
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.c.pushYielding()
}

// traced records the stages of a call whose client asks for them; end is called before the answer.
func (call *Call) traced(ctx context.Context) (_ context.Context, end func()) {
	if !trace.Asked(call.Metadata()) {
		return ctx, func() {}
	}
	now := time.Now()
	waited := time.Duration(call.c.micros()-call.began) * time.Microsecond
	r := trace.New(now.Add(-waited))
	r.Add("queue", now.Add(-waited), waited)
	return trace.With(ctx, r), func() {
		r.Add("request", now.Add(-waited), waited+time.Since(now))
		_ = call.SetTrailer(r.Metadata()) // fails if the client is gone
	}
}

// context makes the handler's context, which ends with the connection or at the client's deadline.
func (call *Call) context() (ctx context.Context, cancel context.CancelFunc) {
	if d, ok := call.Deadline(); ok {
		ctx, cancel = context.WithDeadline(call.c.ctx, d)
	} else {
		ctx, cancel = context.WithCancel(call.c.ctx)
	}
	if md := call.Metadata(); md != nil {
		ctx = metadata.NewIncomingContext(ctx, md)
	}
	return grpc.NewContextWithServerTransportStream(ctx, call), cancel
}

// onCancel registers what ends the handler's context; false if the client has cancelled already.
func (call *Call) onCancel(cancel context.CancelFunc) bool {
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.mu.cancel = cancel
	return !call.mu.Gone
}

// decode is called once: the request is not kept while the handler runs.
func (call *Call) decode(v any) error {
	request := call.request
	call.request = nil
	if err := call.c.s.opts.Codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(request)},
		v); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// Deadline is when the client stops waiting; ok is false if it never does.
func (call *Call) Deadline() (t time.Time, ok bool) {
	if call.deadline == 0 {
		return time.Time{}, false
	}
	return call.c.keep.Began.Add(call.deadline), true
}
