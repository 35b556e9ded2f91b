package rpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

const (
	readBuffer = 32 << 10
	// maxFrameIn is the largest frame that a client may send; HTTP/2 asks for no less.
	maxFrameIn = 16 << 10
	// maxOut is how much output may wait before whoever can wait does: the reading goroutine, which makes the client
	// wait in turn, and handlers of streams.
	maxOut = 1 << 20
	// maxSettings bounds one frame of settings: each may cost a walk over all calls.
	maxSettings = 100
	// forever is the last stream of a GOAWAY that refuses nothing yet.
	forever = 1<<31 - 1
	// preface is what HTTP/2 begins with, before its first frame.
	preface = http2.ClientPreface
	// tableSize is the size of header compression tables unless agreed otherwise.
	tableSize = 4096
)

// conn is one connection. Its reading goroutine, serve, owns everything outside mu; the output belongs to mu and to
// whoever has set writing.
//
// Invariant (mu): active counts the calls whose handlers have not finished. streams has the calls that were not
// cancelled and whose last frame is not in out yet: each of them is counted in active, or is in outflow.blocked.
type conn struct {
	s  *Server
	nc net.Conn
	br *bufio.Reader
	fr *http2.Framer
	// ctx ends with the connection.
	ctx    context.Context
	cancel context.CancelFunc
	// in is the flow control of what comes, owed what it has not given back yet; lastID is the newest call, written
	// under the lock.
	in     inflow
	owed   int64
	lastID uint32
	// last spares a look into streams: the frames of a call usually come one after the other.
	last *Call
	// head is the header block that is being read. Owned by the reading goroutine.
	head requestHead
	// frames counts what was read, for keep-alive.
	frames atomic.Uint64
	keep   keepAlive
	// wake has the writer look for output.
	wake chan struct{}
	// place belongs to the server's lock. onTrial and internal are the reading goroutine's copy of the class.
	place             place
	onTrial, internal bool
	grants            grants
	// full: the connection holds as many answers as it may.
	full atomic.Bool

	mu struct {
		sync.Mutex
		// space is signalled when output was written or the connection ends.
		space   sync.Cond
		out     output
		writing bool
		closed  error
		// goingAway: no further calls are taken; the connection ends with the last one.
		goingAway bool
		drained   bool
		// greeted: the client has its SETTINGS, which come before anything else.
		greeted bool
		// drainTimer ends the wait for a client that does not answer drain's ping.
		drainTimer *time.Timer
		// ending: the output is the last. When it is written endBy is set: then the client has until then to close.
		ending bool
		endBy  time.Time
		// reading: the reading goroutine is at work and will flush before it waits for more.
		reading bool
		streams map[uint32]*Call
		active  uint32
		fw      *http2.Framer
		enc     headerEncoder
		pings   pingPolicy
		outflow outflow
		// pending is the memory of all that waits for windows, inWrite what is being written, charged what the server
		// counts of that and of out. wrote counts what was written, and was readerSeen at time readerMoved.
		pending           int64
		inWrite           int
		charged           int64
		wrote, readerSeen uint64
		readerMoved       time.Time
	}
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, br: bufio.NewReaderSize(nc, readBuffer), wake: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.fr = http2.NewFramer(io.Discard, c.br)
	c.fr.SetReuseFrames()
	c.fr.SetMaxReadFrameSize(maxFrameIn)
	c.head.init(s.opts.MaxHeaderBytes)
	c.in = inflow{size: int64(s.opts.ConnWindow), left: int64(s.opts.ConnWindow)}
	c.mu.pings.min = s.opts.MinPing
	c.mu.space.L = &c.mu.Mutex
	c.mu.streams = map[uint32]*Call{}
	c.mu.fw = http2.NewFramer((*outWriter)(c), nil)
	c.mu.enc.init()
	c.mu.outflow.init()
	return c
}

// outWriter takes what a Framer writes into the output. The lock must be held.
type outWriter conn

func (w *outWriter) Write(p []byte) (int, error) {
	copy(w.mu.out.grow(len(p)), p)
	return len(p), nil
}

// serve runs until the connection ends, and returns when its writer has.
func (c *conn) serve() {
	done := make(chan struct{})
	// Owned by the connection; ends when close was called.
	go func() { defer close(done); c.writeLoop() }()
	err := c.handshake()
	if err == nil {
		c.keep.start(c)
		err = c.readLoop()
		c.keep.stop()
	}
	c.close(err)
	<-done
	c.forget()
}

// forget drops the calls that are left when nobody reads the connection any more.
func (c *conn) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.mu.streams {
		c.dropLocked(id)
	}
}

