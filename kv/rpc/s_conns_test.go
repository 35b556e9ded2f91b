package rpc

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// internalPath is a method that tests declare to be one between stores.
const internalPath = streamPath

func startInternal(t *testing.T, o Options) (*Server, string) {
	return startWith(t, o, func(s *Server) {
		tinykvpb.RegisterTinyKvServer(s, &kv{})
		s.Internal(internalPath)
	})
}

// stats waits until the server's figures are as they should be.
func stats(t *testing.T, s *Server, ok func(st Stats) bool) {
	t.Helper()
	require.Eventually(t, func() bool { return ok(connStats(s)) }, patience, time.Millisecond)
}

// connStats are the figures of connections.
func connStats(s *Server) Stats {
	st := s.Stats()
	st.Calls = 0
	return st
}

// goesAway expects that the server ends the connection with a GOAWAY that says so.
func goesAway(r *raw, code http2.ErrCode) {
	r.t.Helper()
	f := r.until("a GOAWAY", func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok }).(*http2.GoAwayFrame)
	require.Equal(r.t, code, f.ErrCode)
	require.Contains(r.t, string(f.DebugData()), "too many connections")
}

// TestIdleConnectionsAreShed: when there is no room, the connection goes that is silent for the longest time, those with
// calls stay, and the new one works.
func TestIdleConnectionsAreShed(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 16}) // 14 for clients
	busy := greet(t, addr)
	busy.open(1, getPath, false) // a call that goes on
	busy.sync()
	old := greet(t, addr)
	old.sync()
	for range 12 {
		greet(t, addr).sync()
	}
	require.Equal(t, Stats{Conns: 14}, connStats(s))
	late := greet(t, addr)
	late.works(1, "k")
	goesAway(old, http2.ErrCodeNo)
	require.Equal(t, Stats{Conns: 14, ConnsShed: 1}, connStats(s))
	busy.data(1, message5([]byte("b")), true)
	require.Equal(t, "b", string(busy.answer(1).value))
}

// TestSilentBeforeQuiet: a connection that was in use since the last look outlives one that was not, though it is older.
func TestSilentBeforeQuiet(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 4, MaxConnsPerHost: 4}) // 3 for clients
	first, second, third := greet(t, addr), greet(t, addr), greet(t, addr)
	for i, r := range []*raw{first, second, third} {
		r.works(1, string(rune('a'+i)))
	}
	look := func(now time.Time) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lookLocked(now)
	}
	now := time.Now()
	look(now)
	first.works(3, "again")
	third.works(3, "again")
	look(now.Add(time.Second))
	greet(t, addr).works(1, "k")
	goesAway(second, http2.ErrCodeNo)
	first.works(5, "lives")
	third.works(5, "lives")
}

// TestConnectionsPerHost: a host at its limit loses a connection of its own, not one of others.
func TestConnectionsPerHost(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.2:0"); err != nil {
		t.Skip("one loopback address only")
	} else {
		_ = l.Close()
	}
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 2})
	from := func(ip string) *raw {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		nc, err := d.DialContext(t.Context(), "tcp", addr)
		require.NoError(t, err)
		r := newRaw(t, nc)
		r.write([]byte(preface))
		require.NoError(t, r.fr.WriteSettings())
		r.sync()
		return r
	}
	other := from("127.0.0.2")
	one := from("127.0.0.1")
	from("127.0.0.1")
	from("127.0.0.1").works(1, "k")
	goesAway(one, http2.ErrCodeNo)
	other.works(1, "k")
	require.Equal(t, Stats{Conns: 3, ConnsShed: 1}, connStats(s))
}

// TestStoresAreNotCutOff: with all connections of clients busy another client is refused, and a store is served. Its
// connection does not count as a client's.
func TestStoresAreNotCutOff(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 16})
	var clients []*raw
	for range 14 {
		r := greet(t, addr)
		r.open(1, getPath, false)
		r.sync()
		clients = append(clients, r)
	}
	refused := greet(t, addr)
	refused.sync()
	refused.open(1, getPath, false)
	goesAway(refused, http2.ErrCodeEnhanceYourCalm)
	stats(t, s, func(st Stats) bool { return st == Stats{Conns: 14, ConnsRefused: 1} })

	store := greet(t, addr)
	store.open(1, internalPath, false)
	store.data(1, message5([]byte("raft")), false)
	store.until("an echo", func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
	require.Equal(t, Stats{Conns: 14, Internal: 1, ConnsRefused: 1}, connStats(s))
	store.works(3, "any call") // it has proved what it is

	// Two that do not say what they are have the room that is left; the next takes the place of the older one.
	mute := greet(t, addr)
	mute.sync()
	greet(t, addr)
	stats(t, s, func(st Stats) bool { return st.Trial == 1 && st.ConnsShed == 1 })
	goesAway(mute, http2.ErrCodeNo)
	require.NoError(t, clients[0].nc.Close())
	stats(t, s, func(st Stats) bool { return st.Conns == 13 })
	greet(t, addr).works(1, "k")
}

// TestInternalConnectionsAreBounded: a client that poses as a store does not get around the limit.
func TestInternalConnectionsAreBounded(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 16, MaxConnsPerHost: 16})
	for range 16 {
		r := greet(t, addr)
		r.open(1, internalPath, false)
		r.sync()
	}
	require.Equal(t, Stats{Conns: 14, Internal: 2}, connStats(s))
	r := dialRaw(t, addr)
	r.closed()
	stats(t, s, func(st Stats) bool { return st.ConnsRefused == 1 })
}

// TestClientOutlivesShedding: a client whose connection was shed makes another one, and a get
// that it sends again succeeds.
func TestClientOutlivesShedding(t *testing.T) {
	s, addr := startInternal(t, Options{MaxConns: 4, MaxConnsPerHost: 4})
	c := NewClient(addr, ClientOptions{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond})
	t.Cleanup(func() { _ = c.Close() })
	k := tinykvpb.NewTinyKvClient(c)
	for i := range 10 {
		require.Eventually(t, func() bool {
			_, err := k.RawGet(within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")})
			require.Contains(t, []codes.Code{codes.OK, codes.Unavailable}, status.Code(err), i)
			return err == nil
		}, patience, time.Millisecond)
		for range 3 {
			greet(t, addr).sync()
		}
	}
	require.GreaterOrEqual(t, s.Stats().ConnsShed, uint64(20))
}
