package rpc

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestParseTimeout(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"0n": 0, "1n": 1, "7u": 7 * time.Microsecond, "20m": 20 * time.Millisecond, "3S": 3 * time.Second, "2M": 2 * time.Minute,
		"1H": time.Hour, "00000001S": time.Second, "99999999n": 99999999, "99999999S": 99999999 * time.Second,
		"99999999M": 99999999 * time.Minute, "99999999H": math.MaxInt64,
	} {
		got, err := parseTimeout(v)
		require.NoError(t, err, v)
		require.Equal(t, want, got, v)
	}
	for _, v := range []string{"", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", " 1S", "1 S", "100000000S", "1SS", "١S"} {
		_, err := parseTimeout(v)
		require.Error(t, err, v)
	}
}

func TestIsGRPCType(t *testing.T) {
	for v, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc;charset=utf-8": true, "application/grpcx": false,
		"application/grpc-web": false, "": false, "text/plain": false,
	} {
		require.Equal(t, want, isGRPCType(v), v)
	}
}

func TestEncodeMessage(t *testing.T) {
	for m, want := range map[string]string{
		"": "", "plain": "plain", "100%": "100%25", "a\nb": "a%0Ab", "☺": "%E2%98%BA", "\x7f": "%7F", "~ !": "~ !", "\xff": "%EF%BF%BD",
	} {
		require.Equal(t, want, encodeMessage(m))
	}
	for _, m := range []string{strings.Repeat("a", 10_000), strings.Repeat("☺", 10_000), "a" + strings.Repeat("é", 10_000), strings.Repeat("%", 5000)} {
		got := encodeMessage(m)
		require.LessOrEqual(t, len(got), maxMessageHeader+12)
		back, err := url.PathUnescape(got)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(m, back))
		require.True(t, utf8.ValidString(back), "no character is cut")
	}
}

// TestHeaderEncoder: whatever comes after what, the client reads what was meant.
func TestHeaderEncoder(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var e headerEncoder
		e.init()
		dec := newDecoder()
		for step := range 60 {
			var block []byte
			var want []string
			switch rnd.IntN(7) {
			case 0:
				n := []uint32{0, 30, 60, 103, 104, 255, 256, 300, 4096, 1 << 20}[rnd.IntN(10)]
				e.setTableSize(n)
				dec.SetAllowedMaxDynamicTableSize(n)
				continue
			case 1:
				code, m := codes.Code(1+rnd.IntN(20)), strings.Repeat("m", rnd.IntN(100))
				httpStatus, only := []int{0, 405, 415}[rnd.IntN(3)], rnd.IntN(2) == 0
				block = e.failure(status.New(code, m), only, httpStatus)
				if only {
					want = append(want, ":status", strconv.Itoa(max(httpStatus, 200)), "content-type", "application/grpc")
				}
				want = append(want, checksumHeader, checksumKind, "grpc-status", strconv.Itoa(int(code)))
				if m != "" {
					want = append(want, "grpc-message", m)
				}
			case 2, 3, 4:
				block, want = e.block(blockHeaders), []string{":status", "200", "content-type", "application/grpc", checksumHeader, checksumKind}
			default:
				block, want = e.block(blockOK), []string{"grpc-status", "0"}
			}
			fields, err := dec.DecodeFull(block)
			require.NoError(t, err, "seed %d step %d", seed, step)
			require.Equal(t, want, flat(fields), "seed %d step %d", seed, step)
		}
	}
}

func flat(fields []hpack.HeaderField) (out []string) {
	for _, f := range fields {
		out = append(out, f.Name, f.Value)
	}
	return out
}

// TestHeaderEncoderKeepsBlocks: the usual blocks are a few bytes, and not encoded again.
func TestHeaderEncoderKeepsBlocks(t *testing.T) {
	var e headerEncoder
	e.init()
	for range 3 {
		e.block(blockHeaders)
		e.block(blockOK)
	}
	require.NotNil(t, e.blocks[blockHeaders])
	require.NotNil(t, e.blocks[blockOK])
	require.LessOrEqual(t, len(e.block(blockHeaders)), 3)
	require.LessOrEqual(t, len(e.block(blockOK)), 1)
}

// twin puts messages together without thinking.
type twin struct{ all []byte }

func (w *twin) add(data []byte) (out [][]byte) {
	w.all = append(w.all, data...)
	for len(w.all) >= prefixSize {
		n := prefixSize + int(binary.BigEndian.Uint32(w.all[1:]))
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
			stream = binary.BigEndian.AppendUint32(append(stream, byte(rnd.IntN(2))), uint32(len(body)))
			stream = append(stream, body...)
		}
		var a assembler
		var w twin
		for len(stream) > 0 {
			chunk := bytes.Clone(stream[:min(len(stream), 1+rnd.IntN([]int{2, 8, 5000}[rnd.IntN(3)]))])
			stream = stream[len(chunk):]
			var got [][]byte
			for data := chunk; len(data) > 0; {
				msg, _, rest, err := a.add(data, 100_000)
				require.NoError(t, err)
				if msg != nil {
					got = append(got, bytes.Clone(msg))
					a = assembler{}
				}
				data = rest
			}
			want := w.add(chunk)
			require.Equal(t, want, got, "seed %d", seed)
			require.Equal(t, len(w.all) > 0, a.started())
		}
	}
}

func TestAssemblerLimits(t *testing.T) {
	for _, prefix := range [][]byte{{0, 0, 0, 0, 11}, {0, 0xff, 0xff, 0xff, 0xff}, {2, 0, 0, 0, 1}} {
		for cut := range prefixSize {
			var a assembler
			var err error
			for _, part := range [][]byte{prefix[:cut], append(bytes.Clone(prefix[cut:]), 1, 2, 3)} {
				if err == nil && len(part) > 0 {
					_, _, _, err = a.add(part, 10)
				}
			}
			require.Error(t, err)
		}
	}
	// A size alone costs little.
	var a assembler
	_, _, _, err := a.add([]byte{0, 0x40, 0, 0, 0, 1}, 1<<30)
	require.NoError(t, err)
	require.LessOrEqual(t, cap(a.msg), 64<<10)
}

// TestFrames: http2 reads what frames lays out.
func TestFrames(t *testing.T) {
	for _, maxFrame := range []int{1, 10, 16 << 10, 1 << 20} {
		for _, n := range []int{1, 9, 10, 11, 100, 16 << 10, 16<<10 + 1, 40_000} {
			if n/maxFrame > 5000 {
				continue
			}
			framed := n + frameHeader*frameCount(n, maxFrame)
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
		var o output
		var want []byte
		for range rnd.IntN(40) {
			n := 1 + rnd.IntN([]int{10, 1000, 70_000}[rnd.IntN(3)])
			b := o.grow(n)
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
		require.Equal(t, len(want), o.size)
		var w writeConn
		require.NoError(t, o.writeTo(&w))
		require.True(t, bytes.Equal(want, w.b))
	}
}
