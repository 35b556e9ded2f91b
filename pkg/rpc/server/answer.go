package server

import (
	"errors"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/proto/codec"
)

// Reply answers with a message and success. Of all answers the first counts. It does not block.
func (call *Call) Reply(m any) {
	if call.answered.Swap(true) {
		return
	}
	c := call.c
	c.mu.Lock()
	defer c.mu.Unlock()
	st := rpc.StatusOK
	if !call.mu.Gone {
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
	call.finishLocked(st)
}

// Fail answers with an error: a status, or one of a context; anything else is Unknown. It does not
// block.
func (call *Call) Fail(err error) {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	call.end(st)
}

func (call *Call) end(st *status.Status) {
	if call.answered.Swap(true) {
		return
	}
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.finishLocked(st)
}

// endHTTP answers a request that is not gRPC, in words.
func (call *Call) endHTTP(x *callMore) {
	if call.answered.Swap(true) {
		return
	}
	c := call.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !call.mu.Gone && c.mu.closed == nil {
		words := notGRPC + x.refusal.Message() + ".\n"
		block := c.mu.enc.plain(x.httpStatus, len(words))
		call.mu.Headed, call.mu.Last = true, true
		c.mu.out.HeadersLocked(call.mu.ID, block, x.isHead)
		if !x.isHead {
			c.mu.out.QueueLocked(&call.mu.Sender, []byte(words))
		}
	}
	call.finishLocked(x.refusal)
}

// notGRPC begins the answer to clients of another protocol.
const notGRPC = "This port speaks gRPC: "

// finishLocked ends the call after what it has sent. Called once per call.
func (call *Call) finishLocked(st *status.Status) {
	c := call.c
	call.time(st.Code())
	c.mu.active--
	if call.charged.Load() {
		call.intake().release(call)
	}
	if n := call.reserved(); n > 0 {
		call.windows().Give(n)
	}
	if call.mu.Gone || c.mu.closed != nil {
		c.endIfDrainedLocked()
		return
	}
	call.mu.finish = st
	if call.mu.Backlog() == 0 {
		call.sendTrailersLocked()
	}
	c.kickLocked()
}

// sendTrailersLocked writes the last frame, unless what was sent before it ends the stream.
func (call *Call) sendTrailersLocked() {
	c := call.c
	if !call.mu.Last {
		c.mu.out.HeadersLocked(call.mu.ID, call.trailersLocked(), true)
	}
	if !call.ended {
		_ = c.mu.out.Framer.WriteRSTStream(call.mu.ID, http2.ErrCodeNo)
	}
	call.mu.Gone = true
	delete(c.mu.streams, call.mu.ID)
	c.endIfDrainedLocked()
}

// trailersLocked is the block that says how the call ended.
func (call *Call) trailersLocked() (block []byte) {
	c := call.c
	if st := call.mu.finish; st.Code() == codes.OK {
		call.sendHeadersLocked()
		block = c.mu.enc.block(blockOK)
	} else {
		if call.mu.md != nil && len(call.mu.md.header) > 0 {
			call.sendHeadersLocked()
		}
		block = c.mu.enc.failure(st, !call.mu.Headed)
	}
	if call.mu.md != nil {
		block = c.mu.enc.with(block, call.mu.md.trailer)
	}
	return block
}

func (call *Call) sendHeadersLocked() {
	if !call.mu.Headed {
		call.mu.Headed = true
		block := call.c.mu.enc.block(blockHeaders)
		if call.mu.md != nil {
			block = call.c.mu.enc.with(block, call.mu.md.header)
		}
		call.c.mu.out.HeadersLocked(call.mu.ID, block, false)
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
		buf, err := rpc.EncodeForeign(c.s.opts.Codec, nil, m, call.m.maxSend, call.check.Size())
		if err != nil {
			return err
		}
		taken, ok := call.takeRoomLocked(len(buf))
		if !ok {
			return errAnswersFull
		}
		call.check.Seal(rpc.ToClient, buf)
		c.mu.out.QueueLocked(&call.mu.Sender, buf)
		c.settleLocked() // before it is given back: the limit holds at every moment
		c.s.answers.Give(taken)
		return nil
	}
	size := g.Size()
	if size > call.m.maxSend {
		return rpc.TooLarge("send", size, call.m.maxSend)
	}
	total := rpc.PrefixSize + size + call.check.Size()
	taken, ok := call.takeRoomLocked(total)
	if !ok {
		return errAnswersFull
	}
	err := c.mu.out.MessageLocked(&call.mu.Sender, &call.check, rpc.ToClient, g, total)
	c.noteOutputLocked()
	if taken > 0 {
		c.s.answers.Give(taken)
	}
	return err
}

// drainedLocked is called when what waited for windows has left, or will not any more.
func (call *Call) DrainedLocked() {
	if call.stream != nil {
		call.stream.wakeSender()
	}
	if call.mu.finish != nil && !call.mu.Gone {
		call.sendTrailersLocked()
	}
}

// onReset: the client does not want the answer any more.
func (c *conn) onReset(f *http2.RSTStreamFrame) error {
	if f.StreamID > c.lastID {
		return &rpc.ConnError{
			Code: http2.ErrCodeProtocol, Why: "reset of a stream that was never opened",
		}
	}
	if c.last != nil && c.last.mu.ID == f.StreamID {
		c.last = nil // what still comes for it is against the rules
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
	_ = c.mu.out.Framer.WriteRSTStream(id, code)
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
		call.finishLocked(rpc.StatusOK) // its request will never be complete
	}
	c.endIfDrainedLocked()
}

// dropLocked: nothing is sent or received any more; the handler, if there is one, learns it from
// its context.
func (call *Call) dropLocked() {
	call.c.mu.out.DropLocked(&call.mu.Sender)
	if call.mu.cancel != nil {
		call.mu.cancel()
	}
	if call.stream != nil {
		call.stream.wakeSender()
	}
}

// Method is the path of the call. With SetHeader, SendHeader and SetTrailer it makes a Call a
// grpc.ServerTransportStream, which handlers find in their contexts by grpc's functions of these
// names.
func (call *Call) Method() string { return call.m.path }

// Metadata is what the client has sent with the call besides the protocol's headers; nil if that is
// nothing. It must not be changed.
func (call *Call) Metadata() metadata.MD {
	if call.more == nil {
		return nil
	}
	return call.more.md
}

// SetHeader adds to the metadata that is sent before the first message. It fails if that was sent,
// or cannot be.
func (call *Call) SetHeader(md metadata.MD) error {
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	return call.setHeaderLocked(md)
}

func (call *Call) setHeaderLocked(md metadata.MD) error {
	if call.mu.Headed {
		return status.Error(codes.Internal, "the headers were sent already")
	}
	return call.addLocked(md, func(x *answerMetadata) *metadata.MD { return &x.header })
}

// addLocked adds to the metadata of the answer, unless it cannot be sent.
func (call *Call) addLocked(md metadata.MD, to func(*answerMetadata) *metadata.MD) error {
	if len(md) == 0 {
		return nil
	}
	if err := rpc.CheckMetadata(md); err != nil {
		return err
	}
	x := call.mu.md
	if x == nil {
		x = new(answerMetadata)
	}
	all := metadata.Join(*to(x), md)
	if limit := call.c.s.opts.MaxHeaderBytes; rpc.MetadataSize(all) > int(limit) {
		return status.Errorf(codes.ResourceExhausted, "metadata larger than max (%d)", limit)
	}
	*to(x), call.mu.md = all, x
	return nil
}

// answerMetadata goes with an answer. It belongs to the connection's lock.
type answerMetadata struct{ header, trailer metadata.MD }

// SendHeader is SetHeader, and sends the metadata now.
func (call *Call) SendHeader(md metadata.MD) error {
	c := call.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := call.setHeaderLocked(md); err != nil {
		return err
	}
	if !call.mu.Gone {
		call.sendHeadersLocked()
		c.kickLocked()
	}
	return nil
}

// SetTrailer adds to the metadata that is sent with the status. It fails if that cannot be.
func (call *Call) SetTrailer(md metadata.MD) error {
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	return call.addLocked(md, func(x *answerMetadata) *metadata.MD { return &x.trailer })
}
