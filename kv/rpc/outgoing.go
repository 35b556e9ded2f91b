package rpc

import (
	"iter"
	"math"
	"slices"

	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/proto/codec"
)

// outgoing is the sending half of a connection: the output, a Framer that writes into it, and what the other side's
// windows allow. It belongs to the connection's lock, as do the senders of its streams.
//
// Invariant: blocked has each sender whose field of that name is set, once, and no other. pendingBytes is the memory of
// what the senders of the connection hold back.
type outgoing struct {
	output
	// fw writes into the output, and never fails.
	fw *http2.Framer
	// window is what the other side takes over all streams, initial what it takes on a new one.
	window, initial int64
	maxFrame        int
	// most is the size of output at which messages begin to wait, in bytes.
	most int
	// blocked are the senders that wait for a window or the output, in the order in which they began to.
	blocked      []*sender
	pendingBytes int64
	// sent counts the frames of headers and messages.
	sent uint64
}

// sender is the sending half of a stream. It belongs to the connection's lock.
type sender struct {
	id uint32
	// last: the stream ends with the last frame of what is pending or sent next. gone: nothing is sent any more.
	// headed: the first headers were sent.
	last, blocked, gone, headed bool
	// window is how much the other side takes on this stream.
	window int64
	// pending waits for windows. It counts with all of its memory until it is gone.
	pending    []byte
	pendingCap int
	owner      interface{ drainedLocked() }
}

// backlog is how many bytes wait for windows or the output.
func (s *sender) backlog() int { return len(s.pending) }

// maxOut is how much output may wait before those that can wait do, in bytes.
const maxOut = 1 << 20

// init makes the half of a new connection (RFC 9113, 6.9.2 and 6.5.2). most as in outgoing; 0: messages never wait for the
// output.
func (o *outgoing) init(most int) {
	o.window, o.initial, o.maxFrame, o.most = initialWindow, initialWindow, 16<<10, most
	if most == 0 {
		o.most = math.MaxInt
	}
	o.fw = http2.NewFramer(&o.output, nil)
}

// beginLocked makes a sender that of a new stream; owner is told when what waited has left.
func (o *outgoing) beginLocked(s *sender, id uint32, owner interface{ drainedLocked() }) {
	s.id, s.owner, s.window = id, owner, o.initial
}

// take takes the output, to write it.
func (o *outgoing) take() output {
	out := o.output
	o.output = output{}
	return out
}

// headersLocked writes a header block in as many frames as it takes.
func (o *outgoing) headersLocked(id uint32, block []byte, end bool) {
	o.sent++
	for first := true; first || len(block) > 0; first = false {
		n := min(len(block), o.maxFrame)
		if first {
			_ = o.fw.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: block[:n], EndStream: end, EndHeaders: n == len(block),
			})
		} else {
			_ = o.fw.WriteContinuation(id, n == len(block), block[:n])
		}
		block = block[n:]
	}
}

// messageLocked encodes a message and sends it as far as the windows allow; total is its size with prefix and checksum. If
// it fails nothing was sent.
func (o *outgoing) messageLocked(s *sender, k *checksum, d direction, m codec.Message, total int) error {
	if !o.takesLocked(s, total) {
		buf := make([]byte, total)
		if err := k.put(d, buf, m); err != nil {
			return err
		}
		o.queueLocked(s, buf)
		return nil
	}
	// The usual case: straight into the output.
	n := frameCount(total, o.maxFrame)
	framed := total + frameHeader*n
	buf := o.grow(framed)
	if err := k.put(d, buf[framed-total:], m); err != nil {
		o.shrink(framed)
		return err
	}
	frames(buf, total, o.maxFrame, s.id)
	if s.last {
		endStream(buf[(n-1)*(frameHeader+o.maxFrame):])
	}
	o.sent++
	o.window -= int64(total)
	s.window -= int64(total)
	return nil
}

// takesLocked tells whether a message of so many bytes would go straight into the output.
func (o *outgoing) takesLocked(s *sender, total int) bool {
	return len(s.pending) == 0 && total <= largeMessage && int64(total) <= min(o.window, s.window)
}

