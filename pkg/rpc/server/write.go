package server

import (
	"io"
	"runtime"
	"time"

	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// waitForSpace holds the reader up while the client does not read its answers.
func (c *conn) waitForSpace() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteOutputLocked()
	if c.mu.out.Size > rpc.MaxOut {
		c.wakeWriter()
	}
	for c.mu.out.Size > rpc.MaxOut && c.mu.closed == nil {
		c.mu.space.Wait()
	}
	return c.mu.closed
}

func (c *conn) wakeWriter() { rpc.Wake(c.wake) }

// writeLoop writes what others leave in the output, until the connection ends.
func (c *conn) writeLoop() {
	for {
		<-c.wake
		c.sendGrants()
		runtime.Gosched() // answers that come together leave together
		c.mu.Lock()
		c.writeYielding(1 << 30)
		end := c.mu.closed != nil
		c.mu.Unlock()
		if end {
			return
		}
	}
}

// flushYielding writes the output without the lock, unless somebody does so already: then that one
// goes on with it. What others add all the time is left to the writer: the reading goroutine would
// not read any more.
func (c *conn) flushYielding() { c.writeYielding(4) }

// writeYielding is flushYielding for at most so many writes.
func (c *conn) writeYielding(rounds int) {
	if c.mu.writing {
		return
	}
	if !c.mu.endBy.IsZero() {
		c.mu.out.Output = rpc.Output{} // too late
		c.noteOutputLocked()
		c.mu.space.Broadcast()
	}
	c.mu.writing = true
	for ; rounds > 0 && c.mu.out.Size > 0 && c.mu.closed == nil; rounds-- {
		c.noteOutputLocked()
		out := c.mu.out.Take()
		c.mu.inWrite = out.Size
		c.mu.Unlock()
		err := out.Flush(c.nc)
		c.mu.Lock()
		c.mu.wrote += uint64(c.mu.inWrite)
		c.mu.inWrite = 0
		if err != nil {
			c.closeLocked(err)
		}
		c.noteOutputLocked()
		c.mu.space.Broadcast()
		c.pumpLocked() // what waited for room in the output
	}
	c.mu.writing = false
	switch {
	case c.mu.closed != nil:
	case c.mu.out.Size > 0:
		c.wakeWriter()
	case c.mu.ending:
		c.endLocked()
	}
}

// pumpLocked sends what waited for a window.
func (c *conn) pumpLocked() {
	if c.mu.out.PumpLocked() {
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

// close ends the connection and whatever depends on it. The first reason counts.
func (c *conn) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(err)
}

func (c *conn) closeLocked(err error) {
	if c.mu.closed != nil {
		return
	}
	if err == nil {
		err = io.EOF
	}
	c.mu.closed = err
	c.mu.out.CloseLocked()
	_ = c.nc.Close()
	c.cancel()
	c.keep.StopLocked()
	if c.mu.drainTimer != nil {
		c.mu.drainTimer.Stop()
	}
	for _, call := range c.mu.streams {
		call.dropLocked()
	}
	c.settleLocked()
	c.mu.space.Broadcast()
	c.wakeWriter()
}

// drain tells the client that no new calls are wanted, in two steps so that none that is on its way
// gets lost: a GOAWAY that refuses nothing, and when the client's answer shows that it has seen it,
// one that does.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed == nil && !c.mu.drained {
		c.mu.drained = true
		if c.mu.greeted {
			c.drainLocked()
		}
	}
}

func (c *conn) drainLocked() {
	_ = c.mu.out.Framer.WriteGoAway(forever, http2.ErrCodeNo, []byte("graceful_stop"))
	_ = c.mu.out.Framer.WritePing(false, drainPing)
	c.mu.drainTimer = time.AfterFunc(c.s.opts.KeepAliveTimeout, c.refuseNew)
	c.wakeWriter()
}

// drainPing marks the ping of drain.
var drainPing = [8]byte{'g', 'o', 'a', 'w', 'a', 'y'}

// refuseNew is drain's second step.
func (c *conn) refuseNew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.goingAway || !c.mu.drained || c.mu.closed != nil {
		return
	}
	c.mu.goingAway = true
	_ = c.mu.out.Framer.WriteGoAway(c.lastID, http2.ErrCodeNo, []byte("graceful_stop"))
	c.wakeWriter()
	c.endIfDrainedLocked()
}

// endIfDrainedLocked has a connection that goes away end once its last answer is written.
func (c *conn) endIfDrainedLocked() {
	if c.mu.goingAway && c.mu.active == 0 && len(c.mu.streams) == 0 {
		c.mu.ending = true
		c.wakeWriter()
	}
}

// endLocked says that nothing more comes. The client closes, and the reader notices; a close from
// here could overtake the last answers, if the client had just sent something. A client that is
// still reading them sends window updates, and has longer.
func (c *conn) endLocked() {
	now := time.Now()
	if c.mu.endBy.IsZero() {
		c.mu.endBy = now.Add(c.s.opts.KeepAliveTimeout)
		tc, ok := c.nc.(interface{ CloseWrite() error })
		if !ok || tc.CloseWrite() != nil {
			c.closeLocked(ErrStopped)
			return
		}
	}
	until := now.Add(time.Second)
	if until.After(c.mu.endBy) {
		until = c.mu.endBy
	}
	_ = c.nc.SetReadDeadline(until)
}
