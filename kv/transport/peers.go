package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Peers are connections to other stores for requests of clients that cannot reach those themselves.
// Raft messages do not share them. A connection is made when it is needed, and closed with a later
// call once nobody has needed it for a while. Safe for concurrent use.
type Peers struct {
	t  *Transport
	mu struct {
		sync.Mutex
		conns  map[uint64]*peerConn
		closed bool
	}
}

type peerConn struct {
	addr           string
	conn           *rpc.Client
	used, resolved time.Time
}

const (
	// peerIdle is how long an unused connection stays.
	peerIdle = 5 * time.Minute
	// peerAddressTTL is how long an address is used without asking again.
	peerAddressTTL = 5 * time.Second
)

// Peers makes the connections' owner; the caller closes it.
func (t *Transport) Peers() *Peers {
	p := &Peers{t: t}
	p.mu.conns = map[uint64]*peerConn{}
	return p
}

// Peer is the service of another store. It fails if the store's address is not known.
func (p *Peers) Peer(ctx context.Context, storeID uint64) (tinykvpb.TinyKvClient, error) {
	if c, err := p.known(storeID); c != nil || err != nil {
		return c, err
	}
	addr, err := p.t.opts.Resolver(ctx, storeID)
	if err != nil {
		return nil, fmt.Errorf("address of store %d: %w", storeID, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, errPeersClosed
	}
	now := time.Now()
	for id, c := range p.mu.conns {
		if id == storeID && c.addr != addr || now.Sub(c.used) > peerIdle {
			delete(p.mu.conns, id)
			_ = c.conn.Close()
		}
	}
	c := p.mu.conns[storeID]
	if c == nil {
		c = &peerConn{addr: addr, conn: p.t.dial(addr)}
		p.mu.conns[storeID] = c
	}
	c.used, c.resolved = now, now
	return tinykvpb.NewTinyKvClient(c.conn), nil
}

var errPeersClosed = errors.New("transport: closed")

// known is the service of a store whose address was asked for lately, nil if it was not.
func (p *Peers) known(storeID uint64) (tinykvpb.TinyKvClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, errPeersClosed
	}
	c, now := p.mu.conns[storeID], time.Now()
	if c == nil || now.Sub(c.resolved) > peerAddressTTL {
		return nil, nil
	}
	c.used = now
	return tinykvpb.NewTinyKvClient(c.conn), nil
}

// Close ends the connections. Idempotent.
func (p *Peers) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.closed = true
	for _, c := range p.mu.conns {
		_ = c.conn.Close()
	}
	clear(p.mu.conns)
}
