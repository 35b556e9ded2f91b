package callroom

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"pgregory.net/rapid"
)

// feedConn gives what is written to it to the server, byte for byte.
type feedConn struct {
	net.Conn
	in bytes.Buffer
}

func (c *feedConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *feedConn) Write(p []byte) (int, error) { return len(p), nil }
func (c *feedConn) Close() error                { return nil }

// side is one connection of a test: client and server write frames in any parts.
type side struct {
	*Conn
	t              require.TestingT
	raw            *feedConn
	client, server *http2.Framer
	closed         bool
}

// inParts writes what it gets in parts of n bytes.
type inParts struct {
	n  func() int
	to func([]byte)
}

func (w inParts) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(w.n(), len(rest))
		w.to(rest[:n])
		rest = rest[n:]
	}
	return len(p), nil
}

func dial(t require.TestingT, r *Room, host string, parts func() int) *side {
	s := &side{t: t, raw: &feedConn{}}
	s.Conn = r.Watch(s.raw, host, func() error { s.closed = true; return nil })
	arrive := inParts{parts, func(p []byte) {
		s.raw.in.Write(p)
		_, err := io.ReadFull(s.Conn, make([]byte, len(p)))
		require.NoError(t, err)
	}}
	_, err := io.WriteString(arrive, http2.ClientPreface)
	require.NoError(t, err)
	s.client = http2.NewFramer(arrive, nil)
	s.server = http2.NewFramer(inParts{parts, func(p []byte) { _, _ = s.Write(p) }}, nil)
	require.NoError(t, s.client.WriteSettings())
	require.NoError(t, s.server.WriteSettings())
	return s
}

func (s *side) begin(stream uint32, headers int) {
	require.NoError(s.t, s.client.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: make([]byte, headers), EndHeaders: true,
	}))
}

func (s *side) end(stream uint32) {
	require.NoError(s.t, s.server.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: []byte{1}, EndHeaders: true, EndStream: true,
	}))
}

// message is a message of gRPC of n bytes.
func message(n int) []byte {
	return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)},
		make([]byte, n)...)
}

// TestCharges: what each part of a call is charged with, and what takes it back, however the bytes
// are cut into parts.
func TestCharges(t *testing.T) {
	for _, size := range []int{1, 7, 9, 13, 1 << 20} {
		r := New(1<<40, 50<<10)
		s := dial(t, r, "a", func() int { return size })
		held := func(want int64, what string) {
			t.Helper()
			require.Equal(t, want, r.Held(), "%s, parts of %d", what, size)
		}
		held(0, "settings")
		s.begin(1, 100)
		held(callCharge+100, "headers")
		m := message(40 << 10)
		require.NoError(t, s.client.WriteData(1, false, m[:10005]))
		held(callCharge+100+10000+frameCharge, "an incomplete message")
		require.NoError(t, s.client.WriteDataPadded(1, false, m[10005:20005], make([]byte, 77)))
		held(callCharge+100+20000+2*frameCharge, "padding")
		require.NoError(t, s.client.WriteData(1, true, m[20005:]))
		// What arrived is more than 16 KiB beyond the window that the server gave.
		whole := int64(callCharge + 100 + 40<<10 + 3*frameCharge)
		held(whole, "a whole message, which a handler works on")
		require.NoError(t, s.server.WriteWindowUpdate(0, 1<<20))
		require.NoError(t, s.server.WriteWindowUpdate(1, 40<<10))
		require.NoError(t, s.server.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, BlockFragment: []byte{1}, EndHeaders: true,
		}))
		require.NoError(t, s.server.WriteData(1, false, message(100)))
		held(whole, "the answer is under way")
		s.end(1)
		held(0, "the answer")
		require.NoError(t, s.client.WriteData(1, true, m))
		s.begin(1, 10)
		held(0, "an ended call")

		s.begin(3, 0)
		require.NoError(t, s.client.WriteData(3, false, m[:16<<10]))
		require.NoError(t, s.client.WriteData(3, false, m[16<<10:]))
		require.NoError(t, s.client.WriteData(3, false, message(0)))
		require.NoError(t, s.client.WriteData(3, false, message(10)))
		all := len(m) + len(message(0)) + len(message(10))
		unread := int64(all) - unreadSlack
		held(callCharge+unread, "messages that no handler has read")
		require.NoError(t, s.server.WriteWindowUpdate(3, uint32(all)))
		held(callCharge+10+frameCharge, "the last one")
		require.NoError(t, s.client.WriteRSTStream(3, http2.ErrCodeCancel))
		held(0, "reset by the client")
		s.begin(5, 0)
		require.NoError(t, s.server.WriteRSTStream(5, http2.ErrCodeRefusedStream))
		held(0, "reset by the server")
		s.begin(7, 0)
		held(callCharge, "a call")
		require.NoError(t, s.client.WriteData(7, false, message(50<<10 + 1)[:9]))
		require.NoError(t, s.server.WriteRSTStream(7, http2.ErrCodeFrameSize))
		require.NoError(t, s.server.WriteRSTStream(9, http2.ErrCodeInternal))
		require.NoError(t, s.server.WriteGoAway(5, http2.ErrCodeNo, []byte("bye")))
		require.NoError(t, s.server.WriteGoAway(5, http2.ErrCodeEnhanceYourCalm, []byte("pings")))
		refused := r.Refused()
		for _, n := range []*atomic.Uint64{
			&refused.Calls, &refused.Headers, &refused.Messages, &refused.Pings,
		} {
			require.EqualValues(t, 1, n.Load())
		}
		s.begin(9, 0)
		require.NoError(t, s.Close())
		held(0, "closed")
		s.begin(11, 0)
		held(0, "bytes after the end")
		require.Empty(t, r.mu.conns)
	}
}

