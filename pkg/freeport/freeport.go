// Package freeport finds ports for servers whose addresses have to be known before they start:
// members of a placement service that name each other, processes that are restarted at their
// address.
//
// A port that the system chooses (port 0) does not fit these: it lies among those that the system
// gives to outgoing connections, and one of these may have it by the time that the server listens.
// Ports of this package lie below them.
package freeport

import (
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
)

var given struct {
	sync.Mutex
	ports map[int]bool
}

// Find returns n different ports of the loopback interface that nothing listens on at the moment.
// It returns each port once in the life of the process, until few are left. Another process may
// take a port before its server listens; the choice is random, so that this is rare. The error is
// that of the system when a hundred tries for one port have failed. Safe for concurrent use.
func Find(n int) ([]int, error) {
	given.Lock()
	defer given.Unlock()
	if given.ports == nil || len(given.ports) > (high-low)/2 {
		given.ports = make(map[int]bool)
	}
	var ports []int
	for try := 0; len(ports) < n; try++ {
		port := low + rand.IntN(high-low)
		if given.ports[port] {
			continue
		}
		l, err := net.Listen("tcp", Addr(port)) //nolint:noctx // closed at once
		if err != nil {
			if try < 100*n {
				continue
			}
			return nil, fmt.Errorf("find a free port in [%d, %d): %w", low, high, err)
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		given.ports[port] = true
		ports = append(ports, port)
	}
	return ports, nil
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