// queueLocked takes over bytes to send.
func (o *outgoing) queueLocked(s *sender, buf []byte) {
	if len(s.pending) > 0 {
		buf = append(s.pending, buf...)
	}
	o.holdLocked(s, buf)
	o.pendingLocked(s)
}

// finishLocked ends the stream with a frame of messages, after what is pending.
func (o *outgoing) finishLocked(s *sender) {
	s.last = true
	if len(s.pending) == 0 {
		buf := o.grow(frameHeader)
		putFrameHeader(buf, 0, s.id)
		endStream(buf)
	}
}

// holdLocked replaces what of the stream waits.
func (o *outgoing) holdLocked(s *sender, buf []byte) {
	o.pendingBytes += int64(cap(buf) - s.pendingCap)
	s.pending, s.pendingCap = buf, cap(buf)
}

// pendingLocked sends what the windows and the output allow, and joins the queue for them with the rest.
func (o *outgoing) pendingLocked(s *sender) {
	for len(s.pending) > 0 && !s.gone {
		n := min(int64(o.maxFrame), o.window, s.window, int64(len(s.pending)))
		if n <= 0 || o.size >= o.most {
			if !s.blocked {
				s.blocked = true
				o.blocked = append(o.blocked, s)
			}
			return
		}
		o.sent++
		buf := o.grow(frameHeader + int(n))
		putFrameHeader(buf, int(n), s.id)
		copy(buf[frameHeader:], s.pending)
		s.pending = s.pending[n:]
		if s.last && len(s.pending) == 0 {
			endStream(buf)
		}
		o.window -= n
		s.window -= n
	}
	o.holdLocked(s, nil)
	s.owner.drainedLocked()
}

// pumpLocked sends what waited, and tells whether anything did.
func (o *outgoing) pumpLocked() bool {
	blocked := o.blocked
	if len(blocked) == 0 {
		return false
	}
	o.blocked = nil
	for _, s := range blocked {
		s.blocked = false
		o.pendingLocked(s) // may wait again
	}
	return true
}

// dropLocked: nothing is sent on the stream any more.
func (o *outgoing) dropLocked(s *sender) {
	s.gone = true
	o.holdLocked(s, nil)
	if s.blocked {
		s.blocked = false
		o.blocked = slices.DeleteFunc(o.blocked, func(b *sender) bool { return b == s })
	}
}

// closeLocked drops the output when the connection ends. The streams are to be dropped after it.
func (o *outgoing) closeLocked() {
	o.output = output{}
	for _, s := range o.blocked {
		s.blocked = false
	}
	o.blocked = nil
}

// widenLocked adds to the window of the connection, or of s if it is not nil.
func (o *outgoing) widenLocked(s *sender, n int64) error {
	switch {
	case s == nil:
		if o.window += n; o.window > maxWindow {
			return &connError{http2.ErrCodeFlowControl, "window larger than 2^31-1"}
		}
	default:
		if s.window += n; s.window > maxWindow {
			return http2.StreamError{StreamID: s.id, Code: http2.ErrCodeFlowControl}
		}
	}
	return nil
}

// applyLocked follows the other side's settings and acknowledges them. senders are those of all streams, own sees the
// settings that are its role's.
func (o *outgoing) applyLocked(f *http2.SettingsFrame, senders iter.Seq[*sender], own func(http2.Setting)) error {
	err := f.ForeachSetting(func(st http2.Setting) error {
		if err := st.Valid(); err != nil {
			return err
		}
		switch st.ID {
		case http2.SettingInitialWindowSize:
			return o.resizeLocked(int64(st.Val), senders)
		case http2.SettingMaxFrameSize:
			o.maxFrame = int(st.Val)
		default:
			own(st)
		}
		return nil
	})
	_ = o.fw.WriteSettingsAck()
	return err
}

// resizeLocked changes the windows of all streams, also to below zero (RFC 9113, 6.9.2).
func (o *outgoing) resizeLocked(size int64, senders iter.Seq[*sender]) error {
	delta := size - o.initial
	o.initial = size
	for s := range senders {
		if s.window += delta; s.window > maxWindow {
			return &connError{http2.ErrCodeFlowControl, "window larger than 2^31-1"}
		}
	}
	return nil
}