// TestHeaviestIsClosed: one connection ends, the one that holds the most of the address that does.
func TestHeaviestIsClosed(t *testing.T) {
	r := New(100<<10, 1<<20)
	whole := func() int { return 1 << 20 }
	a1, a2 := dial(t, r, "a", whole), dial(t, r, "a", whole)
	b := dial(t, r, "b", whole)
	a1.begin(1, 20<<10)
	a2.begin(1, 10<<10)
	b.begin(1, 15<<10)
	require.False(t, a1.closed || a2.closed || b.closed)
	b.begin(3, 0) // 109 KiB; a has 62, b has 47
	require.True(t, a1.closed)
	require.False(t, a2.closed || b.closed)
	require.EqualValues(t, 1, r.Closed())
	require.EqualValues(t, 3*callCharge+25<<10, r.Held())
}

// TestSumsOfCharges: after any calls the room holds the sum of its connections, never more than its
// limit, and nothing once all have ended.
func TestSumsOfCharges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 300 << 10
		r := New(limit, 1<<20)
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		parts := func() int { return 1 + rnd.IntN(4096) }
		var sides []*side
		for i := range 4 {
			sides = append(sides, dial(t, r, string(rune('a'+i/2)), parts))
		}
		for range 60 {
			s := sides[rnd.IntN(len(sides))]
			stream := uint32(1 + 2*rnd.IntN(8))
			switch rnd.IntN(6) {
			case 0, 1:
				s.begin(stream, rnd.IntN(1000))
			case 2, 3:
				m := message(rnd.IntN(60 << 10))
				require.NoError(t, s.client.WriteData(stream, false, m[:rnd.IntN(min(len(m), 16<<10))]))
			case 4:
				s.end(stream)
			case 5:
				require.NoError(t, s.server.WriteWindowUpdate(stream, uint32(1+rnd.IntN(20<<10))))
			}
			var sum int64
			for _, s := range sides {
				var charges int64
				for _, c := range s.mu.calls {
					charges += c.charge()
				}
				require.Equal(t, charges, s.held.Load())
				sum += charges
			}
			require.Equal(t, sum, r.Held())
			require.LessOrEqual(t, sum, int64(limit))
		}
		for _, s := range sides {
			require.NoError(t, s.Close())
		}
		require.Zero(t, r.Held())
	})
}

// FuzzFrames: no bytes of either side, in whatever parts, make the count wrong or end the process.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x00\x00\x05\x01\x04\x00\x00\x00\x01abcde"), []byte{0, 0, 0, 3, 0, 0, 0, 0, 1}, 3)
	f.Add([]byte("\x00\x00\x02\x00\x08\x00\x00\x00\x01\xffx"), []byte{0, 0, 4, 8, 0}, 1)
	f.Fuzz(func(t *testing.T, in, out []byte, part int) {
		part = 1 + int(uint(part)%4096)
		r := New(1<<30, 1<<20)
		s := dial(t, r, "", func() int { return part })
		s.begin(1, 3)
		for len(in) > 0 || len(out) > 0 {
			n, m := min(part, len(in)), min(part, len(out))
			s.arrived(in[:n])
			s.leaving(out[:m])
			in, out = in[n:], out[m:]
			require.GreaterOrEqual(t, r.Held(), int64(0))
			require.Equal(t, r.Held(), s.held.Load())
		}
		require.NoError(t, s.Close())
		require.Zero(t, r.Held())
	})
}
