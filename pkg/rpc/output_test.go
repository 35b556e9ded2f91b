package rpc

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
)

// twin puts messages together without thinking.
type twin struct{ all []byte }

func (w *twin) add(data []byte) (out [][]byte) {
	w.all = append(w.all, data...)
	for len(w.all) >= PrefixSize {
		n := PrefixSize + int(binary.BigEndian.Uint32(w.all[1:]))
		if len(w.all) < n {
			break
		}
		out = append(out, bytes.Clone(w.all[:n]))
		w.all = w.all[n:]
	}
	return out
}

// TestAssembler against its twin: the same messages, however they are cut.
func TestAssembler(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var stream []byte
		for range rnd.IntN(10) {
			body := make([]byte, []int{0, 1, 10, 1000, 70_000}[rnd.IntN(5)])
			for i := range body {
				body[i] = byte(rnd.Uint32())
			}
			stream = binary.BigEndian.AppendUint32(append(stream, byte(rnd.IntN(2))),
				uint32(len(body)))
			stream = append(stream, body...)
		}
		var a Assembler
		var w twin
		for len(stream) > 0 {
			chunk := bytes.Clone(
				stream[:min(len(stream), 1+rnd.IntN([]int{2, 8, 5000}[rnd.IntN(3)]))])
			stream = stream[len(chunk):]
			var got [][]byte
			for data := chunk; len(data) > 0; {
				msg, _, rest, err := a.Add(data, 100_000, false, new(Checksum))
				require.NoError(t, err)
				if msg != nil {
					got = append(got, bytes.Clone(msg))
					a = Assembler{}
				}
				data = rest
			}
			want := w.add(chunk)
			require.Equal(t, want, got, "seed %d", seed)
			require.Equal(t, len(w.all) > 0, a.Started())
		}
	}
}

func TestAssemblerLimits(t *testing.T) {
	for _, prefix := range [][]byte{
		{0, 0, 0, 0, 11}, {0, 0xff, 0xff, 0xff, 0xff}, {2, 0, 0, 0, 1},
	} {
		for cut := range PrefixSize {
			var a Assembler
			var err error
			for _, part := range [][]byte{
				prefix[:cut], append(bytes.Clone(prefix[cut:]), 1, 2, 3),
			} {
				if err == nil && len(part) > 0 {
					_, _, _, err = a.Add(part, 10, false, new(Checksum))
				}
			}
			require.Error(t, err)
		}
	}
	// A size alone costs little.
	var a Assembler
	_, _, _, err := a.Add([]byte{0, 0x40, 0, 0, 0, 1}, 1<<30, false, new(Checksum))
	require.NoError(t, err)
	require.LessOrEqual(t, cap(a.Msg), 64<<10)
}

// TestFrames: http2 reads what frames lays out.
func TestFrames(t *testing.T) {
	for _, maxFrame := range []int{1, 10, 16 << 10, 1 << 20} {
		for _, n := range []int{1, 9, 10, 11, 100, 16 << 10, 16<<10 + 1, 40_000} {
			if n/maxFrame > 5000 {
				continue
			}
			framed := n + FrameHeader*frameCount(n, maxFrame)
			b := make([]byte, framed)
			want := make([]byte, n)
			for i := range want {
				want[i] = byte(i * 7)
			}
			copy(b[framed-n:], want)
			frames(b, n, maxFrame, 77)
			fr := http2.NewFramer(nil, bytes.NewReader(b))
			fr.SetMaxReadFrameSize(1<<24 - 1)
			var got []byte
			for len(got) < n {
				f, err := fr.ReadFrame()
				require.NoError(t, err)
				d := f.(*http2.DataFrame)
				require.EqualValues(t, 77, d.StreamID)
				require.False(t, d.StreamEnded())
				require.LessOrEqual(t, len(d.Data()), maxFrame)
				got = append(got, d.Data()...)
			}
			require.True(t, bytes.Equal(want, got), "%d in %d", n, maxFrame)
		}
	}
}

// TestOutput: pieces of all sizes come out as they went in, whole.
func TestOutput(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		var o Output
		var want []byte
		for range rnd.IntN(40) {
			n := 1 + rnd.IntN([]int{10, 1000, 70_000}[rnd.IntN(3)])
			b := o.Grow(n)
			require.Len(t, b, n)
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			if rnd.IntN(5) == 0 {
				o.shrink(n)
				continue
			}
			want = append(want, b...)
		}
		require.Equal(t, len(want), o.Size)
		var w writeConn
		require.NoError(t, o.Flush(&w))
		require.True(t, bytes.Equal(want, w.B))
	}
}

// writeConn is a connection that keeps what is written.
type writeConn struct {
	net.Conn
	rpctest.BufferConn
}

func (w *writeConn) Write(p []byte) (int, error) { return w.BufferConn.Write(p) }

// TestInflow: the window of a connection is given back as it is used; beyond it is an error.
func TestInflow(t *testing.T) {
	w := Inflow{Size: 1000, Left: 1000}
	require.True(t, w.Take(1000))
	require.Zero(t, w.due(249))
	require.EqualValues(t, 250, w.due(250))
	require.True(t, w.Take(250))
	require.False(t, w.Take(1))
}
