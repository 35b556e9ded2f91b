package callroom

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
)

const (
	// callCharge is what a call costs that sent nothing.
	callCharge = 16 << 10
	// frameCharge is what each frame of data costs besides its bytes: a server keeps a buffer for
	// each.
	frameCharge = 128
	// unreadSlack is how much a handler may have read before grpc-go opens the window again: a
	// quarter of the window. callCharge covers it. It fits windows of 64 KiB.
	unreadSlack = 16 << 10

	prefaceLen   = len(http2.ClientPreface)
	headerLen    = 9 // of a frame of HTTP/2
	messageStart = 5 // of a message of gRPC: compressed or not, and its length
)

// Conn is a connection whose calls are charged until it is closed.
type Conn struct {
	net.Conn
	room *Room
	host string
	end  func() error
	held atomic.Int64 // Invariant: the sum of the charges in mu.calls; 0 once gone

	mu struct {
		sync.Mutex
		gone    bool
		preface int // bytes of it that have not arrived yet
		in, out frames
		calls   map[uint32]*call
		last    uint32 // the latest call that the client began
	}
}

// call is a call under way.
type call struct {
	headers int64
	// message is the charge of the last message; left is what misses of it. start has the first
	// bytes of the next one, of which there are begun.
	message int64
	left    uint32
	start   [messageStart]byte
	begun   int
	// unread is what arrived beyond what the server gave window for.
	unread  int64
	charged int64
}

func (s *call) charge() int64 {
	return callCharge + s.headers + max(s.message, s.unread-unreadSlack)
}

