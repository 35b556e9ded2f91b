package embed

import (
	"context"
	"errors"
	"net"
	"sync"
)

// links are the connections that stores have made, so that they can be cut. A connection belongs to
// the store that dialed; who dials is known, and whom, so cutting what is dialed cuts both ways.
type links struct {
	mu struct {
		sync.Mutex
		group    []int // of each store; connections between groups are cut
		isolated []bool
		stores   map[string]int // by address
		conns    map[*link]struct{}
	}
}

// outside is the index of what is no store: the placement service.
const outside = -1

// link is a connection of a store to an address. Whose that is may be known only later: a store is
// dialed as soon as it has registered, which is before it has started.
type link struct {
	net.Conn
	owner *links
	from  int
	addr  string
}

func (l *link) Close() error {
	l.owner.mu.Lock()
	delete(l.owner.mu.conns, l)
	l.owner.mu.Unlock()
	return l.Conn.Close()
}

var errCut = errors.New("embed: the network is cut")

func newLinks(stores int) *links {
	l := new(links)
	l.mu.group, l.mu.isolated = make([]int, stores), make([]bool, stores)
	l.mu.stores, l.mu.conns = map[string]int{}, map[*link]struct{}{}
	return l
}

// learn takes note of a store's address.
func (l *links) learn(addr string, store int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.stores[addr] = store
}

func (l *links) targetLocked(addr string) int {
	if i, ok := l.mu.stores[addr]; ok {
		return i
	}
	return outside
}

// cutLocked tells whether a store may not talk to an address.
func (l *links) cutLocked(from int, addr string) bool {
	to := l.targetLocked(addr)
	if to == outside {
		return l.mu.isolated[from]
	}
	return from != to &&
		(l.mu.isolated[from] || l.mu.isolated[to] || l.mu.group[from] != l.mu.group[to])
}

// dialer makes the connections of a store.
func (l *links) dialer(from int) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		k := &link{Conn: nc, owner: l, from: from, addr: addr}
		cut := l.cutLocked(from, addr)
		if !cut {
			l.mu.conns[k] = struct{}{}
		}
		l.mu.Unlock()
		if cut {
			return nil, errors.Join(errCut, nc.Close())
		}
		return k, nil
	}
}

// change changes the rules and breaks the connections that they cut.
func (l *links) change(rules func()) {
	l.mu.Lock()
	rules()
	var broken []*link
	for k := range l.mu.conns {
		if l.cutLocked(k.from, k.addr) {
			broken = append(broken, k)
		}
	}
	l.mu.Unlock()
	for _, k := range broken {
		_ = k.Close()
	}
}

func (l *links) partition(groups [][]int) {
	l.change(func() {
		clear(l.mu.group)
		for i, g := range groups {
			for _, store := range g {
				l.mu.group[store] = i + 1
			}
		}
	})
}

func (l *links) isolate(store int) { l.change(func() { l.mu.isolated[store] = true }) }

func (l *links) heal() {
	l.change(func() { clear(l.mu.group); clear(l.mu.isolated) })
}
