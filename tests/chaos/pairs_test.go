package chaos

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/tinykv/tinykv/kv/client"
)

// pairWriters write pairs of neighbouring keys, first a and then b, with growing numbers: a reader
// that sees both in one page of a scan, which is one snapshot of a region, must not see b ahead of
// a.
const pairWriters = 3

// pairKey lies among the keys of the clients, so that splits, moves and snapshots concern it too.
func pairKey(writer, generation int, half string) []byte {
	at := key((writer*17 + generation*5) % keyCount)
	return fmt.Appendf(nil, "%s~%d-%04d-%s", at, writer, generation, half)
}

// writePairs goes on to a new pair after a write of unknown outcome, which might take effect later.
func (h *history) writePairs(writer int) {
	generation := 0
	for n := 1; ; n++ {
		for _, half := range []string{"a", "b"} {
			for {
				select {
				case <-h.stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				err := h.cl.Put(ctx, pairKey(writer, generation, half),
					strconv.AppendInt(nil, int64(n), 10))
				cancel()
				if err == nil {
					break
				}
				if client.IsUnknown(err) {
					generation, n = generation+1, 0
					break
				}
				time.Sleep(5 * time.Millisecond) // do not spin while a region has no leader
			}
			if n == 0 {
				break
			}
		}
	}
}

// readPairs scans everything again and again.
func (h *history) readPairs() {
	for {
		select {
		case <-h.stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		// a scan that fails proves nothing
		_ = h.cl.Pages(ctx, key(0), nil, 0, func(page []client.KV) error {
			h.checkPairs(page)
			return nil
		})
		cancel()
		time.Sleep(20 * time.Millisecond) // leaves the cluster time for others
	}
}

func (h *history) checkPairs(page []client.KV) {
	for i := 1; i < len(page); i++ {
		a, b := page[i-1], page[i]
		if !bytes.HasSuffix(a.Key, []byte("-a")) ||
			!bytes.Equal(a.Key[:len(a.Key)-1], b.Key[:len(b.Key)-1]) {
			continue
		}
		x, errA := strconv.Atoi(string(a.Value))
		y, errB := strconv.Atoi(string(b.Value))
		if errA != nil || errB != nil || x < y {
			h.t.Errorf("one page shows %s = %q and %s = %q", a.Key, a.Value, b.Key, b.Value)
		}
		h.pairs.Add(1)
	}
}
