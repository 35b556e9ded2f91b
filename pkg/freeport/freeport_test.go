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
			require.NoError(t, err)
			require.NoError(t, l.Close())
		}
	}
}

// TestPoolsShareNothing has several pools, as of several processes, find ports that are not
// listened on: none is found twice, as long as its pool is there. Taken ports are left out.
func TestPoolsShareNothing(t *testing.T) {
	seen := map[int]bool{}
	for range 5 {
		p := &pool{}
		t.Cleanup(func() { require.NoError(t, p.closeAll()) })
		first, err := p.find(1)
		require.NoError(t, err)
		l, err := net.Listen("tcp", Addr(first[0]+1)) // the next of the block
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, l.Close()) })
		ports, err := p.find(2 * block)
		require.NoError(t, err)
		require.NotContains(t, ports, first[0]+1)
		for _, port := range append(ports, first...) {
			require.False(t, seen[port], "port %d twice", port)
			seen[port] = true
		}
	}
}

// TestRun returns ports that follow one another, none of which comes again.
func TestRun(t *testing.T) {
	p := &pool{}
	defer func() { require.NoError(t, p.closeAll()) }()
	one, err := p.find(1)
	require.NoError(t, err)
	l, err := net.Listen("tcp", Addr(one[0]+60))
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	seen := map[int]bool{one[0]: true, one[0] + 60: true}
	for range 5 {
		first, err := p.run(110)
		require.NoError(t, err)
		for port := first; port < first+110; port++ {
			require.False(t, seen[port], "port %d", port)
			seen[port] = true
		}
	}
	_, err = p.run(block + 1)
	require.Error(t, err)
}

// TestPortsComeAgain once the pool has all the blocks that it may have.
func TestPortsComeAgain(t *testing.T) {
	p := &pool{}
	defer func() { require.NoError(t, p.closeAll()) }()
	_, err := p.find(maxBlocks*block - block/2)
	require.NoError(t, err)
	ports, err := p.find(block)
	require.NoError(t, err)
	require.Len(t, ports, block)
	require.Len(t, p.blocks, maxBlocks)
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
