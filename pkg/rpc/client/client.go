package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/proto/codec"
)

// OnCorrupt is the core's, for those who know this room only.
type OnCorrupt = rpc.OnCorrupt

// ClientOptions are the limits of a Client. A zero value means the default in parentheses.
type Options struct {
	// MaxRecv and MaxSend bound one message, in bytes (4 MiB each).
	MaxRecv, MaxSend int
	// StreamWindow and ConnWindow are how much the server may send ahead of a stream's receiver,
	// and ahead of this client (4 and 8 MiB).
	StreamWindow, ConnWindow uint32
	// ConnectTimeout is how long it may take until the server has greeted (1 s).
	ConnectTimeout time.Duration
	// MinBackoff and MaxBackoff bound the pause after an attempt to connect that failed; it grows
	// by half each time (20 ms, 1 s).
	MinBackoff, MaxBackoff time.Duration
	// KeepAlive is how long the server may be silent before it is asked for a sign of life, and
	// KeepAliveTimeout how long that may take (10 s, 3 s).
	KeepAlive, KeepAliveTimeout time.Duration
	// Dial replaces how the connection is made; nil is by TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Codec encodes messages (proto/codec).
	Codec encoding.CodecV2
	// Checksum has messages carry checksums in both directions, if the server knows them.
	Checksum bool
	// OnCorrupt is called for messages that were damaged on their way; may be nil.
	OnCorrupt OnCorrupt
	// UnaryInterceptors and StreamInterceptors stand before all calls, the first outermost, as
	// grpc.WithChainUnaryInterceptor has it. They get a grpc.ClientConn that has the client's
	// target and is for nothing else. What a user of StreamOf sends and receives there passes by
	// the stream that an interceptor has put around it.
	UnaryInterceptors  []grpc.UnaryClientInterceptor
	StreamInterceptors []grpc.StreamClientInterceptor
}

func (o *Options) setDefaults() {
	o.MaxRecv = cmp.Or(o.MaxRecv, 4<<20)
	o.MaxSend = cmp.Or(o.MaxSend, 4<<20)
	o.StreamWindow = cmp.Or(o.StreamWindow, 4<<20)
	o.ConnWindow = cmp.Or(o.ConnWindow, 8<<20)
	o.StreamWindow = min(max(o.StreamWindow, rpc.InitialWindow), rpc.MaxWindow)
	o.ConnWindow = min(max(o.ConnWindow, rpc.InitialWindow), rpc.MaxWindow)
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, time.Second)
	o.MinBackoff = cmp.Or(o.MinBackoff, 20*time.Millisecond)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, time.Second)
	o.KeepAlive = cmp.Or(o.KeepAlive, 10*time.Second)
	o.KeepAliveTimeout = cmp.Or(o.KeepAliveTimeout, 3*time.Second)
	if o.Codec == nil {
		o.Codec = codec.New()
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
}

// notSent is the error of a call of which the server has certainly carried out nothing. dialing:
// the call was still waiting for a connection.
type notSent struct {
	st      *status.Status
	dialing bool
}

func (e *notSent) Error() string { return e.st.Err().Error() }

func (e *notSent) GRPCStatus() *status.Status { return e.st }

func notSentf(format string, a ...any) error {
	return &notSent{st: status.Newf(codes.Unavailable, format, a...)}
}

// NotSent tells whether err is that of a call of which the server has certainly carried out
// nothing: there was no connection, or the server refused the call before it looked at it.
func NotSent(err error) bool {
	var e *notSent
	return errors.As(err, &e)
}

// NotConnected tells whether err is that of a call whose deadline passed while it waited for a
// connection to be made.
func NotConnected(err error) bool {
	var e *notSent
	return errors.As(err, &e) && e.dialing && e.st.Code() == codes.DeadlineExceeded
}

