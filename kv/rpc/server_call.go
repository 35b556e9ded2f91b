package rpc

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/codec"
)

// Call is one RPC under way. What the reading goroutine owns stands first, what the connection's lock guards is in mu.
type Call struct {
	c *conn
	// ended: the client has sent all it wants to. Written under the lock. discard: the messages broke a rule, or were too
	// many; the rest is not looked at. The flags stand together: a call takes 288 bytes, and more would cost the next size.
	ended, discard         bool
	hasRequest, dispatched bool
	m                      *method
	// deadline is when the client stops waiting, since the connection began; 0 if it never does.
	deadline time.Duration
	encoding string

	in    inflow
	parts assembler
	check checksum
	// request is the message of a unary call, once it is complete: hasRequest.
	request []byte
	// claim is the message that is coming, if it needs more than its first frame and what is reserved for a stream.
	claim *claim
	// charged: the call has been charged for requests.
	charged, answered atomic.Bool
	// held is what the call is charged for, open its claim. Both belong to the intake's lock.
	held int64
	open *claim
	// room is what the handler of a unary call has taken for its answer; nil before it is called.
	room *Room
	// stream is set for calls of stream methods. Written under the lock.
	stream *Stream

	mu struct {
		// gone: cancelled by the client, or ended from here.
		sender
		// finish, if set, ends the call after what is pending.
		finish *status.Status
		cancel context.CancelFunc
	}
}

