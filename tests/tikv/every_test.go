package tikv

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/rawkv"
)

// rounds has one caller work on keys of its own, which lie in several regions.
type rounds struct {
	cl   *rawkv.Client
	ctx  context.Context
	name string
}

func (r *rounds) key(i int) []byte { return fmt.Appendf(nil, "%s-%d", r.name, i) }

const roundKeys = 10

// one does every raw operation, and returns what it finds that is not what it has written.
func (r *rounds) one(n int) error {
	var keys, values [][]byte
	for i := range roundKeys {
		keys, values = append(keys, r.key(i)), append(values, fmt.Appendf(nil, "%d of %d", i, n))
	}
	start, end := []byte(r.name+"-"), []byte(r.name+".")
	if err := r.cl.BatchPut(r.ctx, keys, values); err != nil {
		return fmt.Errorf("batch put: %w", err)
	}
	got, err := r.cl.BatchGet(r.ctx, keys)
	if err := differ("batch get", got, values, err); err != nil {
		return err
	}
	ks, vs, err := r.cl.Scan(r.ctx, start, end, 100)
	if err := differ("scan", append(ks, vs...), append(keys[:roundKeys:roundKeys], values...),
		err); err != nil {
		return err
	}
	ks, _, err = r.cl.ReverseScan(r.ctx, end, start, 3, rawkv.ScanKeyOnly())
	if err := differ("reverse scan", ks, [][]byte{keys[9], keys[8], keys[7]}, err); err != nil {
		return err
	}
	if sum, err := r.cl.Checksum(r.ctx, start, end); err != nil || sum.TotalKvs != roundKeys {
		return fmt.Errorf("checksum: %+v, %v", sum, err)
	}
	if err := r.cl.BatchDelete(r.ctx, keys[:4]); err != nil {
		return fmt.Errorf("batch delete: %w", err)
	}
	if err := r.single(keys[4]); err != nil {
		return err
	}
	ks, _, err = r.cl.Scan(r.ctx, start, end, 100)
	if err := differ("scan after deletes", ks, keys[5:], err); err != nil {
		return err
	}
	if err := r.cl.DeleteRange(r.ctx, start, end); err != nil {
		return fmt.Errorf("delete range: %w", err)
	}
	ks, _, err = r.cl.Scan(r.ctx, start, end, 100)
	return differ("scan of nothing", ks, nil, err)
}

// single puts, reads and deletes one key.
func (r *rounds) single(key []byte) error {
	if err := r.cl.Put(r.ctx, key, []byte("single")); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	got, err := r.cl.Get(r.ctx, key)
	if err := differ("get", [][]byte{got}, bytesOf("single"), err); err != nil {
		return err
	}
	if ttl, err := r.cl.GetKeyTTL(r.ctx, key); err != nil || ttl == nil || *ttl != 0 {
		return fmt.Errorf("get TTL: %v, %v", ttl, err)
	}
	if err := r.cl.Delete(r.ctx, key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if got, err = r.cl.Get(r.ctx, key); got != nil || err != nil {
		return fmt.Errorf("get after delete: %q, %w", got, err)
	}
	return nil
}

func differ(what string, got, want [][]byte, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !bytes.Equal(bytes.Join(got, []byte("|")), bytes.Join(want, []byte("|"))) {
		return fmt.Errorf("%s: %q, want %q", what, got, want)
	}
	return nil
}

// Every raw operation finds what was written before, while regions split between and within the
// callers' keys, leaders move, and each store is killed once.
func TestEveryOperationUnderFaults(t *testing.T) {
	c := startCluster(t, 3)
	cl := c.client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	require.NoError(t, cl.Put(ctx, []byte("begin"), []byte("v")))
	c.splitAt(t, "every-2", "every-4", "every-5-5")
	c.awaitReplicas(t)
	const callers = 6
	var done atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := &rounds{cl, ctx, fmt.Sprintf("every-%d", w)}
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := r.one(n); err != nil {
					t.Errorf("%s, round %d: %v", r.name, n, err)
					return
				}
				done.Add(1)
			}
		}()
	}
	more := func(n int64) {
		t.Helper()
		from := done.Load()
		require.Eventually(t, func() bool {
			return done.Load() >= from+n || t.Failed()
		}, time.Minute, 5*time.Millisecond)
	}
	for i, s := range c.stores {
		for range 3 {
			c.moveLeader(t, fmt.Sprintf("every-%d-0", rand.IntN(callers)))
			more(10)
		}
		c.splitAt(t, fmt.Sprintf("every-%d-3", 2*i), fmt.Sprintf("every-%d-7", 2*i))
		s.kill()
		more(10)
		s.start(t)
		c.awaitReplicas(t)
	}
	more(20)
	close(stop)
	wg.Wait()
	t.Logf("%d rounds", done.Load())
}