// Client is a connection to one server, made when it is first needed and again when it was lost. It
// implements grpc.ClientConnInterface, for generated code; calloptions.go has the call options.
// Safe for concurrent use.
//
// Errors are statuses. Unavailable: there is no connection, or it was lost; see NotSent. While the
// server cannot be reached, calls between two attempts to connect fail at once, those during an
// attempt wait for it.
type Client struct {
	addr string
	opts Options
	// barLimit is for how long a server may take no calls, see barLocked: as long as it may be
	// silent, except in tests.
	barLimit time.Duration
	// confirmed: the server is one that sends checksums.
	confirmed atomic.Bool
	// intercepts stands before the calls; nil if nothing does.
	intercepts *interceptors
	// up is the connection that new calls take.
	up  atomic.Pointer[link]
	ctx context.Context
	end context.CancelFunc
	wg  sync.WaitGroup
	mu  struct {
		sync.Mutex
		closed  bool
		attempt *attempt
		// failures in a row; the last was because of err, and until retry there is no other
		// attempt.
		failures int
		err      error
		retry    time.Time
		links    map[*link]struct{}
	}
}

// attempt is one to connect; link and err are set when done is closed.
type attempt struct {
	done chan struct{}
	link *link
	err  error
}

var _ grpc.ClientConnInterface = (*Client)(nil)

// NewClient makes a client of the server at addr, host:port. Nothing is sent before the first call.
func New(addr string, o Options) *Client {
	o.setDefaults()
	c := &Client{addr: addr, opts: o, barLimit: o.KeepAlive + o.KeepAliveTimeout}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.mu.links = map[*link]struct{}{}
	if x, err := newInterceptors(addr, &c.opts); err != nil {
		refuse := fmt.Errorf("interceptors for %s: %w", addr, err)
		c.opts.Dial = func(context.Context, string) (net.Conn, error) { return nil, refuse }
	} else {
		c.intercepts = x
	}
	return c
}

// Close ends the connection and all calls, and waits until nothing of it runs any more. Idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	c.mu.closed = true
	c.end()
	for l := range c.mu.links {
		l.close(errClientClosed)
	}
	c.mu.Unlock()
	c.wg.Wait()
	if c.intercepts != nil {
		return c.intercepts.conn.Close()
	}
	return nil
}

var errClientClosed = errors.New("the client was closed")

// connected waits for a connection.
func (c *Client) connected(ctx context.Context) (*link, error) {
	if l := c.up.Load(); l != nil && l.usable() {
		return l, nil
	}
	c.mu.Lock()
	if l := c.up.Load(); l != nil && l.usable() {
		c.mu.Unlock()
		return l, nil
	}
	if c.mu.closed {
		c.mu.Unlock()
		return nil, c.closedError()
	}
	a := c.mu.attempt
	if a == nil {
		if c.mu.failures > 0 && time.Now().Before(c.mu.retry) {
			err := c.mu.err
			c.mu.Unlock()
			return nil, err
		}
		a = &attempt{done: make(chan struct{})}
		c.mu.attempt = a
		c.wg.Add(1)
		// Ends within the connect timeout, or with the client, which waits.
		go func() { defer c.wg.Done(); c.connect(a) }()
	}
	c.mu.Unlock()
	ctx, stop := timed(ctx)
	defer stop()
	select {
	case <-a.done:
		return a.link, a.err
	case <-ctx.Done():
		st := status.FromContextError(ctx.Err())
		st = status.Newf(st.Code(), "connection to %s: %s while dialing", c.addr, st.Message())
		return nil, &notSent{st: st, dialing: true}
	}
}

func (c *Client) closedError() error {
	return &notSent{
		st: status.Newf(codes.Canceled, "connection to %s: %v", c.addr, errClientClosed),
	}
}

