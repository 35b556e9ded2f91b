package rpc

import (
	"golang.org/x/net/http2"
)

// onData counts and delivers what a client sent.
func (c *conn) onData(f *http2.DataFrame) error {
	give, err := c.in.data(int64(f.Length))
	if err != nil {
		return err
	}
	if give > 0 {
		c.mu.Lock()
		_ = c.mu.out.fw.WriteWindowUpdate(0, uint32(give))
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
	if c.last != nil && c.last.mu.id == id {
		return c.last
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.streams[id]
}

func (c *conn) onWindowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s *sender
	if f.StreamID != 0 {
		call := c.mu.streams[f.StreamID]
		if call == nil {
			if f.StreamID > c.lastID {
				return &connError{http2.ErrCodeProtocol, "window of a stream that was never opened"}
			}
			return nil // it has ended from here
		}
		s = &call.mu.sender
	}
	if err := c.mu.out.widenLocked(s, int64(f.Increment)); err != nil {
		return err
	}
	c.pumpLocked()
	return nil
}

// pumpLocked sends what waited for a window.
func (c *conn) pumpLocked() {
	if c.mu.out.pumpLocked() {
		c.kickLocked()
	}
}

// pushYielding writes the output, which may take a while: not for those who must not block.
func (c *conn) pushYielding() {
	if !c.mu.reading {
		c.flushYielding()
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
