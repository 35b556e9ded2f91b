package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// maxHeaderBytes bounds the headers of an answer.
const maxHeaderBytes = 64 << 10

// link is one connection of a Client. Its reading goroutine, serve, owns everything outside mu; the
// output belongs to mu and to the goroutine that has set writing: a caller writes its request
// itself as far as that does not block, the writing goroutine does the rest. What is named
// ...Locked holds mu until it returns; what gives it up in between is named ...Yielding.
//
// Invariant (mu): calls has the calls that have begun and not ended. The one that removes a call
// from it tells its caller.
type link struct {
	c     *Client
	nc    net.Conn
	try   tryWriter
	since time.Time
	// secure: the connection has TLS.
	secure bool
	// taken: calls were given it. Guarded by the client's lock.
	taken bool
	in    rpc.Incoming
	// head takes in the header block that is being read.
	head responseHead
	ends ends
	keep rpc.KeepAlive
	// shut: no further calls are taken.
	shut atomic.Bool
	// renewed: it was shut because of one answer, by a server that works.
	renewed atomic.Bool
	// wake has the writer look for output; gone is closed when the connection has ended.
	wake, gone chan struct{}

	mu struct {
		sync.Mutex
		out     rpc.Outgoing
		writing bool
		// reading: the reading goroutine is at work and will flush before it waits for more.
		reading bool
		closed  error
		calls   map[uint32]*clientCall
		nextID  uint32
		// max is how many calls the server takes at a time, maxHeaders how large their headers may
		// be, in bytes.
		max, maxHeaders uint32
		// barred runs while the server takes no calls.
		barred *time.Timer
		// acks are the answers to settings and pings in the output.
		acks int
		// waiters wait for something to end or to be written.
		waiters []chan struct{}
		enc     requestEncoder
		// lastMethod is the last call's, lastSum its checksum.
		lastMethod string
		lastSum    uint32
		sweep      sweep
	}
}

func newLink(c *Client, nc net.Conn) *link {
	l := &link{
		c: c, nc: nc, try: newTryWriter(nc), since: time.Now(), wake: make(chan struct{}, 1),
		gone: make(chan struct{}),
	}
	l.in.Init(nc, c.opts.ConnWindow)
	l.keep.Began = l.since
	l.head.init()
	l.mu.calls = map[uint32]*clientCall{}
	l.mu.nextID = 1
	l.mu.max = 1 << 30 // until the server says otherwise
	_, l.secure = nc.(interface{ ConnectionState() tls.ConnectionState })
	l.mu.maxHeaders = math.MaxUint32 // until the server says otherwise
	l.mu.enc.init(c.addr, l.secure, c.opts.Checksum)
	l.mu.out.Init(0)
	return l
}

// awaitEnd waits for the end of a connection that takes no calls and has none: only then is it
// known as one that failed, and another attempt would be made at once.
func (l *link) awaitEnd(ctx context.Context) {
	l.mu.Lock()
	ending := l.shut.Load() && len(l.mu.calls) == 0
	l.mu.Unlock()
	if !ending {
		return
	}
	ctx, stop := timed(ctx)
	defer stop()
	select {
	case <-l.gone:
	case <-ctx.Done():
	}
}

// peer is the other side, for those who ask.
func (l *link) peer() *peer.Peer {
	p := &peer.Peer{Addr: l.nc.RemoteAddr(), LocalAddr: l.nc.LocalAddr()}
	if tc, ok := l.nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		p.AuthInfo = credentials.TLSInfo{State: tc.ConnectionState()}
	}
	return p
}

// usable tells whether it takes further calls.
func (l *link) usable() bool { return !l.shut.Load() }

// reason is why the connection has ended.
func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.closed
}

// serve runs until the connection ends; greeted is closed once the server has sent its settings.
func (l *link) serve(greeted chan<- struct{}) {
	done := make(chan struct{})
	// Owned by the connection; ends when it was closed.
	go func() { defer close(done); l.writeLoop() }()
	err := l.greet()
	if err == nil {
		close(greeted)
		err = l.readLoop()
	}
	l.close(err)
	<-done
	l.c.lost(l, l.reason())
	l.c.forget(l)
	close(l.gone)
}