// handshake checks that the client speaks HTTP/2 and says what this server allows.
func (c *conn) handshake() error {
	_ = c.nc.SetReadDeadline(time.Now().Add(c.s.opts.Handshake))
	for n := 1; n <= len(preface); n++ {
		got, err := c.br.Peek(n)
		if err != nil {
			return err
		}
		if got[n-1] != preface[n-1] {
			return c.refuseProtocol(string(got))
		}
	}
	_, _ = c.br.Discard(len(preface))
	_ = c.nc.SetReadDeadline(time.Time{})
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.mu.fw.WriteSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.s.opts.MaxStreams},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: c.s.opts.FirstWindow},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.s.opts.MaxHeaderBytes})
	if c.s.opts.ConnWindow > initialWindow {
		_ = c.mu.fw.WriteWindowUpdate(0, c.s.opts.ConnWindow-initialWindow)
	}
	c.mu.greeted = true
	if c.mu.drained {
		c.drainLocked()
	}
	return nil
}

// refuseProtocol answers somebody who came with a browser or curl.
func (c *conn) refuseProtocol(begin string) error {
	if begin != "G" && begin != "H" && begin != "PO" && begin != "PU" { // GET, HEAD, POST, PUT
		return errProtocol
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(c.nc, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"+
		"This port speaks gRPC (HTTP/2 without TLS) only.\n")
	c.linger()
	return errProtocol
}

var errProtocol = errors.New("client does not speak HTTP/2")

// readLoop handles frames until the connection fails or is closed.
func (c *conn) readLoop() error {
	for {
		if !frameBuffered(c.br) {
			c.mu.Lock()
			c.mu.reading = false
			c.flushLocked()
			c.mu.Unlock()
		}
		f, err := c.fr.ReadFrame()
		if err == nil {
			c.frames.Add(1)
			err = c.handle(f)
		}
		if err != nil {
			err = c.onError(err)
		}
		if err == nil {
			err = c.waitForSpace()
		}
		if err != nil {
			return err
		}
	}
}

// onError resets the stream that an error is about, or says why the connection ends and returns the error.
func (c *conn) onError(err error) error {
	var se http2.StreamError
	if !errors.As(err, &se) {
		c.sayWhy(err)
		return err
	}
	c.resetStream(se.StreamID, se.Code)
	return nil
}

// frameBuffered tells whether another whole frame has arrived, so that reading it will not block.
func frameBuffered(br *bufio.Reader) bool {
	n := br.Buffered()
	if n < frameHeader {
		return false
	}
	h, err := br.Peek(3)
	return err == nil && n >= frameHeader+(int(h[0])<<16|int(h[1])<<8|int(h[2]))
}

// sayWhy tells the client what it did wrong before the connection is closed.
func (c *conn) sayWhy(err error) {
	var ce http2.ConnectionError
	var de *connError
	switch {
	case errors.As(err, &de):
	case errors.As(err, &ce):
		de = &connError{http2.ErrCode(ce), ""}
		if d := c.fr.ErrorDetail(); d != nil {
			de.why = d.Error()
		}
	case errors.Is(err, http2.ErrFrameTooLarge):
		de = &connError{http2.ErrCodeFrameSize, "frame too large"}
	default:
		return
	}
	c.mu.Lock()
	if c.mu.closed == nil {
		_ = c.mu.fw.WriteGoAway(c.lastID, de.code, []byte(de.why))
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	c.flushLocked()
	for (c.mu.writing || c.mu.out.size > 0) && c.mu.closed == nil { // by others; linger would cut them off
		c.wakeWriter()
		c.mu.space.Wait()
	}
	c.mu.Unlock()
	c.linger()
}

// linger waits until the client has seen the last words and closed: a close with unread input would reset the
// connection, and the GOAWAY would be lost.
func (c *conn) linger() {
	tc, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || tc.CloseWrite() != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, c.br, 1<<20)
}

// corrupt reports a message that was damaged on its way, and returns what ends the connection.
func (c *conn) corrupt(call *Call) error {
	if f := c.s.opts.OnCorrupt; f != nil {
		f(c.nc.RemoteAddr(), call.path)
	}
	return &connError{http2.ErrCodeProtocol, ErrCorrupt.Error()}
}

// sawStream notes a stream for which there is no call.
func (c *conn) sawStream(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID = max(c.lastID, id)
}

// connError ends a connection.
type connError struct {
	code http2.ErrCode
	why  string
}

func (e *connError) Error() string { return fmt.Sprintf("%v: %s", e.code, e.why) }

// handle works one frame off.
func (c *conn) handle(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		return c.onHeadersFrame(f)
	case *http2.ContinuationFrame:
		return c.onContinuation(f)
	case *http2.DataFrame:
		return c.onData(f)
	case *http2.WindowUpdateFrame:
		return c.onWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.onReset(f)
	case *http2.SettingsFrame:
		return c.onSettings(f)
	case *http2.PingFrame:
		return c.onPing(f)
	case *http2.GoAwayFrame:
		// The client takes no new streams from here, and there are none. It ends the connection when it likes.
		return nil
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
		}
		return nil
	case *http2.PushPromiseFrame:
		return &connError{http2.ErrCodeProtocol, "a client must not push"}
	}
	return nil // what is unknown
}

