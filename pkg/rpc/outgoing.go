package rpc

import (
	"iter"
	"math"
	"slices"

	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/proto/codec"
)

// Outgoing is the sending half of a connection: the output, a Framer that writes into it, and what
// the other side's windows allow. It belongs to the connection's lock, as do the senders of its
// streams.
//
// Invariant: blocked has each sender whose field of that name is set, once, and no other.
// PendingBytes is the sum of their pendingCap.
type Outgoing struct {
	Output
	// Framer writes into the output, and never fails.
	Framer *http2.Framer
	// window is what the other side takes over all streams, initial what it takes on a new one.
	window, initial int64
	maxFrame        int
	// most is the size of output at which messages begin to wait, in bytes.
	most int
	// blocked are the senders that wait for a window or the output, in the order in which they
	// began to.
	blocked []*Sender
	// PendingBytes is the memory of all that waits, in bytes.
	PendingBytes int64
	// Sent counts the frames of headers and messages.
	Sent uint64
}

// Sender is the sending half of a stream. It belongs to the connection's lock, but for ID, which
// does not change once the stream has begun.
type Sender struct {
	// ID is the stream's number.
	ID uint32
	// Last: the stream ends with the last frame of what is pending or sent next. Gone: nothing is
	// sent any more. Headed: the first headers were sent.
	Last, blocked, Gone, Headed bool
	// window is how much the other side takes on this stream.
	window int64
	// pending waits for windows. It counts with all of its memory until it is gone.
	pending    []byte
	pendingCap int
	owner      interface{ DrainedLocked() }
}

// Backlog is how many bytes wait for windows or the output.
func (s *Sender) Backlog() int { return len(s.pending) }

// MaxOut is how much output may wait before those that can wait do, in bytes.
const MaxOut = 1 << 20

// Init makes the half of a new connection (RFC 9113, 6.9.2 and 6.5.2). most is the size of output
// at which messages begin to wait, in bytes; 0: they never do.
func (o *Outgoing) Init(most int) {
	o.window, o.initial, o.maxFrame, o.most = InitialWindow, InitialWindow, 16<<10, most
	if most == 0 {
		o.most = math.MaxInt
	}
	o.Framer = http2.NewFramer(&o.Output, nil)
}

// BeginLocked makes a sender that of a new stream; it calls owner when what waited has left.
func (o *Outgoing) BeginLocked(s *Sender, id uint32, owner interface{ DrainedLocked() }) {
	s.ID, s.owner, s.window = id, owner, o.initial
}

// Take takes the output, to write it.
func (o *Outgoing) Take() Output {
	out := o.Output
	o.Output = Output{}
	return out
}

// HeadersLocked writes a header block in as many frames as it takes.
func (o *Outgoing) HeadersLocked(id uint32, block []byte, end bool) {
	o.Sent++
	for first := true; first || len(block) > 0; first = false {
		n := min(len(block), o.maxFrame)
		if first {
			_ = o.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: block[:n], EndStream: end, EndHeaders: n == len(block),
			})
		} else {
			_ = o.Framer.WriteContinuation(id, n == len(block), block[:n])
		}
		block = block[n:]
	}
}

// MessageLocked encodes a message and sends it as far as the windows allow; total is its size with
// prefix and checksum. If it fails nothing was sent.
func (o *Outgoing) MessageLocked(
	s *Sender, k *Checksum, d Direction, m codec.Message, total int,
) error {
	if !o.TakesLocked(s, total) {
		buf := make([]byte, total)
		if err := k.put(d, buf, m); err != nil {
			return err
		}
		o.QueueLocked(s, buf)
		return nil
	}
	// The usual case: straight into the output.
	n := frameCount(total, o.maxFrame)
	framed := total + FrameHeader*n
	buf := o.Grow(framed)
	if err := k.put(d, buf[framed-total:], m); err != nil {
		o.shrink(framed)
		return err
	}
	frames(buf, total, o.maxFrame, s.ID)
	if s.Last {
		endStream(buf[(n-1)*(FrameHeader+o.maxFrame):])
	}
	o.Sent++
	o.window -= int64(total)
	s.window -= int64(total)
	return nil
}

