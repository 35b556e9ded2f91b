package crash

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/tests/cluster"
)

// values tells for each key what may be found there: the acknowledged value, and what was written
// since. "" is no value.
type values map[string][]string

func (v values) join(o values) {
	for k, list := range o {
		v[k] = append(v[k], list...)
	}
}

// writer writes keys, each with ever new values, and remembers what was acknowledged.
type writer struct {
	c    *cluster.Cluster
	cl   *client.Client
	mu   sync.Mutex
	next int
	may  values
	// check, if set, sees what is read right after a write, and what that may be.
	check func(key, got string, allowed []string)
}

func newWriter(c *cluster.Cluster) *writer {
	return &writer{c: c, cl: c.Client(), may: values{}}
}

func (w *writer) close() { w.cl.Close() }

func (w *writer) values() values {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := values{}
	out.join(w.may)
	return out
}

// put writes a new value, or deletes the key at every fifth time. It goes on until it is
// acknowledged: an attempt of unknown outcome stays among what may be found.
func (w *writer) put(keys ...string) { w.putAs("%s=%d", keys...) }

// expires is how the values begin that have a TTL.
const expires = "expires "

// putTTL is put with values that have a TTL, of hours.
func (w *writer) putTTL(keys ...string) { w.putAs(expires+"%s=%d", keys...) }

func (w *writer) putAs(format string, keys ...string) {
	for _, key := range keys {
		w.mu.Lock()
		w.next++
		value := fmt.Sprintf(format, key, w.next)
		if w.next%5 == 0 {
			value = ""
		}
		old := append([]string{}, w.may[key]...)
		if len(old) == 0 {
			old = []string{""}
		}
		w.may[key] = append(old, value)
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := w.putCtx(ctx, key, value)
		cancel()
		if err == nil {
			w.mu.Lock()
			w.may[key] = []string{value}
			w.mu.Unlock()
		}
		if w.check != nil {
			w.readBack(key)
		}
	}
}

// swap gives keys new values by compare-and-swap with the acknowledged one. A key of which that is
// not known is put. What a swap finds is what this writer has written: nobody else writes.
func (w *writer) swap(keys ...string) {
	for _, key := range keys {
		known := w.values()[key]
		if len(known) > 1 {
			w.put(key)
			continue
		}
		var expected []byte
		if len(known) == 1 && known[0] != "" {
			expected = []byte(known[0])
		}
		w.mu.Lock()
		w.next++
		value := fmt.Sprintf("%s=%d", key, w.next)
		w.may[key] = []string{string(expected), value}
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		found, err := w.swapCtx(ctx, key, expected, value)
		cancel()
		switch {
		case err == nil && found != string(expected) && found != value:
			w.c.Eventually(0, func() string {
				return fmt.Sprintf("a swap of %s found %q, allowed %v", key, found, known)
			})
		case err == nil:
			w.mu.Lock()
			w.may[key] = []string{value}
			w.mu.Unlock()
		}
		if w.check != nil {
			w.readBack(key)
		}
	}
}

// swapCtx goes on until it is acknowledged, and returns what the key had. After an attempt of
// unknown outcome that may be the value itself.
func (w *writer) swapCtx(
	ctx context.Context, key string, expected []byte, value string,
) (string, error) {
	for {
		previous, _, err := w.cl.CompareAndSwap(ctx, []byte(key), expected, []byte(value))
		if err == nil || ctx.Err() != nil {
			return string(previous), err
		}
	}
}

// deleteRange deletes the keys that it is given, and all between them, as one range.
func (w *writer) deleteRange(start, end string, keys ...string) {
	w.mu.Lock()
	for _, key := range keys {
		w.may[key] = append(append([]string{}, w.may[key]...), "")
	}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := w.cl.DeleteRange(ctx, []byte(start), []byte(end))
	for err != nil && ctx.Err() == nil {
		err = w.cl.DeleteRange(ctx, []byte(start), []byte(end))
	}
	if err == nil {
		w.mu.Lock()
		for _, key := range keys {
			w.may[key] = []string{""}
		}
		w.mu.Unlock()
	}
}

// readBack reads a key that was just written; only this writer writes it.
func (w *writer) readBack(key string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if got, err := w.get(ctx, key); err == nil {
		w.check(key, got, w.values()[key])
	}
}

func (w *writer) putCtx(ctx context.Context, key, value string) error {
	for {
		var err error
		if value == "" {
			err = w.cl.Delete(ctx, []byte(key))
		} else {
			ttl := uint64(0)
			if strings.HasPrefix(value, expires) {
				ttl = 10_000
			}
			err = w.cl.PutTTL(ctx, []byte(key), []byte(value), ttl)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// hasTTL tells whether a key has a TTL exactly if its value says so.
func (w *writer) hasTTL(ctx context.Context, key, value string) (bool, error) {
	for {
		ttl, _, err := w.cl.TTL(ctx, []byte(key))
		if err == nil || ctx.Err() != nil {
			return ttl > 0 == strings.HasPrefix(value, expires), err
		}
	}
}

func (w *writer) get(ctx context.Context, key string) (string, error) {
	for {
		v, _, err := w.cl.Get(ctx, []byte(key))
		if err == nil || ctx.Err() != nil {
			return string(v), err
		}
	}
}