// greet sends the preface and waits for the server's.
func (l *link) greet() error {
	o := &l.c.opts
	l.mu.Lock()
	copy(l.mu.out.Grow(len(rpc.Preface)), rpc.Preface)
	_ = l.mu.out.Framer.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: o.StreamWindow},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaderBytes})
	if o.ConnWindow > rpc.InitialWindow {
		_ = l.mu.out.Framer.WriteWindowUpdate(0, o.ConnWindow-rpc.InitialWindow)
	}
	l.flushYielding()
	l.mu.Unlock()
	f, err := l.in.Framer.ReadFrame()
	if err != nil {
		return err
	}
	st, ok := f.(*http2.SettingsFrame)
	if !ok || st.IsAck() {
		return errors.New("the server does not speak HTTP/2")
	}
	if err := l.onSettings(st); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closed == nil {
		l.keep.StartLocked(o.KeepAlive, o.KeepAliveTimeout, true, l.checkAlive)
	}
	return nil
}

func (l *link) readLoop() error {
	for {
		if !l.in.IsFrameBuffered() {
			l.keep.Waits()
			l.mu.Lock()
			l.mu.reading = false
			l.flushYielding()
			l.mu.Unlock()
		}
		f, err := l.in.Framer.ReadFrame()
		if err == nil {
			l.keep.Read()
			err = l.handle(f)
		} else if se := (http2.StreamError{}); errors.As(err, &se) {
			// The Framer has dropped the frame: if it had headers, the table is not the server's
			// any more.
			err = http2.ConnectionError(se.Code)
		}
		if err != nil {
			err = l.onError(err)
		}
		if err != nil {
			return err
		}
	}
}

// onError resets the stream that an error is about, or says why the connection ends and returns the
// error.
func (l *link) onError(err error) error {
	var se http2.StreamError
	if errors.As(err, &se) {
		l.reset(se.StreamID, se.Code,
			status.New(codes.Internal, "the server broke the protocol: "+se.Error()))
		return nil
	}
	if de, ok := l.in.Why(err); ok {
		l.sayWhy(de)
	}
	return err
}

// lastWords is how long a connection stays open for a server to take the reason why it ends.
const lastWords = time.Second

// sayWhy tells the server why the connection ends. It returns when that is written, by this
// goroutine or by the one that writes at the moment, and after lastWords at the latest.
func (l *link) sayWhy(why *rpc.ConnError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closed != nil {
		return
	}
	_ = l.mu.out.Framer.WriteGoAway(0, why.Code, []byte(why.Why))
	// a writer that fails closes the connection
	_ = l.nc.SetWriteDeadline(time.Now().Add(lastWords))
	l.flushYielding()
	for (l.mu.writing || l.mu.out.Size > 0) && l.mu.closed == nil {
		rpc.Wake(l.wake)
		l.waitYielding(nil)
	}
}

func (l *link) handle(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		return l.onHeaderBlock(f.StreamID, f.HeaderBlockFragment(), f.StreamEnded(),
			f.HeadersEnded())
	case *http2.ContinuationFrame:
		return l.onHeaderBlock(f.StreamID, f.HeaderBlockFragment(), l.head.end, f.HeadersEnded())
	case *http2.DataFrame:
		return l.onData(f)
	case *http2.WindowUpdateFrame:
		return l.onWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return l.onReset(f)
	case *http2.SettingsFrame:
		return l.onSettings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			l.mu.Lock()
			defer l.mu.Unlock()
			_ = l.mu.out.Framer.WritePing(true, f.Data)
			return l.ackedLocked()
		}
	case *http2.GoAwayFrame:
		return l.onGoAway(f)
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil // what is unknown
}

