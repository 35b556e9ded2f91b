// Package client is the routing client of a TinyKV cluster: it finds the region of a key, asks its
// leader, follows the cluster through splits, moves and failures, and tells definite failures of
// writes from unknown outcomes.
//
// A write carries an identity. After an attempt of unknown outcome the client sends it again at
// once, and the region's leader finds out from its log what became of the attempts before: the
// write happens once, and the client gets its outcome (docs/exactly-once.md). Where the log does
// not reach back far enough, or a store does not know identities, the client returns an
// UnknownError instead of a second write.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client/fill"
	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// Options tune a client; the zero value of a field means its default.
type Options struct {
	// Timeout bounds an operation whose context has no deadline. Default 20 s.
	Timeout time.Duration
	// AttemptTimeout bounds one RPC. Default 1 s for gets and writes; scans get five times as much,
	// a write as much again for each 256 KiB of its value. After each attempt that ran out of time
	// the next gets twice as much, up to eight times.
	AttemptTimeout time.Duration
	// NoRetryUnknown returns an UnknownError after the first attempt of unknown outcome instead of
	// trying again.
	NoRetryUnknown bool
	// Conns is the number of connections per store. Default 2.
	Conns int
	// MaxMessage bounds an answer. Default 64 MiB.
	MaxMessage int
	// Unary sends every request as an RPC of its own, instead of sharing a stream per connection.
	Unary bool
	// UnaryInterceptors and StreamInterceptors stand before the RPCs to stores, the first
	// outermost; those to the placement service have none. A retry is an RPC of its own. With a
	// unary one the client is Unary, so that each request passes through it. With stream ones
	// alone, the stream that requests share passes once for each connection; what is sent on it
	// passes by.
	UnaryInterceptors  []grpc.UnaryClientInterceptor
	StreamInterceptors []grpc.StreamClientInterceptor
	// TLS is how Open connects to the placement service, if its endpoints are https, and how stores
	// are reached that serve TLS.
	TLS *tls.Config
	// Identity is like TLS, with certificates that are read again when their files change. It comes
	// before TLS.
	Identity *security.Identity
	// Dial replaces gRPC connections: it returns the service of a store. For clusters in one
	// process.
	Dial func(ctx context.Context, storeID uint64) (tinykvpb.TinyKvClient, error)
}

func (o *Options) ensureDefaults() {
	if o.Timeout <= 0 {
		o.Timeout = 20 * time.Second
	}
	if o.AttemptTimeout <= 0 {
		o.AttemptTimeout = time.Second
	}
	o.Unary = o.Unary || len(o.UnaryInterceptors) > 0
	if o.Conns <= 0 {
		o.Conns = 2
	}
	if o.MaxMessage <= 0 {
		o.MaxMessage = 64 << 20
	}
}

// KV is a pair.
type KV struct{ Key, Value []byte }

// Client serves one column family of a cluster. Safe for concurrent use.
type Client struct {
	opts  Options
	cf    string
	cache *regionCache
	pool  *pool
	own   *client.Client
	ids   *identities
}

// identities numbers the writes of a client. Shared by its column families.
type identities struct {
	client uint64 // random, never zero
	writes atomic.Uint64
	// exact is set once a store has answered with a log position: the cluster knows identities.
	exact atomic.Bool
	// ttl are the ids of stores that keep TTLs.
	ttl sync.Map
}

// Open connects to the placement service at endpoints. The caller closes the client.
func Open(ctx context.Context, endpoints []string, opts Options) (*Client, error) {
	var with []client.Option
	switch {
	case opts.Identity != nil:
		with = append(with, client.WithIdentity(opts.Identity))
	case opts.TLS != nil:
		with = append(with, client.WithTLS(opts.TLS))
	}
	pd, err := client.New(ctx, endpoints, with...)
	if err != nil {
		return nil, err
	}
	c := New(pd, opts)
	c.own = pd
	return c, nil
}

// New makes a client over a placement client that stays the caller's.
func New(p Placement, opts Options) *Client {
	opts.ensureDefaults()
	c := &Client{
		opts: opts, ids: &identities{client: rand.Uint64() | 1},
		pool: &pool{placement: p, opts: opts, stores: map[uint64]*storeConn{}},
	}
	c.cache = newRegionCache(p, c.pool.learn)
	return c
}

