package freeport

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFind returns ports that can be listened on, each once, below those of outgoing connections.
func TestFind(t *testing.T) {
	seen := map[int]bool{}
	for range 20 {
		ports, err := Find(25)
		require.NoError(t, err)
		require.Len(t, ports, 25)
		for _, p := range ports {
			require.False(t, seen[p], "port %d twice", p)
			seen[p] = true
			require.Less(t, p, 32_768)
			l, err := net.Listen("tcp", Addr(p))
			if err != nil {
				continue // taken by another process since
			}
			require.NoError(t, l.Close())
		}
	}
}

// TestFindSkipsTaken does not return a port that is listened on.
func TestFindSkipsTaken(t *testing.T) {
	ports, err := Find(200)
	require.NoError(t, err)
	taken := map[int]bool{}
	for _, p := range ports {
		if l, err := net.Listen("tcp", Addr(p)); err == nil {
			t.Cleanup(func() { _ = l.Close() })
			taken[p] = true
		}
	}
	given.Lock()
	given.ports = nil // as another process
	given.Unlock()
	for range 50 {
		ports, err := Find(100)
		require.NoError(t, err)
		for _, p := range ports {
			require.False(t, taken[p], "port %d is taken", p)
		}
	}
}

// TestAddrs are addresses that net understands.
func TestAddrs(t *testing.T) {
	addrs, err := Addrs(3)
	require.NoError(t, err)
	require.Len(t, addrs, 3)
	for _, a := range addrs {
		_, err := net.ResolveTCPAddr("tcp", a)
		require.NoError(t, err)
	}
}
