// Package netproxy puts a TCP proxy in front of every process of a cluster, so that a test can cut,
// hold, delay and reset the connections between any two of them, in either direction, without
// privileges.
//
// Who has dialed is found from the socket tables under /proc, so the processes need to know
// nothing: they only need the proxies' addresses instead of each other's. Linux only.
package netproxy

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Rule is what happens to bytes on their way from one process to another. The zero Rule lets them
// pass.
type Rule struct {
	// Hold keeps bytes back until the rule changes, in order and without a sign: a network that is
	// silent, not one that refuses. What was held arrives late.
	Hold bool
	// Cut resets connections between the two, from either side, and refuses new ones.
	Cut bool
	// Flip is the probability with which one bit of a piece of data flips.
	Flip float64
	// Delay is added to each piece of data; the throughput stays.
	Delay time.Duration
}

// Outside is the name of a process that the network was not told of, such as the test itself.
const Outside = "outside"

type direction struct{ from, to string }

// Network owns the proxies. Its methods may be called by any goroutine.
type Network struct {
	pid func(name string) int // 0: does not run

	mu      sync.Mutex
	changed chan struct{} // closed when rules change
	names   []string
	rules   map[direction]Rule
	links   map[*link]struct{}
	proxies []net.Listener
	closed  bool
	wg      sync.WaitGroup

	flipped              int64
	held, reset, delayed int64 // pieces and connections that a rule has met
}

// link is one proxied connection: a belongs to the dialer, b to the target.
type link struct {
	from, to string
	a, b     net.Conn
	once     sync.Once
}

// New makes a network; pid tells the process id that a name has at the moment.
func New(pid func(name string) int) *Network {
	return &Network{
		pid: pid, changed: make(chan struct{}), rules: map[direction]Rule{},
		links: map[*link]struct{}{},
	}
}

// Listen opens a proxy in front of what name serves at target and returns its address.
func (n *Network) Listen(name, target string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.proxies = append(n.proxies, l)
	known := false
	for _, other := range n.names {
		known = known || other == name
	}
	if !known {
		n.names = append(n.names, name)
	}
	n.wg.Add(1)
	go n.accept(l, name, target) // ends when Close closes the listener
	return l.Addr().String(), nil
}

func (n *Network) accept(l net.Listener, name, target string) {
	defer n.wg.Done()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		n.wg.Add(1)
		go func() { // ends with the connection
			defer n.wg.Done()
			n.serve(conn, name, target)
		}()
	}
}

func (n *Network) serve(a net.Conn, name, target string) {
	from, known := n.owner(a)
	if !known || n.rule(from, name).Cut || n.rule(name, from).Cut {
		if known {
			n.count(&n.reset)
		}
		hangUp(a)
		return
	}
	b, err := net.DialTimeout("tcp", target, time.Second)
	if err != nil {
		hangUp(a)
		return
	}
	k := &link{from: from, to: name, a: a, b: b}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		k.hangUp()
		return
	}
	n.links[k] = struct{}{}
	n.mu.Unlock()
	var pumps sync.WaitGroup
	pumps.Add(2)
	go func() { defer pumps.Done(); n.pump(k, a, b, direction{from, name}) }()
	go func() { defer pumps.Done(); n.pump(k, b, a, direction{name, from}) }()
	pumps.Wait()
	k.hangUp()
	n.mu.Lock()
	delete(n.links, k)
	n.mu.Unlock()
}

// owner tells whose connection this is. A process that died in the very moment is unknown.
func (n *Network) owner(a net.Conn) (string, bool) {
	local, ok := a.LocalAddr().(*net.TCPAddr)
	remote, ok2 := a.RemoteAddr().(*net.TCPAddr)
	if !ok || !ok2 {
		return "", false
	}
	inode := socketInode(remote.Port, local.Port)
	if inode == "" {
		return "", false
	}
	n.mu.Lock()
	names := append([]string{}, n.names...)
	n.mu.Unlock()
	for _, name := range names {
		if pid := n.pid(name); pid != 0 && owns(pid, inode) {
			return name, true
		}
	}
	return Outside, true
}