// CF returns a client for another column family; it shares everything and is not closed.
func (c *Client) CF(name string) *Client {
	d := *c
	d.cf, d.own = name, nil
	return &d
}

// Placement is the client of the placement service, nil if New was given another one.
func (c *Client) Placement() *client.Client { return c.own }

// Close ends all connections.
func (c *Client) Close() {
	c.pool.close()
	if c.own != nil {
		c.own.Close()
	}
}

// Get returns the value of a key; found is false when there is none.
func (c *Client) Get(ctx context.Context, key []byte) (value []byte, found bool, err error) {
	err = c.retry(ctx, key, patience{answer: c.opts.AttemptTimeout},
		func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *cachedRegion,
		) (*errorpb.Error, string, error) {
			resp, err := s.RawGet(ctx, &kvrpcpb.RawGetRequest{Context: kctx, Key: key, Cf: c.cf})
			if err != nil {
				return nil, "", err
			}
			value, found = resp.Value, !resp.NotFound
			return resp.RegionError, resp.Error, nil
		})
	if err != nil || !found {
		return nil, false, err
	}
	if value == nil {
		value = []byte{} // an empty value is a value
	}
	return value, true, nil
}

// Put sets a key. The value may be empty.
func (c *Client) Put(ctx context.Context, key, value []byte) error {
	return c.retry(ctx, key, c.writing(len(value)),
		func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
		) (*errorpb.Error, string, error) {
			resp, err := s.RawPut(ctx,
				&kvrpcpb.RawPutRequest{Context: kctx, Key: key, Value: value, Cf: c.cf})
			if err != nil {
				return nil, "", err
			}
			c.advance(r, resp.LogIndex)
			return resp.RegionError, resp.Error, nil
		})
}

// Delete removes a key; removing what is not there succeeds.
func (c *Client) Delete(ctx context.Context, key []byte) error {
	return c.retry(ctx, key, c.writing(0),
		func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
		) (*errorpb.Error, string, error) {
			resp, err := s.RawDelete(ctx,
				&kvrpcpb.RawDeleteRequest{Context: kctx, Key: key, Cf: c.cf})
			if err != nil {
				return nil, "", err
			}
			c.advance(r, resp.LogIndex)
			return resp.RegionError, resp.Error, nil
		})
}

// advance takes note of a committed index of a region's log.
func (c *Client) advance(r *cachedRegion, index uint64) {
	if index == 0 {
		return
	}
	if !c.ids.exact.Load() {
		c.ids.exact.Store(true)
	}
	for old := r.position.Load(); index > old &&
		!r.position.CompareAndSwap(old, index); old = r.position.Load() {
	}
}

// attempt is one RPC to the peer of kctx.
type attempt func(
	ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
) (*errorpb.Error, string, error)

// patience is how long one attempt may take until the client has the answer.
type patience struct {
	answer  time.Duration
	write   bool
	doubled int
}

// longer is the patience of the attempt after one that ran out of time: what is only slow gets
// through at last, instead of being begun anew again and again.
func (p patience) longer() patience {
	if p.doubled++; p.doubled <= 3 {
		p.answer *= 2
	}
	return p
}

// slowBytes are expected to be written in one AttemptTimeout by each of many writers.
const slowBytes = 256 << 10

// writing is the patience of a write.
func (c *Client) writing(size int) patience {
	return patience{answer: c.opts.AttemptTimeout * time.Duration(1+size/slowBytes), write: true}
}

// writeOp is what all attempts at one write share.
type writeOp struct {
	number  uint64
	attempt uint32
	origins []*kvrpcpb.WriteOrigin
}

// identify makes a context one of the next attempt at the write.
func (w *writeOp) identify(c *Client, r *cachedRegion, kctx *kvrpcpb.Context) {
	w.attempt++
	kctx.WriteClient, kctx.WriteNumber, kctx.WriteAttempt = c.ids.client, w.number, w.attempt
	kctx.LogPosition, kctx.WriteOrigins = r.position.Load(), w.origins
}

