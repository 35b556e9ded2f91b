package txn

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/kv/client"
)

// Oracle gives timestamps: each is larger than all that were given before the question.
type Oracle interface {
	GetTS(ctx context.Context) (physical, logical int64, err error)
}

// logicalBits is how many bits of a timestamp count within a millisecond.
const logicalBits = 18

// Client begins transactions. Safe for concurrent use.
type Client struct {
	kv     *client.Client
	oracle Oracle
	own    bool
	// commits are the ways in which transactions may be committed.
	commits atomic.Int32
	// background are the commits of secondary keys that are under way, slots how many there may be.
	background sync.WaitGroup
	// beats are the heartbeats of pessimistic transactions.
	beats sync.WaitGroup
	slots chan struct{}
	stop  context.CancelFunc
	ctx   context.Context
	mu    struct {
		sync.Mutex
		closed bool
	}
}

// maxBackground bounds the transactions whose secondary keys are being committed; others do it
// before Commit returns.
const maxBackground = 64

// New makes a client over a routing client and an oracle, which stay the caller's.
func New(kv *client.Client, oracle Oracle) *Client {
	c := &Client{kv: kv, oracle: oracle, slots: make(chan struct{}, maxBackground)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Open connects to the placement service at endpoints. The caller closes the client.
func Open(ctx context.Context, endpoints []string, opts client.Options) (*Client, error) {
	kv, err := client.Open(ctx, endpoints, opts)
	if err != nil {
		return nil, err
	}
	c := New(kv, kv.Placement())
	c.own = true
	return c, nil
}

// Close waits for what runs in the background, at most cleanTimeout. Keys that are not committed by
// then are committed by those who read them.
func (c *Client) Close() {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	c.background.Wait()
	c.stop()
	c.beats.Wait()
	if c.own {
		c.kv.Close()
	}
}

// Timestamp is a new timestamp.
func (c *Client) Timestamp(ctx context.Context) (uint64, error) {
	physical, logical, err := c.oracle.GetTS(ctx)
	return uint64(physical)<<logicalBits | uint64(logical), err
}

// Begin starts a transaction, which one goroutine at a time may use.
func (c *Client) Begin(ctx context.Context) (*Txn, error) {
	begun := time.Now()
	ts, err := c.Timestamp(ctx)
	if err != nil {
		return nil, err
	}
	return &Txn{
		c: c, startTS: ts, begun: begun, writes: map[string]mutation{},
		commits: Commits(c.commits.Load()),
	}, nil
}

// Run has fn carried out in a transaction and commits it. At a conflict both are done again, with a
// new transaction, until ctx ends; fn must not have effects of its own. Any other error of fn or of
// the commit ends it.
func (c *Client) Run(ctx context.Context, fn func(*Txn) error) error {
	return c.run(ctx, c.Begin, fn)
}

// RunPessimistic is Run with a pessimistic transaction.
func (c *Client) RunPessimistic(ctx context.Context, fn func(*Txn) error) error {
	return c.run(ctx, c.BeginPessimistic, fn)
}

func (c *Client) run(
	ctx context.Context, begin func(context.Context) (*Txn, error), fn func(*Txn) error,
) error {
	wait := backoff{}
	for {
		err := runOnce(ctx, begin, fn)
		if !errors.Is(err, ErrConflict) || IsUnknown(err) {
			return err
		}
		if !wait.sleep(ctx) {
			return err
		}
	}
}

func runOnce(
	ctx context.Context, begin func(context.Context) (*Txn, error), fn func(*Txn) error,
) error {
	t, err := begin(ctx)
	if err != nil {
		return err
	}
	if err := fn(t); err != nil {
		t.Rollback()
		return err
	}
	return t.Commit(ctx)
}

// inBackground runs f while its caller returns; false if there is too much of that, or the client
// is closed.
func (c *Client) inBackground(f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return false
	}
	select {
	case c.slots <- struct{}{}:
	default:
		return false
	}
	c.background.Add(1)
	// Ends with f, after cleanTimeout, or when the client is closed.
	go func() {
		defer c.background.Done()
		defer func() { <-c.slots }()
		ctx, cancel := context.WithTimeout(c.ctx, cleanTimeout)
		defer cancel()
		f(ctx)
	}()
	return true
}

// backoff doubles the pause between attempts, with jitter.
type backoff struct{ n int }

// sleep pauses; false if ctx ends first.
func (b *backoff) sleep(ctx context.Context) bool {
	d := min(2*time.Millisecond<<min(b.n, 10), 200*time.Millisecond)
	b.n++
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
