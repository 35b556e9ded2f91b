package crash

import (
	"context"
	"fmt"
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

// put writes a new value, or deletes the key at every fifth time. It goes on until it is acknowledged:
// an attempt of unknown outcome stays among what may be found.
func (w *writer) put(keys ...string) {
	for _, key := range keys {
		w.mu.Lock()
		w.next++
		value := fmt.Sprintf("%s=%d", key, w.next)
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
			err = w.cl.Put(ctx, []byte(key), []byte(value))
		}
		if err == nil || ctx.Err() != nil {
			return err
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
