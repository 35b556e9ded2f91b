// Package freeport finds ports for servers whose addresses have to be known before they start:
// members of a placement service that name each other, processes that are restarted at their
// address.
//
// A port that the system chooses (port 0) does not fit these: it lies among those that the system
// gives to outgoing connections, and one of these may have it by the time that the server listens.
// Ports of this package lie below them. A process that uses the package has blocks of ports to
// itself, so no other one takes the port of a server that is down for a moment.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The range of the ports: above those of common services, below 32768, where Linux's ports of
// outgoing connections begin by default.
const (
	low  = 10_000
	high = 32_000
	// block is how many ports a process takes at a time.
	block = 200
	// maxBlocks is how many a process takes. Then it returns its ports again.
	maxBlocks = 20
)

// own are the blocks of this process.
var own pool

// pool gives out the ports of its blocks. A block belongs to the pool that holds the UDP port with
// the number of its first port; that is given back when the process ends.
type pool struct {
	mu     sync.Mutex
	blocks []net.PacketConn
	// ports are those that were not returned yet, known all that were.
	ports, known []int
}

// Find returns n different ports of the loopback interface that nothing listens on at the moment.
// It returns each port once in the life of the process, until it has taken maxBlocks blocks. The
// error says that no port of the range is free. Safe for concurrent use.
func Find(n int) ([]int, error) { return own.find(n) }

func (p *pool) find(n int) ([]int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []int
	for tries := 0; len(found) < n; tries++ {
		if tries > high-low {
			return nil, fmt.Errorf("find %d free ports in [%d, %d): none is free", n, low, high)
		}
		if len(p.ports) == 0 {
			p.moreLocked()
			continue
		}
		if port := p.nextLocked(); isFree(port) {
			found = append(found, port)
		} // else it is of a process that does not know of blocks
	}
	return found, nil
}

func (p *pool) nextLocked() int {
	port := p.ports[0]
	p.ports = p.ports[1:]
	p.known = append(p.known, port)
	return port
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", Addr(port)) //nolint:noctx // closed at once
	return err == nil && l.Close() == nil
}

// Run returns the first of n ports that follow one another, as Find returns them; n is at most 200.
func Run(n int) (first int, err error) { return own.run(n) }

func (p *pool) run(n int) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > block {
		return 0, fmt.Errorf("find %d ports that follow one another: %d is the most", n, block)
	}
	var found []int
	for tries := 0; len(found) < n; tries++ {
		if tries > high-low {
			return 0, fmt.Errorf("no %d ports that follow one another are free", n)
		}
		if len(p.ports) == 0 {
			p.moreLocked()
			continue
		}
		port := p.nextLocked()
		switch {
		case !isFree(port):
			found = nil
		case len(found) > 0 && port != found[len(found)-1]+1:
			found = []int{port}
		default:
			found = append(found, port)
		}
	}
	return found[0], nil
}

// moreLocked takes another block, or makes the pool return its ports again.
func (p *pool) moreLocked() {
	if len(p.blocks) < maxBlocks {
		for _, i := range rand.Perm((high - low) / block) {
			first := low + i*block
			c, err := net.ListenPacket("udp", Addr(first)) //nolint:noctx // for the process's life
			if err != nil {
				continue
			}
			p.blocks = append(p.blocks, c)
			for port := first; port < first+block; port++ {
				p.ports = append(p.ports, port)
			}
			return
		}
	}
	p.ports, p.known = p.known, nil
}

// closeAll gives the blocks back.
func (p *pool) closeAll() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, c := range p.blocks {
		errs = append(errs, c.Close())
	}
	p.blocks, p.ports, p.known = nil, nil, nil
	return errors.Join(errs...)
}

// Addr is the address of a port of the loopback interface.
func Addr(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// Addrs returns n addresses of the loopback interface with ports as by Find.
func Addrs(n int) ([]string, error) {
	ports, err := Find(n)
	var addrs []string
	for _, port := range ports {
		addrs = append(addrs, Addr(port))
	}
	return addrs, err
}
