package rpc

import (
	"net"
	"sync"

	"golang.org/x/net/http2"
)

const (
	// ChunkSize is the memory that output takes at a time. A frame of the usual size fits.
	ChunkSize = 64 << 10
	// LargeMessage is what goes out from memory of its own.
	LargeMessage = ChunkSize / 2
)

var chunks = sync.Pool{New: func() any { return new([ChunkSize]byte) }}

// Output is bytes that wait to be written, in chunks that go back to a pool afterwards: an idle
// connection holds none. Not safe for concurrent use.
type Output struct {
	// Size is how many there are.
	Size int
	// full are chunks that had no room for the next piece; last is the one that is being filled.
	full [][]byte
	last []byte
}

// Grow adds n bytes, in one piece, and returns them to be filled in.
func (o *Output) Grow(n int) []byte {
	o.Size += n
	if cap(o.last)-len(o.last) < n {
		if len(o.last) > 0 {
			o.full = append(o.full, o.last)
		}
		if n > ChunkSize {
			o.last = make([]byte, 0, n)
		} else {
			o.last = chunks.Get().(*[ChunkSize]byte)[:0]
		}
	}
	at := len(o.last)
	o.last = o.last[:at+n]
	return o.last[at:]
}

// Write adds a copy of p; it never fails. A Framer writes so.
func (o *Output) Write(p []byte) (int, error) {
	copy(o.Grow(len(p)), p)
	return len(p), nil
}

// shrink takes back the n bytes that were added last.
func (o *Output) shrink(n int) {
	o.Size -= n
	o.last = o.last[:len(o.last)-n]
}

// append adds what is in p, which must not be used any more.
func (o *Output) append(p *Output) {
	if p.Size == 0 {
		return
	}
	if len(o.last) > 0 {
		o.full = append(o.full, o.last)
	}
	o.full = append(o.full, p.full...)
	o.last = p.last
	o.Size += p.Size
}

// Flush writes everything. The output must not be used any more.
func (o *Output) Flush(nc net.Conn) error {
	var err error
	if len(o.full) == 0 {
		_, err = nc.Write(o.last)
	} else {
		o.full = append(o.full, o.last)
		left := net.Buffers(append([][]byte(nil), o.full...))
		_, err = left.WriteTo(nc)
	}
	for _, b := range o.full {
		recycle(b)
	}
	if len(o.full) == 0 {
		recycle(o.last)
	}
	*o = Output{}
	return err
}

// IsOneChunk tells whether the output lies in one piece.
func (o *Output) IsOneChunk() bool { return len(o.full) == 0 }

// Try writes what f takes at once of an output of one chunk. left: f has not taken it all, and the
// output has the rest; otherwise the output must not be used any more.
func (o *Output) Try(f func([]byte) (int, error)) (left bool, err error) {
	n, err := f(o.last)
	if err == nil && n < len(o.last) {
		o.last = o.last[n:] // its chunk is not used again
		o.Size -= n
		return true, nil
	}
	recycle(o.last)
	*o = Output{}
	return false, err
}

// Unread puts what was taken and not written before what has come since. first must not be used any
// more.
func (o *Output) Unread(first Output) {
	first.append(o)
	*o = first
}

func recycle(b []byte) {
	if cap(b) == ChunkSize {
		chunks.Put((*[ChunkSize]byte)(b[:ChunkSize]))
	}
}

// FrameHeader is the size of a frame's header, in bytes.
const FrameHeader = 9

// putFrameHeader writes the header of a DATA frame.
func putFrameHeader(b []byte, length int, id uint32) {
	_ = b[FrameHeader-1]
	b[0], b[1], b[2], b[3], b[4] = byte(length>>16), byte(length>>8), byte(length),
		byte(http2.FrameData), 0
	b[5], b[6], b[7], b[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
}

// frames lays n bytes that stand at the end of b out as DATA frames that fill b: the bytes move to
// the front as far as there are headers before them.
func frames(b []byte, n, maxFrame int, id uint32) {
	from := b[len(b)-n:]
	for len(from) > 0 {
		part := min(maxFrame, len(from))
		copy(b[FrameHeader:], from[:part])
		putFrameHeader(b, part, id)
		b, from = b[FrameHeader+part:], from[part:]
	}
}

// frameCount is how many frames n bytes take.
func frameCount(n, maxFrame int) int { return (n + maxFrame - 1) / maxFrame }

// endStream marks the frame at the beginning of b as the last of its stream.
func endStream(b []byte) { b[4] |= byte(http2.FlagDataEndStream) }
