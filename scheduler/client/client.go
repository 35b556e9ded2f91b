package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

const (
	attemptTimeout  = 3 * time.Second
	discoverTimeout = 2 * time.Second
	firstBackoff    = 20 * time.Millisecond
	maxBackoff      = 250 * time.Millisecond
	defaultDeadline = 30 * time.Second // of a call whose context has none
)

// Option configures a client.
type Option func(*Client)

// WithLogger gives the client a logger; without one it is silent.
func WithLogger(l *zap.Logger) Option { return func(c *Client) { c.logger = l } }

// WithTLS makes connections use TLS.
func WithTLS(cfg *tls.Config) Option { return func(c *Client) { c.tls = cfg } }

// Client talks to the placement service. Safe for concurrent use.
//
// Ownership: mu guards the connections and the known members; the heartbeat and timestamp loops
// own their streams. All goroutines end with Close.
type Client struct {
	logger    *zap.Logger
	tls       *tls.Config
	clusterID atomic.Uint64
	ctx       context.Context // ends with Close; parent of all streams
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	hb        *heartbeats
	ts        *timestamps
	lookups   *lookups

	mu struct {
		sync.Mutex
		endpoints []string // host:port of all known members
		leader    string   // host:port, "" if unknown
		version   uint64   // counts changes of leader
		conns     map[string]*grpc.ClientConn
		closed    bool
	}
	discoverMu sync.Mutex // one discovery at a time; taken before mu
}

// New connects to the service. It keeps trying until a leader answers or ctx is done, and logs why
// it waits.
func New(ctx context.Context, endpoints []string, opts ...Option) (*Client, error) {
	c := &Client{logger: zap.NewNop()}
	for _, o := range opts {
		o(c)
	}
	for _, e := range endpoints {
		if h := hostPort(e); h != "" {
			c.mu.endpoints = append(c.mu.endpoints, h)
		}
	}
	if len(c.mu.endpoints) == 0 {
		return nil, errors.New("scheduler client: no endpoint given")
	}
	c.mu.conns = make(map[string]*grpc.ClientConn)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.hb = newHeartbeats(c)
	c.ts, c.lookups = newTimestamps(c), newLookups(c)

	lastLog := time.Time{}
	for wait := firstBackoff; ; wait = min(2*wait, maxBackoff) {
		err := c.discover(ctx, 0)
		if err == nil {
			break
		}
		if time.Since(lastLog) > 5*time.Second {
			lastLog = time.Now()
			c.logger.Warn("waiting for the scheduler", zap.Strings("endpoints", endpoints), zap.Error(err))
		}
		if pause(ctx, wait) != nil {
			c.Close()
			return nil, fmt.Errorf("scheduler %s not reachable: %w", strings.Join(endpoints, ","), err)
		}
	}
	c.wg.Add(2 + lookupConcurrency)
	go c.hb.run() // all loops end with c.ctx; Close waits
	go c.ts.run()
	for range lookupConcurrency {
		go c.lookups.run()
	}
	return c, nil
}

// Close ends all streams and connections. It may be called more than once.
func (c *Client) Close() {
	c.cancel()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.closed = true
	for addr, conn := range c.mu.conns {
		_ = conn.Close()
		delete(c.mu.conns, addr)
	}
}

// ClusterID returns the id of the cluster.
func (c *Client) ClusterID() uint64 { return c.clusterID.Load() }

func (c *Client) header() *schedulerpb.RequestHeader {
	return &schedulerpb.RequestHeader{ClusterId: c.ClusterID()}
}

// hostPort strips the scheme of a URL.
func hostPort(e string) string {
	e = strings.TrimSpace(e)
	if i := strings.Index(e, "://"); i >= 0 {
		e = e[i+3:]
	}
	return strings.TrimSuffix(e, "/")
}

func (c *Client) conn(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return nil, ErrClosed
	}
	if conn := c.mu.conns[addr]; conn != nil {
		return conn, nil
	}
	creds := insecure.NewCredentials()
	if c.tls != nil {
		creds = credentials.NewTLS(c.tls)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(codec.CallOption(), grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: connectBackoff, MinConnectTimeout: discoverTimeout,
		}))
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", addr, err)
	}
	c.mu.conns[addr] = conn
	return conn, nil
}

