package netproxy

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echo serves lines back and returns its address.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }() // ends with the connection
		}
	}()
	return l.Addr().String()
}

// self makes a network in which this process is called "me" and the echo server "server".
func self(t *testing.T) (*Network, string) {
	n := New(func(name string) int {
		if name == "me" {
			return os.Getpid()
		}
		return 0
	})
	t.Cleanup(n.Close)
	_, err := n.Listen("me", "127.0.0.1:1")
	require.NoError(t, err)
	addr, err := n.Listen("server", echo(t))
	require.NoError(t, err)
	return n, addr
}

func dial(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c, bufio.NewReader(c)
}

func say(t *testing.T, c net.Conn, r *bufio.Reader, text string) {
	_, err := c.Write([]byte(text + "\n"))
	require.NoError(t, err)
	got, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, text+"\n", got)
}

func TestHeldBytesArriveLateAndInOrder(t *testing.T) {
	for _, way := range [][2]string{{"me", "server"}, {"server", "me"}} {
		n, addr := self(t)
		c, r := dial(t, addr)
		say(t, c, r, "before")
		n.Set(way[0], way[1], Rule{Hold: true})
		_, err := c.Write([]byte("one\ntwo\n"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, err = r.ReadString('\n')
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "held bytes came through")
		require.NoError(t, c.SetReadDeadline(time.Time{}))
		n.Heal()
		for _, want := range []string{"one\n", "two\n"} {
			got, err := r.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		held, _, _ := n.Met()
		require.Positive(t, held)
	}
}

func TestCutResetsAndRefuses(t *testing.T) {
	n, addr := self(t)
	c, r := dial(t, addr)
	say(t, c, r, "before")
	n.Set("server", "me", Rule{Cut: true})
	_, err := r.ReadString('\n')
	require.Error(t, err)
	if c, err := net.Dial("tcp", addr); err == nil { // the reset may come before or after
		_, _ = c.Write([]byte("hello\n"))
		_, err = c.Read(make([]byte, 1))
		require.Error(t, err)
		_ = c.Close()
	}
	n.Heal()
	c, r = dial(t, addr)
	say(t, c, r, "after")
	_, _, reset := n.Met()
	require.GreaterOrEqual(t, reset, int64(2))
}

func TestRulesOfOthersDoNotMatter(t *testing.T) {
	n, addr := self(t)
	n.Set(Outside, "server", Rule{Cut: true})
	c, r := dial(t, addr)
	say(t, c, r, "still here")
}

func TestDelayKeepsOrder(t *testing.T) {
	n, addr := self(t)
	n.Set("me", "server", Rule{Delay: 30 * time.Millisecond})
	c, r := dial(t, addr)
	start := time.Now()
	_, err := c.Write([]byte("a\n"))
	require.NoError(t, err)
	_, err = c.Write([]byte("b\n"))
	require.NoError(t, err)
	for _, want := range []string{"a\n", "b\n"} {
		got, err := r.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.GreaterOrEqual(t, time.Since(start), 30*time.Millisecond)
}

func TestResetBreaksOnce(t *testing.T) {
	n, addr := self(t)
	c, r := dial(t, addr)
	say(t, c, r, "before")
	n.Reset(func(from, to string) bool { return from == "me" && to == "server" })
	_, err := r.ReadString('\n')
	require.Error(t, err)
	c, r = dial(t, addr)
	say(t, c, r, "after")
}

func TestCloseEndsHeldConnections(t *testing.T) {
	n, addr := self(t)
	c, r := dial(t, addr)
	say(t, c, r, "before")
	n.Set("me", "server", Rule{Hold: true})
	_, err := c.Write([]byte("never\n"))
	require.NoError(t, err)
	n.Close()
	_, err = r.ReadString('\n')
	require.Error(t, err)
}

func TestSocketTable(t *testing.T) {
	table := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0
   2: 0100007F:C350 0100007F:1F91 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0
`
	find := func(local, remote int) string {
		return scanTable(bufio.NewScanner(strings.NewReader(table)), local, remote)
	}
	require.Equal(t, "222", find(50000, 8080))
	require.Equal(t, "111", find(8080, 50000))
	require.Empty(t, find(50000, 8081), "a closed socket belongs to nobody")
	require.Empty(t, find(1, 2))
}