// onHeaders begins a call, or ends a client's messages.
func (c *conn) onHeaders(f *http2.HeadersFrame) error {
	id := f.StreamID
	if id%2 == 0 {
		return &connError{http2.ErrCodeProtocol, "a client's streams have odd numbers"}
	}
	if f.HasPriority() && f.Priority.StreamDep == id {
		c.sawStream(id)
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if id <= c.lastID {
		call := c.call(id)
		if call == nil || call.ended { // no gRPC client sends headers twice
			return &connError{http2.ErrCodeStreamClosed, "headers on a stream that has ended"}
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
	c.mu.Lock()
	c.lastID = id
	c.mu.reading = true
	switch {
	case c.mu.closed != nil:
		err := c.mu.closed
		c.mu.Unlock()
		return err
	case c.mu.goingAway || c.mu.active >= c.s.opts.MaxStreams || len(c.mu.streams) >= int(c.s.opts.MaxStreams):
		// Too many handlers run, or too many answers wait for the client's windows.
		c.mu.Unlock()
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	c.mu.active++
	c.mu.streams[id] = call
	c.mu.out.beginLocked(&call.mu.sender, id, call)
	c.mu.Unlock()
	c.last = call
	if bad != nil {
		call.ended = f.StreamEnded()
		call.end(status.Convert(bad), httpStatus)
		return nil
	}
	if call.m = m; refused != nil {
		call.ended = f.StreamEnded()
		call.Fail(refused)
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

func (c *conn) newCall(id uint32, m *method, req *request) *Call {
	window := int64(c.s.opts.FirstWindow)
	call := &Call{c: c, encoding: req.encoding, in: inflow{size: window, left: window}}
	if req.checksum {
		call.check = checksum{sends: true, checks: true, seed: checksumSeed(m.sumOf(req.path), id)}
	}
	if req.timeout >= 0 {
		call.deadline = max(time.Since(c.keep.began)+min(req.timeout, math.MaxInt64/2), 1)
	}
	return call
}

// sumOf begins the checksums of a call; m is nil if the connection may not call it.
func (m *method) sumOf(path string) uint32 {
	if m == nil {
		return methodSum(path)
	}
	return m.sum
}

// method finds a method, and says why the connection may not call it; nil if it may. One that may not is not returned.
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

// onData takes a part of the client's messages.
func (call *Call) onData(f *http2.DataFrame) error {
	n := int64(f.Length)
	if call.stream != nil {
		call.in.left += call.stream.returned.Swap(0)
	}
	call.countGrant()
	if !call.in.take(n) {
		return http2.StreamError{StreamID: call.mu.id, Code: http2.ErrCodeFlowControl}
	}
	if call.discard || call.answered.Load() {
		if f.StreamEnded() {
			return call.onEnd()
		}
		return nil
	}
	data := f.Data()
	padding := n - int64(len(data))
	for len(data) > 0 {
		msg, kept, rest, err := call.assemble(data)
		if err == nil && msg != nil {
			err = call.deliver(msg, kept, f.StreamEnded() && len(rest) == 0)
		}
		if errors.Is(err, ErrCorrupt) {
			return call.c.corrupt(call)
		}
		if err != nil {
			call.refuse(err)
			break
		}
		data = rest
	}
	if f.StreamEnded() {
		return call.onEnd()
	}
	if need, _ := call.coming(); call.claim == nil && need > call.reserved() && !call.discard {
		if call.claim = call.intake().begin(call, need); call.claim == nil {
			call.busy()
			return nil
		}
	}
	call.giveBack(padding)
	return nil
}

// intake is what bounds the call's messages.
func (call *Call) intake() *intake {
	if call.m.internal {
		return call.c.s.intakes[1]
	}
	return call.c.s.intakes[0]
}

// busy refuses a unary call for whose request there is no room.
func (call *Call) busy() {
	call.dropParts()
	if !call.answered.Load() {
		call.intake().refused.Add(1)
		call.refuseBusy(reasonRequests)
	}
}

// assemble adds bytes to the message that is coming.
func (call *Call) assemble(data []byte) (msg []byte, kept bool, rest []byte, err error) {
	limit := call.m.maxRecv + call.check.slack()
	cl := call.claim
	if cl != nil {
		cl.parts.Lock()
		defer cl.parts.Unlock()
		if cl.dead {
			call.discard = true
			return nil, false, nil, nil
		}
	}
	msg, kept, rest, err = call.parts.add(data, limit)
	if cl != nil {
		cl.got.Store(int64(len(call.parts.msg)))
		cl.done = msg != nil
	}
	if msg != nil {
		call.parts = assembler{}
	}
	return msg, kept, rest, err
}

// coming is the size of the message that is coming, 0 if there is none, and how much of it has come.
func (call *Call) coming() (need, got int64) {
	if cl := call.claim; cl != nil {
		return cl.need, cl.got.Load()
	}
	return int64(call.parts.need), int64(len(call.parts.msg))
}

// reserved is how large a message may be for which the call is not charged.
func (call *Call) reserved() int64 {
	if call.stream == nil {
		return 0
	}
	return call.stream.reserved
}

// countGrant adds what was granted to the message that is coming to the stream's window.
func (call *Call) countGrant() {
	if cl := call.claim; cl != nil && cl.asked && !cl.counted && cl.given.Load() {
		cl.counted = true
		call.in.left += cl.window
	}
}

// dropParts forgets the message that is coming, and all that follow.
func (call *Call) dropParts() {
	if cl := call.claim; cl != nil {
		cl.parts.Lock()
		defer cl.parts.Unlock()
		cl.done = true
	}
	call.discard, call.parts = true, assembler{}
}

// isWithin tells whether a part of a message has come and the rest has not.
func (call *Call) isWithin() bool {
	if cl := call.claim; cl != nil {
		cl.parts.Lock()
		defer cl.parts.Unlock()
	}
	return call.parts.started()
}

// giveBack lets the client send more: what is needed for the message that has begun to come.
func (call *Call) giveBack(padding int64) {
	due := padding
	if need, _ := call.coming(); need > 0 && !call.discard && call.in.left < call.in.size/2 {
		// The parts of a message that is not complete cannot be taken by the handler yet.
		due += call.more()
	}
	if due == 0 {
		return
	}
	call.in.left += due
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.windowUpdateLocked(due)
}

// more tells how much window to give for the message that is coming.
func (call *Call) more() int64 {
	need, got := call.coming()
	cl := call.claim
	if cl == nil || call.stream != nil && call.stream.isBehind() {
		if call.stream == nil {
			return 0 // the first window takes it
		}
		return call.stream.early(got)
	}
	if cl.asked {
		return 0
	}
	// The rest of the message beyond the window that the client has. What comes meanwhile takes from both.
	cl.asked, cl.window = true, need-got-call.in.left
	if cl.window <= 0 {
		cl.window = 0
		return 0
	}
	switch cl.in.ask(cl) {
	case askGranted:
		cl.counted = true // by the caller
		return cl.window
	case askRefused:
		call.busy()
	}
	return 0
}

func (call *Call) windowUpdateLocked(n int64) {
	if !call.mu.gone && !call.ended && n > 0 {
		_ = call.c.mu.out.fw.WriteWindowUpdate(call.mu.id, uint32(n))
		call.c.kickLocked()
	}
}

// deliver takes a complete message. kept: it is the call's own memory. last: nothing comes after it.
func (call *Call) deliver(msg []byte, kept, last bool) error {
	compressed := msg[0]
	size := int64(len(msg))
	charged := int64(0)
	if cl := call.claim; cl != nil {
		var window int64
		charged, window = cl.in.complete(cl)
		size -= window
		call.countGrant()
		call.claim = nil
	}
	body, err := call.check.open(toServer, msg[prefixSize:])
	if err != nil {
		return err
	}
	if call.stream == nil {
		if call.hasRequest {
			return status.Error(codes.Internal, "more than one request for a unary call")
		}
		call.hasRequest = true
		if compressed != 0 {
			if body, err = decompress(compressed, call.encoding, body, call.c.s.opts.MaxRecv); err != nil {
				return err
			}
			kept = true
		}
		if !kept && !(last && call.m.inline != nil) {
			body = append([]byte(nil), body...)
		}
		call.request = body
		return nil
	}
	if compressed == 0 && call.stream.offerInline(body) {
		call.uncharge(charged)
		if give := call.stream.took(size); give > 0 {
			call.stream.giveBack(give)
		}
		return nil
	}
	if !kept {
		body = append([]byte(nil), body...)
	}
	call.stream.push(message{body: body, compressed: compressed, owed: size, charged: charged})
	return nil
}

// uncharge takes back what the call was charged for a message that its handler has taken.
func (call *Call) uncharge(n int64) {
	if n > 0 {
		call.intake().give(call, n)
	}
}

// onEnd: the client has sent everything.
func (call *Call) onEnd() error {
	call.c.mu.Lock()
	call.ended = true
	call.c.mu.Unlock()
	switch {
	case call.discard || call.answered.Load():
	case call.isWithin():
		call.refuse(status.Error(codes.Internal, "the call ended within a message"))
	case call.stream != nil:
		call.stream.endRecv(io.EOF)
	case !call.hasRequest:
		call.Fail(status.Error(codes.Internal, "a unary call without a request"))
	default:
		call.dispatch()
	}
	return nil
}

// refuse ends a call whose messages break a rule; the handler of a stream does it, when it has seen those before.
func (call *Call) refuse(err error) {
	call.dropParts()
	if call.stream != nil {
		call.stream.endRecv(err)
	} else {
		call.Fail(err)
	}
}

// dispatch has a complete unary call carried out.
func (call *Call) dispatch() {
	call.dispatched = true
	if call.c.full.Load() {
		call.c.s.answers.refused.Add(1)
		call.refuseBusy(NoRoom)
		return
	}
	if f := call.m.inline; f != nil {
		if f(call, call.request) {
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
	call.room = NewRoom(call.c.s.answers)
	reply, err := call.m.unary(call.m.impl, WithRoom(ctx, call.room), call.decode, nil)
	if err != nil {
		call.Fail(err)
	} else {
		call.Reply(reply)
	}
	call.room.Give()
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.c.pushYielding()
}

// context makes the handler's context, which ends with the connection or at the client's deadline.
func (call *Call) context() (context.Context, context.CancelFunc) {
	if d, ok := call.Deadline(); ok {
		return context.WithDeadline(call.c.ctx, d)
	}
	return context.WithCancel(call.c.ctx)
}

// onCancel registers what ends the handler's context; false if the client has cancelled already.
func (call *Call) onCancel(cancel context.CancelFunc) bool {
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.mu.cancel = cancel
	return !call.mu.gone
}

// decode is called once: the request is not kept while the handler runs.
func (call *Call) decode(v any) error {
	request := call.request
	call.request = nil
	if err := call.c.s.opts.Codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(request)}, v); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// Deadline is when the client stops waiting; ok is false if it never does.
func (call *Call) Deadline() (t time.Time, ok bool) {
	if call.deadline == 0 {
		return time.Time{}, false
	}
	return call.c.keep.began.Add(call.deadline), true
}

// Reply answers with a message and success. Of all answers the first counts. It does not block.
func (call *Call) Reply(m any) {
	if call.answered.Swap(true) {
		return
	}
	c := call.c
	c.mu.Lock()
	defer c.mu.Unlock()
	st := okStatus
	if !call.mu.gone {
		err := call.sendLocked(m)
		if errors.Is(err, errAnswersFull) {
			if err = busyStatus(NoRoom); call.m.busy != nil {
				err = call.sendLocked(call.m.busy(NoRoom))
			}
		}
		if err != nil {
			st = status.Convert(err)
		}
	}
	call.finishLocked(st, 0)
}

var okStatus = status.New(codes.OK, "")

// Fail answers with an error: a status, or one of a context; anything else is Unknown. It does not block.
func (call *Call) Fail(err error) {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	call.end(st, 0)
}

func (call *Call) end(st *status.Status, httpStatus int) {
	if call.answered.Swap(true) {
		return
	}
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.finishLocked(st, httpStatus)
}

// finishLocked ends the call after what it has sent. Called once per call.
func (call *Call) finishLocked(st *status.Status, httpStatus int) {
	c := call.c
	c.mu.active--
	if call.charged.Load() {
		call.intake().release(call)
	}
	if n := call.reserved(); n > 0 {
		call.windows().Give(n)
	}
	if call.mu.gone || c.mu.closed != nil {
		c.endIfDrainedLocked()
		return
	}
	call.mu.finish = st
	if len(call.mu.pending) == 0 {
		call.sendTrailersLocked(httpStatus)
	}
	c.kickLocked()
}

// sendTrailersLocked writes the last frame.
func (call *Call) sendTrailersLocked(httpStatus int) {
	c := call.c
	var block []byte
	if st := call.mu.finish; st.Code() == codes.OK {
		call.sendHeadersLocked()
		block = c.mu.enc.block(blockOK)
	} else {
		block = c.mu.enc.failure(st, !call.mu.headed, httpStatus)
	}
	c.mu.out.headersLocked(call.mu.id, block, true)
	if !call.ended {
		_ = c.mu.out.fw.WriteRSTStream(call.mu.id, http2.ErrCodeNo)
	}
	call.mu.gone = true
	delete(c.mu.streams, call.mu.id)
	c.endIfDrainedLocked()
}

func (call *Call) sendHeadersLocked() {
	if !call.mu.headed {
		call.mu.headed = true
		call.c.mu.out.headersLocked(call.mu.id, call.c.mu.enc.block(blockHeaders), false)
	}
}

// mayNotFit tells whether an answer is left out if there is no room for it.
func (call *Call) mayNotFit() bool { return call.stream == nil && !call.m.always }

// sendLocked encodes a message and sends it as far as the client's windows allow.
func (call *Call) sendLocked(m any) error {
	c := call.c
	call.sendHeadersLocked()
	g, ok := m.(codec.Message)
	if !ok {
		buf, err := encodeForeign(c.s.opts.Codec, m, call.m.maxSend, call.check.size())
		if err != nil {
			return err
		}
		taken, ok := call.takeRoomLocked(len(buf))
		if !ok {
			return errAnswersFull
		}
		call.check.seal(toClient, buf[prefixSize:])
		c.mu.out.queueLocked(&call.mu.sender, buf)
		c.s.answers.Give(taken)
		c.settleLocked()
		return nil
	}
	size := g.Size()
	if size > call.m.maxSend {
		return tooLarge("send", size, call.m.maxSend)
	}
	total := prefixSize + size + call.check.size()
	taken, ok := call.takeRoomLocked(total)
	if !ok {
		return errAnswersFull
	}
	err := c.mu.out.messageLocked(&call.mu.sender, &call.check, toClient, g, total)
	if taken > 0 {
		c.s.answers.Give(taken)
	}
	if c.mu.out.pendingBytes > 0 {
		c.settleLocked()
	}
	return err
}

// drainedLocked is called when what waited for windows has left, or will not any more.
func (call *Call) drainedLocked() {
	if call.stream != nil {
		call.stream.wakeSender()
	}
	if call.mu.finish != nil && !call.mu.gone {
		call.sendTrailersLocked(0)
	}
}

// onReset: the client does not want the answer any more.
func (c *conn) onReset(f *http2.RSTStreamFrame) error {
	if f.StreamID > c.lastID {
		return &connError{http2.ErrCodeProtocol, "reset of a stream that was never opened"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(f.StreamID)
	return nil
}

// resetStream ends a call that broke the protocol, or refuses one.
func (c *conn) resetStream(id uint32, code http2.ErrCode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.mu.out.fw.WriteRSTStream(id, code)
	c.dropLocked(id)
}

func (c *conn) dropLocked(id uint32) {
	call := c.mu.streams[id]
	if call == nil {
		return
	}
	delete(c.mu.streams, id)
	call.dropLocked()
	call.dropParts()
	if call.stream == nil && !call.dispatched && !call.answered.Swap(true) {
		call.finishLocked(okStatus, 0) // its request will never be complete
	}
	c.endIfDrainedLocked()
}

// dropLocked: nothing is sent or received any more; the handler, if there is one, hears of it by its context.
func (call *Call) dropLocked() {
	call.c.mu.out.dropLocked(&call.mu.sender)
	if call.mu.cancel != nil {
		call.mu.cancel()
	}
	if call.stream != nil {
		call.stream.wakeSender()
	}
}
