package rpc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/net/http2"
)

const (
	readBuffer = 32 << 10
	// MaxFrameIn is the largest frame that the other side may send; HTTP/2 asks for no less.
	MaxFrameIn = 16 << 10
	// MaxSettings bounds one frame of settings: each may cost a walk over all calls.
	MaxSettings = 100
	// Preface is what HTTP/2 begins with, before its first frame.
	Preface = http2.ClientPreface
)

// InitialWindow is every window's size until agreed otherwise, MaxWindow the largest (RFC 9113,
// 6.9.1 and 6.9.2), in bytes.
const (
	InitialWindow = 65535
	MaxWindow     = 1<<31 - 1
)

// Incoming is the receiving half of a connection. Owned by the goroutine that reads it.
type Incoming struct {
	// Reader has what has come, and Framer reads the frames from it.
	Reader *bufio.Reader
	Framer *http2.Framer
	// window is what the other side may send over all streams, owed what has come of it and was not
	// given back yet.
	window Inflow
	owed   int64
}

// Init makes the half of a new connection, with a window of so many bytes.
func (in *Incoming) Init(nc net.Conn, window uint32) {
	in.Reader = bufio.NewReaderSize(nc, readBuffer)
	in.Framer = http2.NewFramer(io.Discard, in.Reader)
	in.Framer.SetReuseFrames()
	in.Framer.SetMaxReadFrameSize(MaxFrameIn)
	in.window = Inflow{Size: int64(window), Left: int64(window)}
}

// IsFrameBuffered tells whether another whole frame has arrived, so that reading it will not block.
func (in *Incoming) IsFrameBuffered() bool {
	n := in.Reader.Buffered()
	if n < FrameHeader {
		return false
	}
	h, err := in.Reader.Peek(3)
	return err == nil && n >= FrameHeader+(int(h[0])<<16|int(h[1])<<8|int(h[2]))
}

// Data counts a frame of messages, and says how much window to give back for it now. A frame beyond
// the window is an error.
func (in *Incoming) Data(n int64) (give int64, err error) {
	if !in.window.Take(n) {
		return 0,
			&ConnError{
				Code: http2.ErrCodeFlowControl,
				Why:  "more data than the connection's window allows",
			}
	}
	in.owed += n
	if give = in.window.due(in.owed); give > 0 {
		in.owed = 0
	}
	return give, nil
}

// Why is what ends the connection, if err is one that the other side must get.
func (in *Incoming) Why(err error) (de *ConnError, ok bool) {
	var ce http2.ConnectionError
	switch {
	case errors.As(err, &de):
	case errors.As(err, &ce):
		de = &ConnError{Code: http2.ErrCode(ce)}
		if d := in.Framer.ErrorDetail(); d != nil {
			de.Why = d.Error()
		}
	case errors.Is(err, http2.ErrFrameTooLarge):
		de = &ConnError{Code: http2.ErrCodeFrameSize, Why: "frame too large"}
	default:
		return nil, false
	}
	return de, true
}

// Inflow is a window that this side gives, of Size bytes; the other side may send Left of them now.
type Inflow struct{ Size, Left int64 }

// Take counts what has come; false means that it was more than allowed.
func (w *Inflow) Take(n int64) bool {
	w.Left -= n
	return w.Left >= 0
}

// due is how much to give back: nothing, as long as it is less than a quarter of the window.
func (w *Inflow) due(consumed int64) int64 {
	if consumed < w.Size/4 {
		return 0
	}
	w.Left += consumed
	return consumed
}

// ConnError ends a connection; Code and Why are sent to the other side.
type ConnError struct {
	Code http2.ErrCode
	Why  string
}

// Error implements error.
func (e *ConnError) Error() string { return fmt.Sprintf("%v: %s", e.Code, e.Why) }
