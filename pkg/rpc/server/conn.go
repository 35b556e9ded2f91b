package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/tinykv/tinykv/pkg/rpc"
)

const (
	// forever is the last stream of a GOAWAY that refuses nothing yet.
	forever = 1<<31 - 1
)

// conn is one connection. Its reading goroutine, serve, owns everything outside mu; the output
// belongs to mu and to the goroutine that has set writing. What is named ...Locked holds mu until
// it returns; what gives it up in between is named ...Yielding.
//
// Invariant (mu): active counts the calls whose handlers have not finished. streams has the calls
// that were not cancelled and whose last frame is not in out yet: each of them is counted in
// active, or is in out.blocked.
type conn struct {
	s  *Server
	nc net.Conn
	// ctx ends with the connection.
	ctx    context.Context
	cancel context.CancelFunc
	in     rpc.Incoming
	// lastID is the newest call, written under the lock.
	lastID uint32
	// last spares a look into streams: the frames of a call usually come one after the other.
	last *Call
	// head is the header block that is being read. Owned by the reading goroutine.
	head requestHead
	keep rpc.KeepAlive
	// idleFrames counts frames that bring no call on, see idleFrame. Owned by the reading
	// goroutine.
	idleFrames uint64
	// wake has the writer look for output.
	wake chan struct{}
	// place belongs to the server's lock. onTrial and internal are the reading goroutine's copy of
	// the class.
	place             place
	onTrial, internal bool
	grants            grants
	// full: the connection holds as many answers as it may.
	full atomic.Bool

	mu struct {
		sync.Mutex
		// space is signalled when output was written or the connection ends.
		space   sync.Cond
		out     rpc.Outgoing
		writing bool
		closed  error
		// goingAway: no further calls are taken; the connection ends with the last one.
		goingAway bool
		drained   bool
		// greeted: the client has its SETTINGS, which come before anything else.
		greeted bool
		// drainTimer ends the wait for a client that does not answer drain's ping.
		drainTimer *time.Timer
		// ending: the output is the last. When it is written endBy is set: then the client has
		// until then to close.
		ending bool
		endBy  time.Time
		// reading: the reading goroutine is at work and will flush before it waits for more.
		reading bool
		streams map[uint32]*Call
		active  uint32
		enc     headerEncoder
		pings   pingPolicy
		// inWrite is what is being written, charged what the server counts of that, of out and of
		// what waits for windows. wrote counts what was written, and was readerSeen at time
		// readerMoved.
		inWrite           int
		charged           int64
		wrote, readerSeen uint64
		readerMoved       time.Time
	}
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, wake: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.in.Init(nc, s.opts.ConnWindow)
	c.keep.Began = time.Now()
	c.head.init(s.opts.MaxHeaderBytes)
	c.mu.pings.min = s.opts.MinPing
	c.mu.space.L = &c.mu.Mutex
	c.mu.streams = map[uint32]*Call{}
	c.mu.enc.init()
	c.mu.out.Init(largeOut)
	return c
}

// serve runs until the connection ends, and returns when its writer has.
func (c *conn) serve() {
	done := make(chan struct{})
	// Owned by the connection; ends when close was called.
	go func() { defer close(done); c.writeLoop() }()
	err := c.handshake()
	if err == nil {
		err = c.readLoop()
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
	for n := 1; n <= len(rpc.Preface); n++ {
		got, err := c.in.Reader.Peek(n)
		if err != nil {
			return err
		}
		if got[n-1] != rpc.Preface[n-1] {
			return c.refuseProtocol(string(got))
		}
	}
	_, _ = c.in.Reader.Discard(len(rpc.Preface))
	c.s.hasGreeted(c)
	c.ctx = peer.NewContext(c.ctx, c.peer()) // no call has it yet
	_ = c.nc.SetReadDeadline(time.Time{})
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.mu.out.Framer.WriteSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.s.opts.MaxStreams},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: c.s.opts.FirstWindow},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.s.opts.MaxHeaderBytes},
		http2.Setting{ID: rpc.SettingPrefixSums, Val: 1})
	if c.s.opts.ConnWindow > rpc.InitialWindow {
		_ = c.mu.out.Framer.WriteWindowUpdate(0, c.s.opts.ConnWindow-rpc.InitialWindow)
	}
	c.mu.greeted = true
	c.keep.StartLocked(c.s.opts.KeepAlive, c.s.opts.KeepAliveTimeout, false, c.checkAlive)
	if c.mu.drained {
		c.drainLocked()
	}
	return nil
}