// connect makes one attempt.
func (c *Client) connect(a *attempt) {
	l, err := c.dial()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(a.done)
	c.mu.attempt = nil
	if c.mu.closed {
		a.err = c.closedError() // Close has closed the link
		return
	}
	if err == nil && !l.usable() {
		err = errNoCalls
	}
	if err != nil {
		a.err = notSentf("connection to %s: error while dialing: %v", c.addr, err)
		c.failedLocked(a.err)
		return
	}
	a.link, l.taken = l, true
	c.up.Store(l)
	if !l.usable() { // since then, perhaps after a look at up
		c.up.CompareAndSwap(l, nil)
	}
}

var errNoCalls = errors.New("the server takes no calls")

// failedLocked notes that an attempt came to nothing.
func (c *Client) failedLocked(err error) {
	pause := c.opts.MinBackoff
	for range c.mu.failures {
		if pause = pause * 3 / 2; pause >= c.opts.MaxBackoff {
			pause = c.opts.MaxBackoff
			break
		}
	}
	c.mu.failures++
	c.mu.err, c.mu.retry = err, time.Now().Add(pause*4/5+rand.N(pause*2/5+1))
}

// dial connects and waits for the server's greeting. The link's goroutines run afterwards, unless
// there is an error.
func (c *Client) dial() (*link, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.ConnectTimeout)
	defer cancel()
	nc, err := c.opts.Dial(ctx, c.addr)
	if err != nil {
		return nil, err
	}
	l := newLink(c, nc)
	c.mu.Lock()
	c.mu.links[l] = struct{}{}
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		l.close(fmt.Errorf("no greeting: %w", context.Cause(ctx)))
	})
	greeted := make(chan struct{})
	c.wg.Add(1)
	// Owned by the client; ends with the connection.
	go func() { defer c.wg.Done(); l.serve(greeted) }()
	select {
	case <-greeted:
	case <-l.gone:
	}
	if !stop() || !l.usable() {
		l.close(errNoCalls)
		<-l.gone
		return nil, l.reason()
	}
	return l, nil
}

// lost is called when a connection takes no further calls. One that was lost soon after it was made
// counts as one that could not be made: callers would else connect again and again.
func (c *Client) lost(l *link, err error) {
	c.up.CompareAndSwap(l, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !l.taken: // the attempt counts as a failure itself
	case l.renewed.Load():
	case time.Since(l.since) < c.opts.MaxBackoff:
		c.failedLocked(notSentf("connection to %s: error while dialing: lost a moment ago: %v",
			c.addr, err))
	default:
		c.mu.failures = 0
	}
}

// forget is called when a connection has ended.
func (c *Client) forget(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.links, l)
}

// maxReplays is how often a call that a server refused before it looked at it is tried again.
const maxReplays = 3

// invoke makes one unary call.
func (c *Client) invoke(
	ctx context.Context, method string, args, reply any, opts []grpc.CallOption,
) error {
	info, err := c.newCallInfo(ctx, method, opts)
	if err != nil {
		return err
	}
	for replays := 0; ; replays++ {
		l, err := c.ready(ctx, info)
		if err == nil {
			err = l.invoke(ctx, info, method, args, reply)
		}
		if l == nil || err == nil || replays >= maxReplays || !NotSent(err) || ctx.Err() != nil {
			info.finish(l, err)
			return err
		}
		l.awaitEnd(ctx)
	}
}

// newStream begins a stream.
func (c *Client) newStream(
	ctx context.Context, desc *grpc.StreamDesc, method string, opts []grpc.CallOption,
) (grpc.ClientStream, error) {
	info, err := c.newCallInfo(ctx, method, opts)
	if err != nil {
		return nil, err
	}
	if info == nil {
		info = new(callInfo) // Header and Trailer may be asked for later
	}
	for replays := 0; ; replays++ {
		l, err := c.ready(ctx, info)
		if err == nil {
			var st *Stream
			if st, err = l.newStream(ctx, info, desc, method); err == nil {
				return st, nil
			}
		}
		if l == nil || replays >= maxReplays || !NotSent(err) || ctx.Err() != nil {
			info.finish(l, err)
			return nil, err
		}
		l.awaitEnd(ctx)
	}
}