// leader returns a stub for the leader and the version of that knowledge.
func (c *Client) leader() (schedulerpb.SchedulerClient, uint64, error) {
	c.mu.Lock()
	addr, version := c.mu.leader, c.mu.version
	c.mu.Unlock()
	if addr == "" {
		return nil, version, errors.New("no leader known")
	}
	conn, err := c.conn(addr)
	if err != nil {
		return nil, version, err
	}
	return schedulerpb.NewSchedulerClient(conn), version, nil
}

// discover asks the members who leads. It does nothing if the knowledge is newer than seen. All
// members are asked at once: a dead one must not delay the answer of a live one.
func (c *Client) discover(ctx context.Context, seen uint64) error {
	c.discoverMu.Lock()
	defer c.discoverMu.Unlock()
	c.mu.Lock()
	known, endpoints := c.mu.version > seen, append([]string(nil), c.mu.endpoints...)
	c.mu.Unlock()
	if known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	type answer struct {
		resp *schedulerpb.GetMembersResponse
		err  error
	}
	answers := make(chan answer, len(endpoints))
	for _, addr := range endpoints {
		go func() { // ends with ctx; the channel has room for all
			resp, err := c.askMembers(ctx, addr)
			answers <- answer{resp, err}
		}()
	}
	var errs []error
	for range endpoints {
		a := <-answers
		if a.err == nil {
			a.err = c.learn(a.resp)
		}
		if a.err == nil {
			return nil
		}
		errs = append(errs, a.err)
	}
	return errors.Join(errs...)
}

func (c *Client) askMembers(ctx context.Context, addr string) (*schedulerpb.GetMembersResponse, error) {
	conn, err := c.conn(addr)
	if err != nil {
		return nil, err
	}
	resp, err := schedulerpb.NewSchedulerClient(conn).GetMembers(ctx, &schedulerpb.GetMembersRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return resp, nil
}

func (c *Client) learn(resp *schedulerpb.GetMembersResponse) error {
	id := resp.GetHeader().GetClusterId()
	if old := c.clusterID.Load(); old != 0 && id != 0 && id != old {
		return fmt.Errorf("%w: was %d, is %d", ErrClusterMismatch, old, id)
	}
	urls := resp.GetLeader().GetClientUrls()
	if len(urls) == 0 {
		return errors.New("no leader elected yet")
	}
	c.clusterID.Store(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if addr := hostPort(urls[0]); addr != c.mu.leader {
		c.logger.Info("found placement leader", zap.String("address", addr), log.ClusterID(id))
		c.mu.leader = addr
	}
	c.mu.version++
	known := map[string]bool{}
	for _, e := range c.mu.endpoints {
		known[e] = true
	}
	for _, m := range resp.GetMembers() {
		for _, u := range m.GetClientUrls() {
			if h := hostPort(u); !known[h] {
				known[h] = true
				c.mu.endpoints = append(c.mu.endpoints, h)
			}
		}
	}
	return nil
}

// call tries fn at the leader until it succeeds, is refused for good, or ctx ends.
func (c *Client) call(ctx context.Context, name string,
	fn func(context.Context, schedulerpb.SchedulerClient) error,
) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultDeadline)
		defer cancel()
	}
	var last error
	for wait := firstBackoff; ; wait = min(2*wait, maxBackoff) {
		stub, version, err := c.leader()
		if err == nil {
			attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
			err = fn(attempt, stub)
			cancel()
			if err == nil {
				return nil
			}
			var retry bool
			if err, retry = rpcError(err); !retry {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if errors.Is(err, ErrClosed) || c.ctx.Err() != nil {
			return ErrClosed
		}
		last = err
		if ctx.Err() != nil || pause(ctx, jitter(wait)) != nil {
			return fmt.Errorf("%s: %w (last: %v)", name, ctx.Err(), last)
		}
		if err := c.discover(ctx, version); err != nil {
			last = err
		}
	}
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