// peer is the client, as handlers find it in their contexts.
func (c *conn) peer() *peer.Peer {
	p := &peer.Peer{Addr: c.nc.RemoteAddr(), LocalAddr: c.nc.LocalAddr()}
	switch tc := c.nc.(type) {
	case interface{ ConnectionState() tls.ConnectionState }:
		p.AuthInfo = tlsInfo(tc.ConnectionState())
	case interface{ State() *tls.ConnectionState }: // of pkg/security, with or without TLS
		if state := tc.State(); state != nil {
			p.AuthInfo = tlsInfo(*state)
		}
	}
	return p
}

func tlsInfo(state tls.ConnectionState) credentials.TLSInfo {
	return credentials.TLSInfo{
		State:          state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
}

// refuseProtocol answers somebody who came with a browser or curl.
func (c *conn) refuseProtocol(begin string) error {
	if begin != "G" && begin != "H" && begin != "PO" && begin != "PU" { // GET, HEAD, POST, PUT
		return errProtocol
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(c.nc,
		"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"+
			"This port speaks gRPC (HTTP/2 without TLS) only.\n")
	c.linger()
	return errProtocol
}

var errProtocol = errors.New("client does not speak HTTP/2")

// A client may send maxIdleFrames frames that bring no call on, and idleFramesPerCall more with
// each call. Of those that clients send one or two come with a call; more than that only cost time.
const (
	maxIdleFrames     = 1000
	idleFramesPerCall = 20
)

// idleFrame counts a frame that brings no call on: data without a byte or an end, settings,
// priorities, unknown frames.
func (c *conn) idleFrame() error {
	if c.idleFrames++; c.idleFrames > maxIdleFrames+idleFramesPerCall*uint64(c.lastID/2) {
		return &rpc.ConnError{
			Code: http2.ErrCodeEnhanceYourCalm, Why: "too many frames that bring no call on",
		}
	}
	return nil
}

// readLoop handles frames until the connection fails or is closed.
func (c *conn) readLoop() error {
	for {
		if !c.in.IsFrameBuffered() {
			c.mu.Lock()
			c.mu.reading = false
			c.flushYielding()
			c.mu.Unlock()
		}
		f, err := c.in.Framer.ReadFrame()
		if err == nil {
			c.keep.Read()
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

// onError resets the stream that an error is about, or says why the connection ends and returns the
// error.
func (c *conn) onError(err error) error {
	var se http2.StreamError
	if !errors.As(err, &se) {
		var broken *rpc.ConnError
		if errors.As(err, &broken) && broken.Code == http2.ErrCodeEnhanceYourCalm && !c.onTrial {
			c.s.stats.floods.Add(1)
		}
		c.sayWhy(err)
		return err
	}
	c.resetStream(se.StreamID, se.Code)
	return nil
}

// sayWhy tells the client what it did wrong before the connection is closed.
func (c *conn) sayWhy(err error) {
	de, ok := c.in.Why(err)
	if !ok {
		return
	}
	c.mu.Lock()
	if c.mu.closed == nil {
		_ = c.mu.out.Framer.WriteGoAway(c.lastID, de.Code, []byte(de.Why))
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	c.flushYielding()
	// by others; linger would cut them off
	for (c.mu.writing || c.mu.out.Size > 0) && c.mu.closed == nil {
		c.wakeWriter()
		c.mu.space.Wait()
	}
	c.mu.Unlock()
	c.linger()
}

// linger waits until the client has seen the last words and closed: a close with unread input would
// reset the connection, and the GOAWAY would be lost.
func (c *conn) linger() {
	tc, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || tc.CloseWrite() != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, c.in.Reader, 1<<20)
}

// corrupt reports a message that was damaged on its way, and returns what ends the connection.
func (c *conn) corrupt(call *Call) error {
	if f := c.s.opts.OnCorrupt; f != nil {
		f(c.nc.RemoteAddr(), call.m.path)
	}
	return &rpc.ConnError{Code: http2.ErrCodeProtocol, Why: rpc.ErrCorrupt.Error()}
}

// sawStream notes a stream for which there is no call.
func (c *conn) sawStream(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID = max(c.lastID, id)
}

// handle works one frame off.
func (c *conn) handle(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		return c.onHeadersFrame(f)
	case *http2.ContinuationFrame:
		return c.onContinuation(f)
	case *http2.DataFrame:
		if f.Length == 0 && !f.StreamEnded() {
			if err := c.idleFrame(); err != nil {
				return err
			}
		}
		return c.onData(f)
	case *http2.WindowUpdateFrame:
		return c.onWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.onReset(f)
	case *http2.SettingsFrame:
		if err := c.idleFrame(); err != nil {
			return err
		}
		return c.onSettings(f)
	case *http2.PingFrame:
		return c.onPing(f)
	case *http2.GoAwayFrame:
		// The client takes no new streams from here, and there are none. It ends the connection
		// when it likes.
		return nil
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
		}
		return c.idleFrame()
	case *http2.PushPromiseFrame:
		return &rpc.ConnError{Code: http2.ErrCodeProtocol, Why: "a client must not push"}
	}
	return c.idleFrame() // what is unknown
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
	if !c.mu.pings.allow(time.Now(), c.mu.out.Sent) {
		return &rpc.ConnError{Code: http2.ErrCodeEnhanceYourCalm, Why: "too_many_pings"}
	}
	_ = c.mu.out.Framer.WritePing(true, f.Data)
	return nil
}

func (c *conn) onSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > rpc.MaxSettings {
		return &rpc.ConnError{Code: http2.ErrCodeEnhanceYourCalm, Why: "too many settings"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.mu.out.ApplyLocked(f, c.sendersLocked, func(st http2.Setting) {
		if st.ID == http2.SettingHeaderTableSize {
			c.mu.enc.setTableSize(st.Val)
		}
	})
	c.pumpLocked()
	return err
}

// sendersLocked yields the sending halves of all calls.
func (c *conn) sendersLocked(yield func(*rpc.Sender) bool) {
	for _, call := range c.mu.streams {
		if !yield(&call.mu.Sender) {
			return
		}
	}
}

var errSilent = errors.New("client gave no sign of life")

// pingPolicy finds clients that ping too often: each ping costs both sides a packet and a wake-up.
// As grpc's server does, it forgives two, and forgets them whenever the server has sent something.
type pingPolicy struct {
	min     time.Duration
	last    time.Time
	strikes int
	// sent is how much had been sent at the last ping.
	sent uint64
}

const maxStrikes = 2

// allow counts a ping; sent counts what was sent to the client. The connection's lock must be held.
func (p *pingPolicy) allow(now time.Time, sent uint64) bool {
	if sent != p.sent {
		p.sent, p.strikes, p.last = sent, 0, time.Time{}
	}
	if !p.last.IsZero() && now.Sub(p.last) < p.min {
		p.strikes++
	}
	p.last = now
	return p.strikes <= maxStrikes
}

// checkAlive runs when the keep-alive timer fires.
func (c *conn) checkAlive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed != nil {
		return
	}
	switch c.keep.LookLocked() {
	case rpc.KeepDead:
		c.closeLocked(errSilent)
	case rpc.KeepAsk:
		_ = c.mu.out.Framer.WritePing(false, [8]byte{})
		c.wakeWriter()
	}
}

// onData counts and delivers what a client sent.
func (c *conn) onData(f *http2.DataFrame) error {
	give, err := c.in.Data(int64(f.Length))
	if err != nil {
		return err
	}
	if give > 0 {
		c.mu.Lock()
		_ = c.mu.out.Framer.WriteWindowUpdate(0, uint32(give))
		c.mu.Unlock()
	}
	call := c.call(f.StreamID)
	if call == nil {
		if f.StreamID > c.lastID {
			return &rpc.ConnError{
				Code: http2.ErrCodeProtocol, Why: "data on a stream that was never opened",
			}
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
	if c.last != nil && c.last.mu.ID == id {
		return c.last
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.streams[id]
}

func (c *conn) onWindowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s *rpc.Sender
	if f.StreamID != 0 {
		call := c.mu.streams[f.StreamID]
		if call == nil {
			if f.StreamID > c.lastID {
				return &rpc.ConnError{
					Code: http2.ErrCodeProtocol, Why: "window of a stream that was never opened",
				}
			}
			return nil // it has ended from here
		}
		s = &call.mu.Sender
	}
	if err := c.mu.out.WidenLocked(s, int64(f.Increment)); err != nil {
		return err
	}
	c.pumpLocked()
	return nil
}
