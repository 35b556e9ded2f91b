package server

import (
	"errors"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// onData takes a part of the client's messages.
func (call *Call) onData(f *http2.DataFrame) error {
	n := int64(f.Length)
	if call.stream != nil {
		call.in.Left += call.stream.returned.Swap(0)
	}
	call.countGrant()
	if !call.in.Take(n) {
		return http2.StreamError{StreamID: call.mu.ID, Code: http2.ErrCodeFlowControl}
	}
	data := f.Data()
	padding := n - int64(len(data))
	if x := call.more; x != nil && x.left >= 0 {
		if x.left -= int64(len(data)); x.left < 0 {
			return http2.StreamError{StreamID: call.mu.ID, Code: http2.ErrCodeProtocol}
		}
	}
	if call.discard || call.answered.Load() {
		if f.StreamEnded() {
			return call.onEnd()
		}
		if x := call.more; x != nil && x.refusal != nil && call.in.Left == 0 {
			call.endHTTP(x)
		}
		return nil
	}
	for len(data) > 0 {
		msg, kept, rest, err := call.assemble(data)
		if err == nil && msg != nil {
			err = call.deliver(msg, kept, f.StreamEnded() && len(rest) == 0)
		}
		if errors.Is(err, rpc.ErrCorrupt) {
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

// freeMetadata is how much metadata a call may have uncharged, in bytes.
const freeMetadata = 1 << 10

// holdMetadata charges the call for metadata that is not small, until it ends; false if there is no
// room.
func (call *Call) holdMetadata() bool {
	if call.more == nil || call.more.md == nil {
		return true
	}
	size := rpc.MetadataSize(call.more.md)
	return size <= freeMetadata || call.intake().hold(call, int64(size))
}

// busy refuses a call for whose request there is no room.
func (call *Call) busy() {
	call.dropParts()
	if !call.answered.Load() {
		call.intake().refused.Add(1)
		call.refuseBusy(reasonRequests)
	}
}

// assemble adds bytes to the message that is coming.
func (call *Call) assemble(data []byte) (msg []byte, kept bool, rest []byte, err error) {
	limit := call.m.maxRecv + call.check.Slack()
	cl := call.claim
	if cl != nil {
		cl.parts.Lock()
		defer cl.parts.Unlock()
		if cl.dead {
			call.discard = true
			return nil, false, nil, nil
		}
	}
	waits := cl != nil && !cl.given.Load() // a stream's window is larger than what was charged
	msg, kept, rest, err = call.parts.Add(data, limit, waits, &call.check)
	if cl != nil {
		cl.got.Store(int64(len(call.parts.Msg)))
		cl.done = msg != nil
	}
	if msg != nil {
		call.parts = rpc.Assembler{}
	}
	return msg, kept, rest, err
}

// coming is the size of the message that is coming, 0 if there is none, and how much of it has
// come.
func (call *Call) coming() (need, got int64) {
	if cl := call.claim; cl != nil {
		return cl.need, cl.got.Load()
	}
	return int64(call.parts.Need), int64(len(call.parts.Msg))
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
		call.in.Left += cl.window
	}
}

// dropParts forgets the message that is coming, and all that follow.
func (call *Call) dropParts() {
	if cl := call.claim; cl != nil {
		cl.parts.Lock()
		defer cl.parts.Unlock()
		cl.done = true
	}
	call.discard, call.parts = true, rpc.Assembler{}
}

// isWithin tells whether a part of a message has come and the rest has not.
func (call *Call) isWithin() bool {
	if cl := call.claim; cl != nil {
		cl.parts.Lock()
		defer cl.parts.Unlock()
	}
	return call.parts.Started()
}

// giveBack lets the client send more: what is needed for the message that has begun to come.
func (call *Call) giveBack(padding int64) {
	due := padding
	if need, _ := call.coming(); need > 0 && !call.discard && call.in.Left < call.in.Size/2 {
		// The parts of a message that is not complete cannot be taken by the handler yet.
		due += call.moreWindow()
	}
	if due == 0 {
		return
	}
	call.in.Left += due
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	call.windowUpdateLocked(due)
}

// moreWindow tells how much window to give for the message that is coming.
func (call *Call) moreWindow() int64 {
	need, got := call.coming()
	cl := call.claim
	if cl == nil || call.stream != nil && call.stream.in.IsBehind() {
		if call.stream == nil {
			return 0 // the first window takes it
		}
		return call.stream.in.Early(got)
	}
	if cl.asked {
		return 0
	}
	// The rest of the message beyond the window that the client has. What comes meanwhile takes
	// from both.
	cl.asked, cl.window = true, need-got-call.in.Left
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
	if !call.mu.Gone && !call.ended && n > 0 {
		_ = call.c.mu.out.Framer.WriteWindowUpdate(call.mu.ID, uint32(n))
		call.c.kickLocked()
	}
}

// deliver takes a complete message. kept: it is the call's own memory. last: nothing comes after
// it.
func (call *Call) deliver(msg []byte, kept, last bool) error {
	compressed := rpc.Compressed(msg)
	size := int64(len(msg))
	charged := int64(0)
	if cl := call.claim; cl != nil {
		var window int64
		charged, window = cl.in.complete(cl)
		size -= window
		call.countGrant()
		call.claim = nil
	}
	body, err := call.check.Open(rpc.ToServer, msg[rpc.PrefixSize:])
	if err != nil {
		return err
	}
	if call.stream == nil {
		if call.hasRequest {
			return status.Error(codes.Internal, "more than one request for a unary call")
		}
		call.hasRequest = true
		if compressed != 0 {
			if body, err = rpc.Decompress(compressed, call.encoding, body,
				call.c.s.opts.MaxRecv); err != nil {
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
	if compressed == 0 && call.stream.offerInline(body, charged) {
		call.uncharge(charged)
		if give := call.stream.in.Took(size); give > 0 {
			call.stream.giveBack(give)
		}
		return nil
	}
	if !kept {
		body = append([]byte(nil), body...)
	}
	call.stream.in.Push(rpc.Message{
		Body: body, Compressed: compressed, Owed: size, Charged: charged,
	})
	return nil
}

// uncharge takes back what the call was charged for a message that its handler has taken.
func (call *Call) uncharge(n int64) {
	if n > 0 {
		call.intake().give(call, n)
	}
}