// unknown records that an attempt may have been carried out. The first position in a region is the
// one to search from.
func (w *writeOp) unknown(kctx *kvrpcpb.Context) {
	for _, o := range w.origins {
		if o.RegionId == kctx.RegionId {
			return
		}
	}
	// The context of the attempt may still be read by those who send it: its slice stays as it is.
	w.origins = append(slices.Clone(w.origins),
		&kvrpcpb.WriteOrigin{RegionId: kctx.RegionId, LogPosition: kctx.LogPosition})
}

// retry runs attempts against the region of key until one answers for good or ctx ends.
func (c *Client) retry(ctx context.Context, key []byte, p patience, do attempt) error {
	if len(key) == 0 {
		return &RequestError{"the key must not be empty"}
	}
	return c.retryWith(ctx, key, p, do)
}

// retryWith is retry for a key that may be empty.
func (c *Client) retryWith(ctx context.Context, key []byte, p patience, do attempt) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.opts.Timeout)
		defer cancel()
	}
	if tctx, end := traced(ctx); end != nil {
		ctx = tctx
		defer end()
	}
	var last, unknown, reason error
	wait := backoffState{}
	var op *writeOp
	if p.write {
		op = &writeOp{number: c.ids.writes.Add(1)}
	}
	for {
		err := c.once(ctx, key, p, op, do, &wait)
		var v *verdict
		if err == nil {
			return nil
		}
		if !errors.As(err, &v) {
			last = err
			v = &verdict{pause: true}
		} else {
			last = v.cause
		}
		if v.unknown && p.write {
			unknown = last
			if c.opts.NoRetryUnknown || v.inexact {
				return &UnknownError{last}
			}
		}
		if v.final {
			return wrapUnknown(unknown, last)
		}
		if v.late {
			p = p.longer()
		}
		if v.pause && !sleep(ctx, wait.next()) || over(ctx) {
			if v.late && reason != nil {
				// The last attempt had no time left, which tells nothing.
				return wrapUnknown(unknown,
					fmt.Errorf("gave up: %w; an attempt before: %v", last, reason))
			}
			return wrapUnknown(unknown, fmt.Errorf("gave up: %w", last))
		}
		if !v.late && last != nil {
			reason = last
		}
	}
}

// over tells whether ctx has ended, or is about to: attempts end by the clock, ctx a moment later
// by its timer.
func over(ctx context.Context) bool {
	d, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(d)
}

func wrapUnknown(unknown, err error) error {
	if unknown != nil {
		return &UnknownError{err}
	}
	return err
}

// verdict says what follows from a failed attempt.
type verdict struct {
	cause   error
	final   bool // do not try again
	pause   bool // back off first
	late    bool // the time of the attempt was too short
	unknown bool // it may have been carried out
	inexact bool // no store can tell whether it was
}

func (v *verdict) Error() string { return v.cause.Error() }

// once is one attempt: route, call, learn from the answer.
func (c *Client) once(
	ctx context.Context, key []byte, p patience, op *writeOp, do attempt, wait *backoffState,
) error {
	r, store, forwarded, err := c.find(ctx, key)
	if err != nil {
		return err
	}
	defer store.done()
	actx, cancel := c.bound(ctx, p.answer)
	defer cancel()
	kctx := &kvrpcpb.Context{
		RegionId: r.meta.Id, RegionEpoch: r.meta.RegionEpoch, Peer: r.leader,
		ClusterId: c.clusterID(),
	}
	if op != nil {
		op.identify(c, r, kctx)
	}
	regionErr, msg, err := do(actx, store.TinyKvClient, kctx, r)
	switch {
	case err != nil:
		store.avoid()
		if !forwarded {
			c.pool.lost(r.leader.StoreId, err)
		}
		return c.outcome(op, kctx, c.onRPCError(r, err))
	case regionErr != nil:
		return c.outcome(op, kctx, c.onRegionError(r, regionErr))
	case msg != "":
		return &verdict{cause: &RequestError{msg}, final: true}
	}
	wait.reset()
	return nil
}