func (l *link) onSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > rpc.MaxSettings {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.mu.out.ApplyLocked(f, l.sendersLocked, func(st http2.Setting) {
		switch st.ID {
		case http2.SettingHeaderTableSize:
			l.mu.enc.setTableSize(st.Val)
		case http2.SettingMaxHeaderListSize:
			l.mu.maxHeaders = st.Val
		case http2.SettingMaxConcurrentStreams:
			l.mu.max = st.Val
			l.barLocked()
			l.wakeWaitersLocked()
		case rpc.SettingPrefixSums:
			l.mu.enc.setPrefixes(st.Val)
		}
	})
	l.pumpLocked()
	if err == nil {
		err = l.ackedLocked()
	}
	return err
}

// barLocked bounds for how long a connection stays on which the server takes no call at all. The
// server answers pings, so nothing else would end it, and calls without a deadline would wait for
// ever. The setting may have been another number before a bit of it flipped: 4,096 has one. The
// next connection has settings of its own.
func (l *link) barLocked() {
	if l.mu.barred != nil {
		l.mu.barred.Stop()
		l.mu.barred = nil
	}
	if l.mu.max > 0 || l.mu.closed != nil {
		return
	}
	l.mu.barred = time.AfterFunc(l.c.barLimit, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case l.mu.max > 0 || l.mu.closed != nil:
		case len(l.mu.calls) == 0:
			l.closeLocked(errNoCalls)
		default: // it works on earlier ones
			l.barLocked()
		}
	})
}

// maxAcks bounds the answers to settings and pings that wait to be written: a server that does not
// read must not fill the memory with them. The reading goroutine cannot wait, as the server's might
// do the same.
const maxAcks = 10_000

func (l *link) ackedLocked() error {
	if l.mu.acks++; l.mu.acks > maxAcks {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	return nil
}

// sendersLocked yields the sending halves of all calls.
func (l *link) sendersLocked(yield func(*rpc.Sender) bool) {
	for _, call := range l.mu.calls {
		if !yield(&call.mu.Sender) {
			return
		}
	}
}

func (l *link) onWindowUpdate(f *http2.WindowUpdateFrame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s *rpc.Sender
	if f.StreamID != 0 {
		call := l.mu.calls[f.StreamID]
		if call == nil {
			if f.StreamID%2 == 0 || f.StreamID >= l.mu.nextID {
				return &rpc.ConnError{
					Code: http2.ErrCodeProtocol,
					Why:  "the window of a stream that was never opened",
				}
			}
			return nil // it has ended
		}
		s = &call.mu.Sender
	}
	if err := l.mu.out.WidenLocked(s, int64(f.Increment)); err != nil {
		return err
	}
	l.pumpLocked()
	return nil
}

// retire has new calls take another connection; this one ends with its last call.
func (l *link) retire() {
	l.shut.Store(true)
	l.c.up.CompareAndSwap(l, nil)
}

// onGoAway: the server takes no further calls. Those that it has not seen can be made elsewhere.
func (l *link) onGoAway(f *http2.GoAwayFrame) error {
	l.retire()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeWaitersLocked()
	for id, call := range l.mu.calls {
		if id > f.LastStreamID {
			l.endLocked(call,
				notSentf(
					"connection to %s: the server is going away and has not looked at the call",
					l.c.addr))
		}
	}
	if f.ErrCode != http2.ErrCodeNo {
		return fmt.Errorf("the server ended it: %v %s", f.ErrCode, f.DebugData())
	}
	l.endIfDrainedLocked()
	return nil
}

// endIfDrainedLocked closes a connection that takes no calls and has none.
func (l *link) endIfDrainedLocked() {
	if l.shut.Load() && len(l.mu.calls) == 0 {
		l.closeLocked(errDrained)
	}
}

var errDrained = errors.New("the server is going away")

// errOutOfIDs: HTTP/2 numbers calls with 31 bits.
var errOutOfIDs = errors.New("the connection has no numbers for calls left")

// checkAlive runs when the keep-alive timer fires.
func (l *link) checkAlive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closed != nil {
		return
	}
	switch l.keep.LookLocked() {
	case rpc.KeepDead:
		l.closeLocked(errors.New("the server gave no sign of life"))
	case rpc.KeepAsk:
		_ = l.mu.out.Framer.WritePing(false, [8]byte{})
		l.kickLocked()
	}
}
