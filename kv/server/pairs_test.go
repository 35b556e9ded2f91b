package server

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// TestPairsShareNothing: pairs from common chunks are as if each had been copied by itself, also
// when one grows.
func TestPairsShareNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, most := range []int{1, 2, 3, 100, 1000} {
		p := pairs{most: most}
		var want, got []*kvrpcpb.KvPair
		buf := make([]byte, 2*maxChunk)
		for range most + 1 {
			part := func(n int) []byte {
				for i := range n {
					buf[i] = byte(rnd.Uint32())
				}
				return buf[:n]
			}
			size := []int{0, 1, 16, 256, maxChunk / 4, maxChunk/4 + 1, 2 * maxChunk}[rnd.IntN(7)]
			pair, w := p.next(), &kvrpcpb.KvPair{}
			key := part(1 + rnd.IntN(32))
			pair.Key, w.Key = p.copy(key), append([]byte{}, key...)
			value := part(size)
			pair.Value, w.Value = p.copy(value), append([]byte{}, value...)
			got, want = append(got, pair), append(want, w)
		}
		for _, pair := range got {
			_ = append(pair.Key, 'x')
			_ = append(pair.Value, 'x')
		}
		require.Equal(t, want, got)
		require.LessOrEqual(t, p.made, most+1)
	}
}

// TestPairsAreUsedAgain: many scans at once, whose pairs lie in memory that is used again, answer
// what is there. Some are answered in large messages, which wait for the client's windows.
func TestPairsAreUsedAgain(t *testing.T) {
	s := newServer()
	const keys = 400
	value := func(i int) string {
		v := make([]byte, []int{0, 10, 250, maxChunk / 4, maxChunk}[i%5])
		for j := range v {
			v[j] = byte(i)
		}
		return string(v)
	}
	for i := range keys {
		put(t, s, "", fmt.Sprintf("k%03d", i), value(i))
	}
	c := overTheWire(t, s)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 30 {
				from, limit, only := rnd.IntN(keys), 1+rnd.IntN(maxKept+10), rnd.IntN(3) == 0
				resp, err := c.RawScan(t.Context(), &kvrpcpb.RawScanRequest{
					StartKey: fmt.Appendf(nil, "k%03d", from), Limit: uint32(limit), KeyOnly: only,
					MaxBytes: 1 << 20,
				})
				if err != nil || resp.RegionError != nil || resp.Error != "" || len(resp.Kvs) == 0 {
					t.Errorf("scan: %v %v", resp, err)
					return
				}
				for i, pair := range resp.Kvs {
					want := value(from + i)
					if only {
						want = ""
					}
					if string(pair.Key) != fmt.Sprintf("k%03d", from+i) ||
						string(pair.Value) != want {
						t.Errorf("pair %d of the scan from %d: %q and %d bytes", i, from, pair.Key,
							len(pair.Value))
						return
					}
				}
				if !resp.More && len(resp.Kvs) != min(limit, keys-from) {
					t.Errorf("%d pairs from %d with a limit of %d", len(resp.Kvs), from, limit)
					return
				}
			}
		})
	}
	wg.Wait()
}