// find is the region of a key and the service of its leader.
func (c *Client) find(
	ctx context.Context, key []byte,
) (r *cachedRegion, store stub, forwarded bool, err error) {
	if t := traceOf(ctx); t != nil {
		defer func(start time.Time) { t.routed(start, r, err) }(time.Now())
	}
	if r, err = c.cache.locate(ctx, key); err != nil {
		return nil, stub{}, false, err
	}
	if r.leader == nil {
		c.cache.doubt(r)
		return r, stub{}, false, ErrNoRegion
	}
	if store, forwarded, err = c.route(ctx, r); err != nil {
		// Another peer may lead, or know who does, while the placement service cannot be asked for
		// this store.
		c.cache.tryNext(r)
	}
	return r, store, forwarded, err
}

// bound limits the time of an attempt. Connections of rpc end calls at their deadlines themselves,
// without a timer for each.
func (c *Client) bound(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if c.opts.Dial != nil {
		return context.WithTimeout(ctx, d)
	}
	return rpc.WithDeadline(ctx, time.Now().Add(d)), func() {}
}

// outcome records an attempt of unknown outcome. A store that knows identities refuses a write
// without a position, so such an attempt was not carried out. Whether a store knows them is not
// known before one has answered.
func (c *Client) outcome(op *writeOp, kctx *kvrpcpb.Context, v *verdict) error {
	if op == nil || !v.unknown || v.inexact {
		return v
	}
	switch {
	case kctx.LogPosition > 0:
		op.unknown(kctx)
	case c.ids.exact.Load():
		v.unknown = false
	default:
		v.inexact = true
	}
	return v
}

// clusterID is the cluster that the stores must belong to; 0 if the placement client does not tell.
func (c *Client) clusterID() uint64 {
	if p, ok := c.pool.placement.(interface{ ClusterID() uint64 }); ok {
		return p.ClusterID()
	}
	return 0
}

// onRPCError: the store did not answer. Unless the request cannot have reached it, its outcome is
// unknown.
func (c *Client) onRPCError(r *cachedRegion, err error) *verdict {
	st := status.Convert(err)
	v := &verdict{cause: fmt.Errorf("store %d: %w", r.leader.StoreId, err), pause: true}
	code := st.Code()
	if rpc.NotConnected(err) {
		code = codes.Unavailable
	}
	switch code {
	case codes.Unavailable:
		// The next peer may lead now.
		c.pool.suspect(r.leader.StoreId)
		c.cache.tryNext(r)
		v.unknown = true
	case codes.DeadlineExceeded, codes.Canceled:
		c.cache.tryNext(r)
		v.unknown, v.pause, v.late = true, false, true
	case codes.Unimplemented, codes.InvalidArgument, codes.FailedPrecondition,
		codes.ResourceExhausted:
		v.final = true
	default:
		v.unknown = true
	}
	v.unknown = v.unknown && !notSent(err)
	return v
}

// onRegionError updates the cache from what the store has said.
func (c *Client) onRegionError(r *cachedRegion, e *errorpb.Error) *verdict {
	v := &verdict{cause: regionError(e)}
	switch {
	case e.NotLeader != nil:
		if hint := e.NotLeader.Leader; hint.GetId() != 0 && hint.Id != r.leader.Id {
			c.cache.setRoute(r, hint, c.pool.wayTo(hint.StoreId, r))
		} else {
			c.cache.tryNext(r)
			v.pause = true
		}
	case e.EpochNotMatch != nil:
		newer := false
		for _, m := range e.EpochNotMatch.CurrentRegions {
			if m != nil && len(m.Peers) > 0 {
				newer = newer || (m.Id == r.meta.Id || r.within(m)) &&
					older(r.meta.RegionEpoch, m.RegionEpoch)
				// The store that answered leads what it was asked for, and most likely a region
				// of which no leader is known.
				answered := r.peerOn(m)
				if m.Id == r.meta.Id {
					c.cache.insert(m, answered)
				} else {
					c.cache.place(m, nil, answered)
				}
			}
		}
		v.pause = !newer // the store lags behind what we know
	case e.StaleCommand != nil:
		v.unknown, v.pause = true, true
	case e.StalePosition != nil:
		v.pause = e.StalePosition.LogPosition <= r.position.Load()
		c.advance(r, e.StalePosition.LogPosition)
	case e.UndeterminedResult != nil:
		v.unknown, v.inexact = true, true
	case e.ClusterNotMatch != nil:
		c.pool.forget(r.leader.StoreId)
		c.cache.doubt(r)
		v.pause = true
	case e.ServerIsBusy != nil:
		v.pause, v.late = true, strings.HasPrefix(e.ServerIsBusy.Reason, deadlineExceeded)
	case e.DiskFull != nil:
		v.pause = true
	case e.RaftEntryTooLarge != nil:
		v.final = true
		v.cause = &RequestError{e.Message}
	case e.RegionNotFound != nil, e.StoreNotMatch != nil, e.KeyNotInRegion != nil:
		if e.StoreNotMatch != nil {
			c.pool.suspect(r.leader.StoreId)
		}
		c.cache.doubt(r)
		v.pause = true
	default:
		v.final = true
		v.cause = &RequestError{e.Message}
	}
	return v
}

