package client

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
)

// fields are the decoded headers of a call.
func fields(t *testing.T, dec *hpack.Decoder, block []byte) map[string]string {
	t.Helper()
	got, err := dec.DecodeFull(block)
	require.NoError(t, err)
	out := map[string]string{}
	for _, f := range got {
		require.NotContains(t, out, f.Name)
		out[f.Name] = f.Value
	}
	return out
}

// TestRequestHeaders: whatever methods, timeouts and table sizes come in whatever order, the server
// decodes what was meant. Long paths and addresses do not fit into the table.
func TestRequestHeaders(t *testing.T) {
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		addr := strings.Repeat("a", []int{10, 500, 5000}[rnd.IntN(3)])
		longest := []int{10, 100, 600}[rnd.IntN(3)]
		methods := make([]string, 1+rnd.IntN(80))
		for i := range methods {
			methods[i] = fmt.Sprintf("/s/%d%s", i, strings.Repeat("m", rnd.IntN(longest)))
		}
		var e requestEncoder
		e.init(addr, false, false)
		dec := hpack.NewDecoder(rpc.TableSize, nil)
		for range 400 {
			if rnd.IntN(40) == 0 {
				for range 1 + rnd.IntN(3) {
					n := []uint32{0, 64, 200, 1000, 4095, 4096, 1 << 20}[rnd.IntN(7)]
					e.setTableSize(n)
					dec.SetAllowedMaxDynamicTableSize(max(n, rpc.TableSize))
				}
			}
			method, timeout, want := methods[rnd.IntN(len(methods))], time.Duration(-1), ""
			if rnd.IntN(2) == 0 {
				timeout = time.Duration(rnd.Int64() >> rnd.IntN(63))
				want = rpc.FormatTimeout(timeout)
			}
			got := fields(t, dec, e.block(method, timeout, nil))
			require.Equal(t, method, got[":path"], "seed %d", seed)
			require.Equal(t, addr, got[":authority"], "seed %d", seed)
			require.Equal(t, want, got["grpc-timeout"], "seed %d", seed)
			require.Equal(t, "POST application/grpc trailers",
				got[":method"]+" "+got["content-type"]+" "+got["te"])
		}
	}
}

// TestRequestHeadersAreSmall: a method's block is a few bytes once the server knows it.
func TestRequestHeadersAreSmall(t *testing.T) {
	var e requestEncoder
	e.init("127.0.0.1:20160", false, false)
	for range 3 {
		for i := range 30 {
			e.block(fmt.Sprint("/tinykvpb.TinyKv/Method", i), -1, nil)
		}
	}
	for i := range 30 {
		require.Len(t, e.block(fmt.Sprint("/tinykvpb.TinyKv/Method", i), -1, nil), 7)
	}
}

// TestClientHeadersOnTheWire is TestRequestHeaders through a connection whose server changes its
// mind.
func TestClientHeadersOnTheWire(t *testing.T) {
	for _, first := range []uint32{0, 64, 4096} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(), Options{})
			size := func(n uint32) http2.Setting {
				return http2.Setting{ID: http2.SettingHeaderTableSize, Val: n}
			}
			res := make(chan error, 1)
			call := func(i int) string {
				method := fmt.Sprintf("/s/method%d", i%24)
				ctx, cancel := rpctest.Within(t), func() {}
				if units := []time.Duration{
					0, 50 * time.Second, 30 * time.Minute, 40 * time.Hour, 40_000 * time.Hour,
					2e6 * time.Hour,
				}; i%6 > 0 {
					ctx, cancel = context.WithTimeout(context.Background(), units[i%6])
				}
				go func() {
					defer cancel()
					res <- c.Invoke(ctx, method, new(emptyMessage), new(emptyMessage))
				}()
				return method
			}
			method := call(0)
			p := l.Greeted(size(first))
			for i := range 100 {
				if i > 0 {
					method = call(i)
				}
				h := p.Opened()
				require.Equal(t, method, h.PseudoValue("path"))
				require.Equal(t, l.Address(), h.PseudoValue("authority"))
				var b bytes.Buffer
				for _, f := range h.RegularFields() {
					fmt.Fprint(&b, f.Name, " ", f.Value, "\n")
				}
				require.Contains(t, b.String(), "content-type application/grpc\n")
				require.Contains(t, b.String(), "te trailers\n")
				if i%6 > 0 {
					require.Contains(t, b.String(), string("xumSMH"[i%6])+"\n", "another unit")
				}
				if i%30 == 29 {
					require.NoError(t,
						p.Framer.WriteSettings(size([]uint32{4096, 100, 0, 4096}[i/30])))
				}
				p.Reply(h.StreamID, "")
				require.NoError(t, rpctest.Wait(t, res, "the call"))
			}
		})
	}
}

// emptyMessage encodes to nothing and takes anything.
type emptyMessage struct{}

func (*emptyMessage) Size() int { return 0 }

func (*emptyMessage) MarshalToSizedBuffer([]byte) (int, error) { return 0, nil }

func (*emptyMessage) Unmarshal([]byte) error { return nil }

func (*emptyMessage) Reset() {}
