package server

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// internalPath is a method that tests declare to be one between stores.
const internalPath = rpctest.StreamPath

func startInternal(t *testing.T, o Options) (*Server, string) {
	return startWith(t, o, func(s *Server) {
		tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{})
		s.Internal(internalPath)
	})
}

// stats waits until the server's figures are as they should be.
func stats(t *testing.T, s *Server, ok func(st Stats) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		return ok(connStats(s))
	}, rpctest.Patience, time.Millisecond)
}

// connStats are the figures of connections.
func connStats(s *Server) Stats {
	st := s.Stats()
	st.Calls = 0
	return st
}

// goesAway expects that the server ends the connection with a GOAWAY that says so.
func goesAway(r *rpctest.Raw, code http2.ErrCode) {
	r.T.Helper()
	f := r.Until("a GOAWAY", func(f http2.Frame) bool {
		_, ok := f.(*http2.GoAwayFrame)
		return ok
	}).(*http2.GoAwayFrame)
	require.Equal(r.T, code, f.ErrCode)
	require.Contains(r.T, string(f.DebugData()), "too many connections")
}

// TestIdleConnectionsAreShed: when there is no room, the connection goes that is silent for the
// longest time, those with calls stay, and the new one works.
func TestIdleConnectionsAreShed(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 16}) // 14 for clients
	busy := rpctest.Greet(t, addr)
	busy.Open(1, rpctest.GetPath, false) // a call that goes on
	busy.Sync()
	old := rpctest.Greet(t, addr)
	old.Sync()
	for range 12 {
		rpctest.Greet(t, addr).Sync()
	}
	require.Equal(t, Stats{Conns: 14}, connStats(s))
	late := rpctest.Greet(t, addr)
	late.Works(1, "k")
	goesAway(old, http2.ErrCodeNo)
	require.Equal(t, Stats{Conns: 14, ConnsShed: 1}, connStats(s))
	busy.Data(1, rpctest.EncodedGet([]byte("b")), true)
	require.Equal(t, "b", string(busy.Answer(1).Value))
}

// TestSilentBeforeQuiet: a connection that was in use since the last look outlives one that was
// not, though it is older.
func TestSilentBeforeQuiet(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 4, MaxConnsPerHost: 4}) // 3 for clients
	first, second, third := rpctest.Greet(t, addr), rpctest.Greet(t, addr), rpctest.Greet(t, addr)
	for i, r := range []*rpctest.Raw{first, second, third} {
		r.Works(1, string(rune('a'+i)))
	}
	look := func(now time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lookLocked(now)
	}
	now := time.Now()
	look(now)
	first.Works(3, "again")
	third.Works(3, "again")
	look(now.Add(time.Second))
	rpctest.Greet(t, addr).Works(1, "k")
	goesAway(second, http2.ErrCodeNo)
	first.Works(5, "lives")
	third.Works(5, "lives")
}

// TestConnectionsPerHost: a host at its limit loses a connection of its own, not one of others.
func TestConnectionsPerHost(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.2:0"); err != nil {
		t.Skip("one loopback address only")
	} else {
		_ = l.Close()
	}
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 2})
	from := func(ip string) *rpctest.Raw {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		nc, err := d.DialContext(t.Context(), "tcp", addr)
		require.NoError(t, err)
		r := rpctest.NewRaw(t, nc)
		r.Write([]byte(rpc.Preface))
		require.NoError(t, r.Framer.WriteSettings())
		r.Sync()
		return r
	}
	other := from("127.0.0.2")
	one := from("127.0.0.1")
	from("127.0.0.1")
	from("127.0.0.1").Works(1, "k")
	goesAway(one, http2.ErrCodeNo)
	other.Works(1, "k")
	require.Equal(t, Stats{Conns: 3, ConnsShed: 1}, connStats(s))
}