// deadlineExceeded begins the reason of a store that is busy because a request waited until its
// deadline.
const deadlineExceeded = "deadline is exceeded"

// backoffState doubles the pause between attempts, with jitter.
type backoffState struct{ n int }

func (b *backoffState) reset() { b.n = 0 }

func (b *backoffState) next() time.Duration {
	d := min(2*time.Millisecond<<min(b.n, 12), 300*time.Millisecond)
	b.n++
	return d/2 + rand.N(d)
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// pool keeps the connections to the stores.
type pool struct {
	placement Placement
	opts      Options
	refreshes sync.WaitGroup // grows under mu and only while not closed
	mu        sync.Mutex
	stores    map[uint64]*storeConn
	stop      context.CancelFunc // ends the refreshes; nil before the first
	ctx       context.Context
	asked     map[uint64]bool // unknown stores that are being asked for
	reach     reach
	closed    bool
}

type storeConn struct {
	addr    string
	conns   []*rpc.Client
	stubs   []tinykvpb.TinyKvClient // of conns
	batches []*batcher
	loads   *fill.Loads // of conns
	checked time.Time
	asking  bool // a refresh of the address is under way
}

// addressTTL is how long a store's address is used without asking again.
const addressTTL = time.Minute

var errClosed = errors.New("client: closed")

// stub is the service of a store over one of the connections, for one request.
type stub struct {
	tinykvpb.TinyKvClient
	loads *fill.Loads // nil without connections of our own
	conn  int
}

// done must be called when the request has ended.
func (s stub) done() {
	if s.loads != nil {
		s.loads.Done(s.conn)
	}
}

// avoid says that the request failed without an answer.
func (s stub) avoid() {
	if s.loads != nil {
		s.loads.Avoid(s.conn)
	}
}

func (p *pool) stub(ctx context.Context, storeID uint64) (stub, error) {
	if p.opts.Dial != nil {
		c, err := p.opts.Dial(ctx, storeID)
		return stub{TinyKvClient: c}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return stub{}, errClosed
	}
	s := p.stores[storeID]
	if s == nil {
		p.mu.Unlock()
		st, err := p.placement.GetStore(ctx, storeID)
		p.mu.Lock()
		if err != nil {
			return stub{}, fmt.Errorf("find store %d: %w", storeID, err)
		}
		if s, err = p.setLocked(storeID, p.address(st)); err != nil {
			return stub{}, err
		}
	} else if time.Since(s.checked) > addressTTL && !s.asking {
		s.asking, s.checked = true, time.Now()
		p.refreshLocked(storeID, s)
	}
	i := s.loads.Take()
	out := stub{TinyKvClient: s.stubs[i], loads: s.loads, conn: i}
	if t := traceOf(ctx); t != nil {
		out.TinyKvClient = tracedStub(s.conns[i], t, storeID, s.addr)
	} else if !p.opts.Unary {
		out.TinyKvClient = batchStub{TinyKvClient: s.stubs[i], b: s.batches[i]}
	}
	return out, nil
}

// setLocked takes in a store's address.
func (p *pool) setLocked(storeID uint64, addr string) (*storeConn, error) {
	if p.closed {
		return nil, errClosed
	}
	s := p.stores[storeID]
	if s == nil || s.addr != addr {
		if addr == "" {
			return nil, errors.New("client: store without an address")
		}
		n := p.dial(addr)
		if s != nil {
			s.close()
		}
		s = n
		p.stores[storeID] = s
	}
	s.checked = time.Now()
	return s, nil
}

// learn asks for the addresses of stores that are not known yet, on the side: when the placement
// service cannot be asked any more, a region's other peers can still be found.
func (p *pool) learn(peers []*metapb.Peer) {
	if p.opts.Dial != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range peers {
		if !p.closed && p.stores[q.StoreId] == nil && !p.asked[q.StoreId] {
			if p.asked == nil {
				p.asked = map[uint64]bool{}
			}
			p.asked[q.StoreId] = true
			p.refreshLocked(q.StoreId, nil)
		}
	}
}

// forget drops a store whose address belongs to another cluster: the next use asks for the address
// again.
func (p *pool) forget(storeID uint64) {
	p.mu.Lock()
	s := p.stores[storeID]
	delete(p.stores, storeID)
	p.mu.Unlock()
	if s != nil {
		s.close()
	}
}

// beginLocked makes the context of what runs on the side.
func (p *pool) beginLocked() {
	if p.stop == nil {
		p.ctx, p.stop = context.WithCancel(context.Background())
	}
}

// refreshLocked asks for a store's address on the side: reads and writes must not wait for the
// placement service when they know where to go. A store is asked for once at a time: while nobody
// answers, each failed request would add another question. s is nil if the store is not known yet.
func (p *pool) refreshLocked(storeID uint64, s *storeConn) {
	p.beginLocked()
	p.refreshes.Add(1)
	go func() { // ends with close or after the timeout
		defer p.refreshes.Done()
		ctx, cancel := context.WithTimeout(p.ctx, p.opts.Timeout)
		defer cancel()
		st, err := p.placement.GetStore(ctx, storeID)
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.asked, storeID); s != nil {
			s.asking = false
		}
		if err == nil {
			_, _ = p.setLocked(storeID, p.address(st)) // without an address the old one stays
		}
	}()
}