func (c *conn) onPing(f *http2.PingFrame) error {
	if f.IsAck() {
		if f.Data == drainPing {
			c.refuseNew()
		}
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.pings.allow(time.Now()) {
		return &connError{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
	}
	_ = c.mu.fw.WritePing(true, f.Data)
	return nil
}

func (c *conn) onSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > maxSettings {
		return &connError{http2.ErrCodeEnhanceYourCalm, "too many settings"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := f.ForeachSetting(func(st http2.Setting) error {
		if err := st.Valid(); err != nil {
			return err
		}
		switch st.ID {
		case http2.SettingInitialWindowSize:
			return c.setInitialWindowLocked(int64(st.Val))
		case http2.SettingMaxFrameSize:
			c.mu.outflow.maxFrame = int(st.Val)
		case http2.SettingHeaderTableSize:
			c.mu.enc.setTableSize(st.Val)
		}
		return nil
	})
	_ = c.mu.fw.WriteSettingsAck()
	return err
}

// waitForSpace holds the reader up while the client does not read its answers.
func (c *conn) waitForSpace() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteOutputLocked()
	if c.mu.out.size > maxOut {
		c.wakeWriter()
	}
	for c.mu.out.size > maxOut && c.mu.closed == nil {
		c.mu.space.Wait()
	}
	return c.mu.closed
}

func (c *conn) wakeWriter() { wake(c.wake) }

// writeLoop writes what others leave in the output, until the connection ends.
func (c *conn) writeLoop() {
	for {
		<-c.wake
		c.sendGrants()
		runtime.Gosched() // answers that come together leave together
		c.mu.Lock()
		c.writeLocked(1 << 30)
		end := c.mu.closed != nil
		c.mu.Unlock()
		if end {
			return
		}
	}
}

// flushLocked writes the output without the lock, unless somebody does so already: then that one goes on with it. What
// others add all the time is left to the writer: the reading goroutine would not read any more.
func (c *conn) flushLocked() { c.writeLocked(4) }

// writeLocked is flushLocked for at most so many writes.
func (c *conn) writeLocked(rounds int) {
	if c.mu.writing {
		return
	}
	if !c.mu.endBy.IsZero() {
		c.mu.out = output{} // too late
		c.noteOutputLocked()
		c.mu.space.Broadcast()
	}
	c.mu.writing = true
	for ; rounds > 0 && c.mu.out.size > 0 && c.mu.closed == nil; rounds-- {
		c.noteOutputLocked()
		out := c.mu.out
		c.mu.out, c.mu.inWrite = output{}, out.size
		c.mu.Unlock()
		err := out.writeTo(c.nc)
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
	case c.mu.out.size > 0:
		c.wakeWriter()
	case c.mu.ending:
		c.endLocked()
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
	c.mu.out = output{}
	_ = c.nc.Close()
	c.cancel()
	if c.mu.drainTimer != nil {
		c.mu.drainTimer.Stop()
	}
	c.mu.outflow.blocked = nil
	for _, call := range c.mu.streams {
		call.mu.blocked = false
		call.dropLocked()
	}
	c.settleLocked()
	c.mu.space.Broadcast()
	c.wakeWriter()
}

// drain tells the client that no new calls are wanted, in two steps so that none that is on its way gets lost: a
// GOAWAY that refuses nothing, and when the client's answer shows that it has seen it, one that does.
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
	_ = c.mu.fw.WriteGoAway(forever, http2.ErrCodeNo, []byte("graceful_stop"))
	_ = c.mu.fw.WritePing(false, drainPing)
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
	_ = c.mu.fw.WriteGoAway(c.lastID, http2.ErrCodeNo, []byte("graceful_stop"))
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

// endLocked says that nothing more comes. The client closes, and the reader notices; a close from here could
// overtake the last answers, if the client had just sent something. A client that is still reading them sends window
// updates, and has longer.
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