// TestStoresAreNotCutOff: with all connections of clients busy another client is refused, and a
// store is served. Its connection does not count as a client's.
func TestStoresAreNotCutOff(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 16})
	var clients []*rpctest.Raw
	for range 14 {
		r := rpctest.Greet(t, addr)
		r.Open(1, rpctest.GetPath, false)
		r.Sync()
		clients = append(clients, r)
	}
	refused := rpctest.Greet(t, addr)
	refused.Sync()
	refused.Open(1, rpctest.GetPath, false)
	goesAway(refused, http2.ErrCodeEnhanceYourCalm)
	stats(t, s, func(st Stats) bool { return st == Stats{Conns: 14, ConnsRefused: 1} })

	store := rpctest.Greet(t, addr)
	store.Open(1, internalPath, false)
	store.Data(1, rpctest.EncodedGet([]byte("raft")), false)
	store.Until("an echo", func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
	require.Equal(t, Stats{Conns: 14, Internal: 1, ConnsRefused: 1}, connStats(s))
	store.Works(3, "any call") // it has proved what it is

	// Two that do not say what they are have the room that is left; the next takes the place of the
	// older one.
	mute := rpctest.Greet(t, addr)
	mute.Sync()
	rpctest.Greet(t, addr)
	stats(t, s, func(st Stats) bool { return st.Trial == 1 && st.ConnsShed == 1 })
	goesAway(mute, http2.ErrCodeNo)
	require.NoError(t, clients[0].Conn.Close())
	stats(t, s, func(st Stats) bool { return st.Conns == 13 })
	rpctest.Greet(t, addr).Works(1, "k")
}

// TestInternalConnectionsAreBounded: a client that poses as a store does not get around the limit.
func TestInternalConnectionsAreBounded(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 16})
	for range 16 {
		r := rpctest.Greet(t, addr)
		r.Open(1, internalPath, false)
		r.Sync()
	}
	require.Equal(t, Stats{Conns: 14, Internal: 2}, connStats(s))
	r := rpctest.DialRaw(t, addr)
	r.Closed()
	stats(t, s, func(st Stats) bool { return st.ConnsRefused == 1 })
}

// TestClientOutlivesShedding: a client whose connection was shed makes another one, and a get
// that it sends again succeeds.
func TestClientOutlivesShedding(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 4, MaxConnsPerHost: 4})
	c := client.New(addr,
		client.Options{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond})
	t.Cleanup(func() { _ = c.Close() })
	k := tinykvpb.NewTinyKvClient(c)
	for i := range 10 {
		require.Eventually(t, func() bool {
			_, err := k.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")})
			require.Contains(t, []codes.Code{codes.OK, codes.Unavailable}, status.Code(err), i)
			return err == nil
		}, rpctest.Patience, time.Millisecond)
		for range 3 {
			rpctest.Greet(t, addr).Sync()
		}
	}
	require.GreaterOrEqual(t, s.Stats().ConnsShed, uint64(20))
}

// TestSlowHandshakesMakeRoom: connections that have not greeted are bounded. Those of the moment
// stay; one that takes its time ends for a new one; one that has greeted is not among them.
func TestSlowHandshakesMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxHandshakes: 4, KeepAlive: time.Hour})
		tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{})
		l := bufconn.Listen(1 << 16)
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		ended := func(nc net.Conn) bool {
			_, err := io.Copy(io.Discard, nc)
			return err == nil
		}
		come := func(says string) net.Conn {
			nc, err := l.Dial()
			require.NoError(t, err)
			_, err = io.WriteString(nc, says)
			require.NoError(t, err)
			synctest.Wait()
			return nc
		}
		greeted := come(rpc.Preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		silent := []net.Conn{come("")}
		time.Sleep(time.Millisecond)
		for range 3 {
			silent = append(silent, come("PRI"))
		}
		require.Equal(t, Stats{Conns: 5, Greeting: 4}, connStats(s))
		nc, err := l.Dial() // of which nothing can be written, perhaps
		require.NoError(t, err)
		require.True(t, ended(nc), "all of them have come just now")
		require.Equal(t, Stats{Conns: 5, Greeting: 4, ConnsRefused: 1}, connStats(s))
		time.Sleep(slowAfter - time.Millisecond)
		late := come("")
		require.Equal(t, Stats{Conns: 5, Greeting: 4, ConnsRefused: 1, SlowHandshakes: 1},
			connStats(s))
		require.True(t, ended(silent[0]))
		time.Sleep(10 * time.Second) // the time of a handshake
		synctest.Wait()
		require.Equal(t, Stats{Conns: 1, ConnsRefused: 1, SlowHandshakes: 1}, connStats(s))
		for _, nc := range append(silent, late, greeted) {
			_ = nc.Close()
		}
		s.Stop()
		require.ErrorIs(t, <-served, ErrStopped)
	})
}