// piece is data with the time before which it must not be written.
type piece struct {
	data []byte
	at   time.Time
}

// pump copies from src to dst under the rule of its direction.
func (n *Network) pump(k *link, src, dst net.Conn, d direction) {
	pieces := make(chan piece, 256)
	done := make(chan struct{})
	go func() { // ends when pieces is closed, or when writing fails
		defer close(done)
		for p := range pieces {
			if !n.pass(k, d) {
				break
			}
			if wait := time.Until(p.at); wait > 0 {
				n.count(&n.delayed)
				time.Sleep(wait) // the delay is the fault
			}
			if _, err := dst.Write(p.data); err != nil {
				break
			}
		}
		k.hangUp()
		for range pieces { // lets the reader go on to its error
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		c, err := src.Read(buf)
		if c > 0 {
			rule := n.rule(d.from, d.to)
			data := append([]byte{}, buf[:c]...)
			if rule.Flip > 0 && rand.Float64() < rule.Flip {
				data[rand.IntN(c)] ^= 1 << rand.IntN(8)
				n.count(&n.flipped)
			}
			pieces <- piece{data: data, at: time.Now().Add(rule.Delay)}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	<-done
}

// pass waits until bytes may go; false if the connection is to end.
func (n *Network) pass(k *link, d direction) bool {
	met := false
	for {
		n.mu.Lock()
		rule, changed, closed := n.rules[d], n.changed, n.closed
		_, alive := n.links[k]
		if rule.Hold && !met {
			n.held++
			met = true
		}
		n.mu.Unlock()
		if closed || rule.Cut || !alive {
			return false
		}
		if !rule.Hold {
			return true
		}
		<-changed
	}
}

func (n *Network) rule(from, to string) Rule {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rules[direction{from, to}]
}

func (n *Network) count(what *int64) {
	n.mu.Lock()
	*what++
	n.mu.Unlock()
}

// Set makes the rule of the direction from -> to.
func (n *Network) Set(from, to string, r Rule) {
	n.mu.Lock()
	n.rules[direction{from, to}] = r
	var cut []*link
	for k := range n.links {
		if r.Cut && (k.from == from && k.to == to || k.from == to && k.to == from) {
			cut = append(cut, k)
			n.reset++
		}
	}
	n.wake()
	n.mu.Unlock()
	for _, k := range cut {
		k.hangUp()
	}
}

// Heal lifts all rules.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.rules)
	n.wake()
}

// wake must be called with the lock held.
func (n *Network) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Reset breaks all connections that choose picks, once; new ones are let through.
func (n *Network) Reset(choose func(from, to string) bool) {
	n.mu.Lock()
	var cut []*link
	for k := range n.links {
		if choose(k.from, k.to) {
			cut = append(cut, k)
			n.reset++
		}
	}
	n.mu.Unlock()
	for _, k := range cut {
		k.hangUp()
	}
}

// Met counts what rules have met: pieces of data held and delayed, connections reset or refused.
func (n *Network) Met() (held, delayed, reset int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held, n.delayed, n.reset
}

// Flipped counts the bits that rules have flipped.
func (n *Network) Flipped() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.flipped
}

// Close ends all proxies and connections and waits for them.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	clear(n.rules)
	n.wake()
	for _, l := range n.proxies {
		_ = l.Close()
	}
	var open []*link
	for k := range n.links {
		open = append(open, k)
	}
	n.mu.Unlock()
	for _, k := range open {
		k.hangUp()
	}
	n.wg.Wait()
}

func (k *link) hangUp() {
	k.once.Do(func() { hangUp(k.a); hangUp(k.b) })
}

// hangUp closes a connection with a reset, as a broken network would.
func hangUp(c io.Closer) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
