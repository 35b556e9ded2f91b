package server

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
)

// TestHeaderEncoder: whatever comes after what, the client reads what was meant.
func TestHeaderEncoder(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var e headerEncoder
		e.init()
		dec := rpctest.NewDecoder()
		for step := range 60 {
			var block []byte
			var want []string
			switch rnd.IntN(8) {
			case 0:
				n := []uint32{0, 30, 60, 103, 104, 255, 256, 300, 4096, 1 << 20}[rnd.IntN(10)]
				e.setTableSize(n)
				dec.SetAllowedMaxDynamicTableSize(n)
				continue
			case 1:
				code, m := codes.Code(1+rnd.IntN(20)), strings.Repeat("m", rnd.IntN(100))
				only := rnd.IntN(2) == 0
				block = e.failure(status.New(code, m), only)
				if only {
					want = append(want, ":status", "200", "content-type", "application/grpc")
				}
				want = append(want, rpc.ChecksumHeader, rpc.ChecksumKind, "grpc-status",
					strconv.Itoa(int(code)))
				if m != "" {
					want = append(want, "grpc-message", m)
				}
			case 2, 3, 4:
				block, want = e.block(blockHeaders),
					[]string{
						":status", "200", "content-type", "application/grpc", rpc.ChecksumHeader,
						rpc.ChecksumKind,
					}
			case 5:
				block, want = e.plain(405, 7),
					[]string{
						":status", "405", "content-type", "text/plain", "content-length", "7",
						"allow", "POST",
					}
			default:
				block, want = e.block(blockOK), []string{"grpc-status", "0"}
			}
			if rnd.IntN(4) == 0 {
				v := strings.Repeat("v", rnd.IntN(400))
				block = e.with(block, metadata.Pairs("k", v, "k-bin", "\x00"))
				for _, f := range [][]string{{"k", v}, {"k-bin", "AA"}} {
					want = append(want, f...)
				}
				if fields, err := dec.DecodeFull(block); err == nil { // the order of names is any
					got := flat(fields)
					require.ElementsMatch(t, want, got, "seed %d step %d", seed, step)
					continue
				}
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
