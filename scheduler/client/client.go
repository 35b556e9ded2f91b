package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/security"
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

// WithIdentity makes connections use TLS, with certificates that are read again when their files
// change.
func WithIdentity(id *security.Identity) Option { return func(c *Client) { c.identity = id } }

// WithToken has calls that are for the admin, PutClusterConfig and UpdateGCSafePoint, carry the API
// token of the service.
func WithToken(token string) Option { return func(c *Client) { c.token = token } }

// WithDialer replaces how connections are made, which is by TCP.
func WithDialer(dial func(ctx context.Context, addr string) (net.Conn, error)) Option {
	return func(c *Client) { c.dial = dial }
}

// WithoutService lets New return a client of the given cluster although no leader answers before
// its context is done. The client goes on looking for one, and Connected tells whether it has found
// it.
func WithoutService(clusterID uint64) Option { return func(c *Client) { c.alone = clusterID } }

// Client talks to the placement service. Safe for concurrent use.
//
// Ownership: the heartbeat and timestamp loops own their streams. All goroutines end with Close.
type Client struct {
	*members
	logger    *zap.Logger
	tls       *tls.Config
	identity  *security.Identity
	token     string
	dial      func(ctx context.Context, addr string) (net.Conn, error)
	clusterID atomic.Uint64
	alone     uint64          // the cluster's id if New may return without a leader
	ctx       context.Context // ends with Close; parent of all streams
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	hb        *heartbeats
	ts        *timestamps
	lookups   *lookups
}

// New connects to the service. It keeps trying until a leader answers or ctx is done, and logs why
// it waits.
func New(ctx context.Context, endpoints []string, opts ...Option) (*Client, error) {
	c := &Client{logger: zap.NewNop()}
	for _, o := range opts {
		o(c)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.members = newMembers(c, endpoints)
	if len(c.known()) == 0 {
		c.cancel()
		return nil, errors.New("scheduler client: no endpoint given")
	}
	if err := c.checkSchemes(endpoints); err != nil {
		c.cancel()
		return nil, err
	}
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
			c.logger.Warn("waiting for the scheduler", zap.Strings("endpoints", endpoints),
				zap.Error(c.explain(err)))
		}
		if pause(ctx, wait) != nil {
			if c.alone != 0 {
				c.clusterID.CompareAndSwap(0, c.alone)
				break
			}
			c.Close()
			return nil,
				fmt.Errorf("scheduler %s not reachable: %w", strings.Join(endpoints, ","),
					c.explain(err))
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

// checkSchemes refuses endpoints that can never answer: https without TLS is met by a server that
// waits for a handshake, http with TLS by one that does not understand it.
func (c *Client) checkSchemes(endpoints []string) error {
	for _, e := range endpoints {
		switch e = strings.TrimSpace(e); {
		case !c.secured() && strings.HasPrefix(e, "https://"):
			return fmt.Errorf("scheduler client: %s uses TLS, but none is configured (WithTLS)", e)
		case c.secured() && strings.HasPrefix(e, "http://"):
			return fmt.Errorf("scheduler client: %s does not use TLS, but this client does", e)
		}
	}
	return nil
}

// explain adds to the words of a connection that broke at once what they mostly mean.
func (c *Client) explain(err error) error {
	switch text := err.Error(); {
	case !c.secured() && strings.Contains(text, "server preface"):
		return fmt.Errorf("%w (if it serves TLS, give its address as https://)", err)
	case c.secured() && strings.Contains(text, "does not look like a TLS handshake"):
		return fmt.Errorf("%w (it does not serve TLS: give its address as http://)", err)
	}
	return err
}

// Close ends all streams and connections. It may be called more than once.
func (c *Client) Close() {
	c.cancel()
	c.wg.Wait()
	c.members.close()
}

// Connected tells whether a leader of the service was ever found.
func (c *Client) Connected() bool {
	_, err := c.leader()
	return err == nil
}

// ClusterID returns the id of the cluster.
func (c *Client) ClusterID() uint64 { return c.clusterID.Load() }

func (c *Client) header() *schedulerpb.RequestHeader {
	return &schedulerpb.RequestHeader{ClusterId: c.ClusterID()}
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
		leader, err := c.leader()
		if err == nil {
			attempt, cancel := context.WithCancel(ctx)
			done := c.try(leader, cancel)
			err = fn(attempt, leader)
			done()
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
		if last == nil || ctx.Err() == nil { // else it says no more than ctx does
			last = err
		}
		if ctx.Err() != nil || pause(ctx, jitter(wait)) != nil {
			return fmt.Errorf("%s: %w (last: %v)", name, ctx.Err(), last)
		}
		if err := c.discover(ctx, leader.version); err != nil && ctx.Err() == nil {
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

// secured tells whether connections use TLS.
func (c *Client) secured() bool { return c.tls != nil || c.identity != nil }