// address is where a store is reached.
func (p *pool) address(st *metapb.Store) string {
	return security.ServiceAddress(st, p.opts.Identity != nil || p.opts.TLS != nil)
}

// dialer makes connections to stores.
func (p *pool) dialer() security.Dialer {
	secure := p.opts.TLS
	switch {
	case p.opts.Identity != nil:
		return security.DialService(nil, p.opts.Identity.Client)
	case secure == nil:
		return security.DialService(nil, nil)
	}
	return security.DialService(nil, func(protocols ...string) *tls.Config {
		cfg := secure.Clone()
		cfg.NextProtos = protocols
		return cfg
	})
}

func (p *pool) dial(addr string) *storeConn {
	s := &storeConn{addr: addr, loads: fill.New(p.opts.Conns)}
	for range p.opts.Conns {
		conn := rpc.New(addr, rpc.Options{
			MaxRecv: p.opts.MaxMessage, MaxSend: p.opts.MaxMessage, Checksum: true,
			Dial:               p.dialer(),
			UnaryInterceptors:  p.opts.UnaryInterceptors,
			StreamInterceptors: p.opts.StreamInterceptors,
		})
		s.conns = append(s.conns, conn)
		s.stubs = append(s.stubs, tinykvpb.NewTinyKvClient(conn))
		s.batches = append(s.batches, newBatcher(conn))
	}
	return s
}

// suspect makes the next use ask for the store's address again.
func (p *pool) suspect(storeID uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.stores[storeID]; s != nil {
		s.checked = time.Time{}
	}
}

func (s *storeConn) close() {
	for _, b := range s.batches {
		b.close()
	}
	for _, c := range s.conns {
		_ = c.Close()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.stores {
		s.close()
	}
	if p.stop != nil {
		p.stop()
	}
	p.mu.Unlock()
	p.refreshes.Wait()
}
