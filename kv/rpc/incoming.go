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
	// maxFrameIn is the largest frame that the other side may send; HTTP/2 asks for no less.
	maxFrameIn = 16 << 10
	// maxSettings bounds one frame of settings: each may cost a walk over all calls.
	maxSettings = 100
	// preface is what HTTP/2 begins with, before its first frame.
	preface = http2.ClientPreface
)

// initialWindow is every window's size until agreed otherwise (RFC 9113, 6.9.2).
const (
	initialWindow = 65535
	maxWindow     = 1<<31 - 1
)

// incoming is the receiving half of a connection. Owned by the goroutine that reads it.
type incoming struct {
	br *bufio.Reader
	fr *http2.Framer
	// window is what the other side may send over all streams, owed what has come of it and was not given back yet.
	window inflow
	owed   int64
}

// init makes the half of a new connection, with a window of so many bytes.
func (in *incoming) init(nc net.Conn, window uint32) {
	in.br = bufio.NewReaderSize(nc, readBuffer)
	in.fr = http2.NewFramer(io.Discard, in.br)
	in.fr.SetReuseFrames()
	in.fr.SetMaxReadFrameSize(maxFrameIn)
	in.window = inflow{size: int64(window), left: int64(window)}
}

// isFrameBuffered tells whether another whole frame has arrived, so that reading it will not block.
func (in *incoming) isFrameBuffered() bool {
	n := in.br.Buffered()
	if n < frameHeader {
		return false
	}
	h, err := in.br.Peek(3)
	return err == nil && n >= frameHeader+(int(h[0])<<16|int(h[1])<<8|int(h[2]))
}

// data counts a frame of messages, and says how much window to give back for it now. A frame beyond the window is an
// error.
func (in *incoming) data(n int64) (give int64, err error) {
	if !in.window.take(n) {
		return 0, &connError{http2.ErrCodeFlowControl, "more data than the connection's window allows"}
	}
	in.owed += n
	if give = in.window.due(in.owed); give > 0 {
		in.owed = 0
	}
	return give, nil
}

// why is what ends the connection, if it is to be told to the other side because of err.
func (in *incoming) why(err error) (de *connError, ok bool) {
	var ce http2.ConnectionError
	switch {
	case errors.As(err, &de):
	case errors.As(err, &ce):
		de = &connError{http2.ErrCode(ce), ""}
		if d := in.fr.ErrorDetail(); d != nil {
			de.why = d.Error()
		}
	case errors.Is(err, http2.ErrFrameTooLarge):
		de = &connError{http2.ErrCodeFrameSize, "frame too large"}
	default:
		return nil, false
	}
	return de, true
}

// inflow is a window that this side gives.
type inflow struct{ size, left int64 }

// take counts what has come; false means that it was more than allowed.
func (w *inflow) take(n int64) bool {
	w.left -= n
	return w.left >= 0
}

// due is how much to give back: nothing, as long as it is less than a quarter of the window.
func (w *inflow) due(consumed int64) int64 {
	if consumed < w.size/4 {
		return 0
	}
	w.left += consumed
	return consumed
}

// connError ends a connection; the other side is told code and why.
type connError struct {
	code http2.ErrCode
	why  string
}

func (e *connError) Error() string { return fmt.Sprintf("%v: %s", e.code, e.why) }
