package rpc

import (
	"golang.org/x/net/http2"
)

// initialWindow is every window's size until agreed otherwise (RFC 9113, 6.9.2).
const (
	initialWindow = 65535
	maxWindow     = 1<<31 - 1
)

// inflow is a window that this server gives.
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

// outflow is what the client allows to be sent, over all streams.
type outflow struct {
	window int64
	// initial is the window of a new stream.
	initial  int64
	maxFrame int
	// blocked are the calls that wait for a window, in the order in which they began to.
	blocked []*Call
}

func (o *outflow) init() {
	*o = outflow{window: initialWindow, initial: initialWindow, maxFrame: 16 << 10}
}

// onData counts and delivers what a client sent.
func (c *conn) onData(f *http2.DataFrame) error {
	n := int64(f.Length)
	if !c.in.take(n) {
		return &connError{http2.ErrCodeFlowControl, "more data than the connection's window allows"}
	}
	c.owed += n
	if give := c.in.due(c.owed); give > 0 {
		c.owed = 0
		c.mu.Lock()
		_ = c.mu.fw.WriteWindowUpdate(0, uint32(give))
		c.mu.Unlock()
	}
	call := c.call(f.StreamID)
	if call == nil {
		if f.StreamID > c.lastID {
			return &connError{http2.ErrCodeProtocol, "data on a stream that was never opened"}
		}
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeStreamClosed}
	}
	if call.ended {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeStreamClosed}
	}
	return call.onData(f)
}

// call finds an open call.
func (c *conn) call(id uint32) *Call {
	if c.last != nil && c.last.id == id {
		return c.last
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.streams[id]
}

func (c *conn) onWindowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(f.Increment)
	if f.StreamID == 0 {
		if c.mu.outflow.window += n; c.mu.outflow.window > maxWindow {
			return &connError{http2.ErrCodeFlowControl, "window larger than 2^31-1"}
		}
		c.pumpLocked()
		return nil
	}
	call := c.mu.streams[f.StreamID]
	if call == nil {
		if f.StreamID > c.lastID {
			return &connError{http2.ErrCodeProtocol, "window of a stream that was never opened"}
		}
		return nil // it has ended from here
	}
	if call.mu.window += n; call.mu.window > maxWindow {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	c.pumpLocked()
	return nil
}

// setInitialWindowLocked changes the windows of all streams, also to below zero (RFC 9113, 6.9.2).
func (c *conn) setInitialWindowLocked(size int64) error {
	delta := size - c.mu.outflow.initial
	c.mu.outflow.initial = size
	for _, call := range c.mu.streams {
		if call.mu.window += delta; call.mu.window > maxWindow {
			return &connError{http2.ErrCodeFlowControl, "window larger than 2^31-1"}
		}
	}
	c.pumpLocked()
	return nil
}

// pumpLocked sends what waited for a window.
func (c *conn) pumpLocked() {
	blocked := c.mu.outflow.blocked
	if len(blocked) == 0 {
		return
	}
	c.mu.outflow.blocked = nil
	for _, call := range blocked {
		call.mu.blocked = false
		call.sendPendingLocked() // may wait again
	}
	c.kickLocked()
}

// pushLocked writes the output, which may take a while: not for those who must not block.
func (c *conn) pushLocked() {
	if !c.mu.reading {
		c.flushLocked()
	}
	c.noteOutputLocked()
}

// kickLocked sees to it that the output is written soon.
func (c *conn) kickLocked() {
	c.noteOutputLocked()
	if !c.mu.reading {
		c.wakeWriter()
	}
}