// take counts bytes of messages, and returns how many of those that begin are larger than largest.
func (s *call) take(p []byte, largest int64) (tooLarge uint64) {
	for len(p) > 0 {
		if s.left > 0 {
			n := min(int(s.left), len(p))
			s.message, s.left, p = s.message+int64(n), s.left-uint32(n), p[n:]
			continue
		}
		if s.begun == 0 {
			s.message = 0
		}
		n := copy(s.start[s.begun:], p)
		s.begun, p = s.begun+n, p[n:]
		if s.begun == messageStart {
			s.left, s.begun = binary.BigEndian.Uint32(s.start[1:]), 0
			if int64(s.left) > largest {
				tooLarge++
			}
		}
	}
	return tooLarge
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.arrived(p[:n])
	if c.room.held.Load() > c.room.limit {
		c.room.shed()
	}
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	// Before they are sent, so that no answer to a new window arrives before it is counted.
	c.leaving(p)
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// leave takes back all charges; there will be no others.
func (c *Conn) leave() {
	c.mu.Lock()
	c.mu.gone, c.mu.calls = true, nil
	c.room.held.Add(-c.held.Swap(0))
	c.mu.Unlock()
	c.room.forget(c)
}

func (c *Conn) arrived(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.gone {
		return
	}
	n := min(c.mu.preface, len(p))
	c.mu.preface -= n
	c.mu.in.feed(p[n:], c.arrivedLocked)
}

func (c *Conn) leaving(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.gone {
		c.mu.out.feed(p, c.leavingLocked)
	}
}

// arrivedLocked takes the next bytes of a frame from the client.
func (c *Conn) arrivedLocked(f *frames, p []byte) {
	s := c.mu.calls[f.stream]
	switch f.kind {
	case http2.FrameHeaders, http2.FrameContinuation:
		if s == nil {
			// A call that the server has ended does not begin again.
			if f.kind != http2.FrameHeaders || f.stream <= c.mu.last {
				return
			}
			s = &call{}
			c.mu.last, c.mu.calls[f.stream] = f.stream, s
		}
		s.headers += int64(len(p))
	case http2.FrameData:
		if s == nil {
			return
		}
		if f.first {
			s.unread += int64(f.length)
		}
		body := f.body(p)
		c.room.refused.Messages.Add(s.take(body, c.room.largest))
		if f.first {
			s.message += frameCharge
		}
	case http2.FrameRSTStream:
		c.dropLocked(f.stream)
		return
	default:
		return
	}
	c.chargeLocked(s)
}

// leavingLocked takes the next bytes of a frame from the server.
func (c *Conn) leavingLocked(f *frames, p []byte) {
	n, complete := f.number(p)
	switch f.kind {
	case http2.FrameRSTStream:
		switch code := http2.ErrCode(n); {
		case complete && code == http2.ErrCodeRefusedStream:
			c.room.refused.Calls.Add(1)
		case complete && code == http2.ErrCodeFrameSize:
			c.room.refused.Headers.Add(1)
		}
		c.dropLocked(f.stream)
	case http2.FrameGoAway:
		if complete && http2.ErrCode(n) == http2.ErrCodeEnhanceYourCalm {
			c.room.refused.Pings.Add(1)
		}
	case http2.FrameHeaders, http2.FrameData:
		if f.flags.Has(http2.FlagDataEndStream) { // the same bit in both
			c.dropLocked(f.stream)
		}
	case http2.FrameWindowUpdate:
		if s := c.mu.calls[f.stream]; complete && s != nil {
			s.unread -= int64(n &^ (1 << 31))
			c.chargeLocked(s)
		}
	}
}

func (c *Conn) chargeLocked(s *call) {
	now := s.charge()
	c.held.Add(now - s.charged)
	c.room.held.Add(now - s.charged)
	s.charged = now
}

func (c *Conn) dropLocked(stream uint32) {
	if s := c.mu.calls[stream]; s != nil {
		c.held.Add(-s.charged)
		c.room.held.Add(-s.charged)
		delete(c.mu.calls, stream)
	}
}

// frames finds the frames in a stream of bytes that comes in any parts.
type frames struct {
	head [headerLen]byte
	has  int // bytes of head
	// Of the frame that head begins:
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
	length int
	left   int  // of length
	first  bool // no byte after the header was seen yet
	data   int  // bytes of data that are left, without padding
	value  [8]byte
}

// feed calls on with each frame and the next bytes of what follows its header: for each frame at
// least once, at first perhaps with none.
func (f *frames) feed(p []byte, on func(*frames, []byte)) {
	for len(p) > 0 {
		if f.has < headerLen {
			n := copy(f.head[f.has:], p)
			if f.has, p = f.has+n, p[n:]; f.has < headerLen {
				return
			}
			f.begin()
			if f.left > 0 && len(p) == 0 {
				return // the frame is reported with its first byte
			}
		}
		n := min(f.left, len(p))
		on(f, p[:n])
		f.left, f.first, p = f.left-n, false, p[n:]
		if f.left == 0 {
			f.has = 0
		}
	}
}

func (f *frames) begin() {
	h := f.head
	f.length = int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	f.kind, f.flags = http2.FrameType(h[3]), http2.Flags(h[4])
	f.stream = binary.BigEndian.Uint32(h[5:]) &^ (1 << 31)
	f.left, f.data, f.first = f.length, f.length, true
}

// body is what p, the next bytes of a frame of data, has of data.
func (f *frames) body(p []byte) []byte {
	if f.first && f.flags.Has(http2.FlagDataPadded) && len(p) > 0 {
		f.data = max(0, f.length-1-int(p[0]))
		p = p[1:]
	}
	p = p[:min(f.data, len(p))]
	f.data -= len(p)
	return p
}

// number is the number that the frame has: the code of a reset or of a goodbye, the increment of a
// window. It returns true once, with the last byte of the number. p are the next bytes.
func (f *frames) number(p []byte) (uint32, bool) {
	end := len(f.value)
	switch f.kind {
	case http2.FrameRSTStream, http2.FrameWindowUpdate:
		end = 4
	case http2.FrameGoAway: // after the last stream
	default:
		return 0, false
	}
	at := f.length - f.left
	if at >= end {
		return 0, false
	}
	n := copy(f.value[at:end], p)
	return binary.BigEndian.Uint32(f.value[end-4 : end]), at+n == end
}