// TakesLocked tells whether a message of so many bytes would go straight into the output.
func (o *Outgoing) TakesLocked(s *Sender, total int) bool {
	return len(s.pending) == 0 && total <= LargeMessage && int64(total) <= min(o.window, s.window)
}

// QueueLocked takes over bytes to send.
func (o *Outgoing) QueueLocked(s *Sender, buf []byte) {
	if len(s.pending) > 0 {
		buf = append(s.pending, buf...)
	}
	o.holdLocked(s, buf)
	o.pendingLocked(s)
}

// FinishLocked ends the stream with a frame of messages, after what is pending.
func (o *Outgoing) FinishLocked(s *Sender) {
	s.Last = true
	if len(s.pending) == 0 {
		buf := o.Grow(FrameHeader)
		putFrameHeader(buf, 0, s.ID)
		endStream(buf)
	}
}

// holdLocked replaces what of the stream waits.
func (o *Outgoing) holdLocked(s *Sender, buf []byte) {
	o.PendingBytes += int64(cap(buf) - s.pendingCap)
	s.pending, s.pendingCap = buf, cap(buf)
}

// pendingLocked sends what the windows and the output allow, and joins the queue for them with the
// rest.
func (o *Outgoing) pendingLocked(s *Sender) {
	for len(s.pending) > 0 && !s.Gone {
		n := min(int64(o.maxFrame), o.window, s.window, int64(len(s.pending)))
		if n <= 0 || o.Size >= o.most {
			if !s.blocked {
				s.blocked = true
				o.blocked = append(o.blocked, s)
			}
			return
		}
		o.Sent++
		buf := o.Grow(FrameHeader + int(n))
		putFrameHeader(buf, int(n), s.ID)
		copy(buf[FrameHeader:], s.pending)
		s.pending = s.pending[n:]
		if s.Last && len(s.pending) == 0 {
			endStream(buf)
		}
		o.window -= n
		s.window -= n
	}
	o.holdLocked(s, nil)
	s.owner.DrainedLocked()
}

// PumpLocked sends what waited, and tells whether anything did.
func (o *Outgoing) PumpLocked() bool {
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

// DropLocked: nothing is sent on the stream any more.
func (o *Outgoing) DropLocked(s *Sender) {
	s.Gone = true
	o.holdLocked(s, nil)
	if s.blocked {
		s.blocked = false
		o.blocked = slices.DeleteFunc(o.blocked, func(b *Sender) bool { return b == s })
	}
}

// CloseLocked drops the output when the connection ends. The streams are to be dropped after it.
func (o *Outgoing) CloseLocked() {
	o.Output = Output{}
	for _, s := range o.blocked {
		s.blocked = false
	}
	o.blocked = nil
}

// WidenLocked adds to the window of the connection, or of s if it is not nil.
func (o *Outgoing) WidenLocked(s *Sender, n int64) error {
	switch {
	case s == nil:
		if o.window += n; o.window > MaxWindow {
			return &ConnError{Code: http2.ErrCodeFlowControl, Why: "window larger than 2^31-1"}
		}
	default:
		if s.window += n; s.window > MaxWindow {
			return http2.StreamError{StreamID: s.ID, Code: http2.ErrCodeFlowControl}
		}
	}
	return nil
}

// ApplyLocked follows the other side's settings and acknowledges them. senders are those of all
// streams, own sees the settings that are its role's.
func (o *Outgoing) ApplyLocked(
	f *http2.SettingsFrame, senders iter.Seq[*Sender], own func(http2.Setting),
) error {
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
	_ = o.Framer.WriteSettingsAck()
	return err
}

// resizeLocked changes the windows of all streams, also to below zero (RFC 9113, 6.9.2).
func (o *Outgoing) resizeLocked(size int64, senders iter.Seq[*Sender]) error {
	delta := size - o.initial
	o.initial = size
	for s := range senders {
		if s.window += delta; s.window > MaxWindow {
			return &ConnError{Code: http2.ErrCodeFlowControl, Why: "window larger than 2^31-1"}
		}
	}
	return nil
}
