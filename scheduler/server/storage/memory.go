package storage

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Memory is a Storage in memory, for tests and for embedding without etcd. Several members may
// share one to play a cluster.
type Memory struct {
	mu struct {
		sync.Mutex
		rev      int64
		kvs      map[string]KV
		watchers map[*memWatcher]struct{}
	}
}

type memWatcher struct {
	key  string
	ch   chan Event
	done <-chan struct{}
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	m := &Memory{}
	m.mu.kvs = make(map[string]KV)
	m.mu.watchers = make(map[*memWatcher]struct{})
	return m
}

// Get implements Storage.
func (m *Memory) Get(ctx context.Context, key string) (KV, error) {
	if err := ctx.Err(); err != nil {
		return KV{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	kv := m.mu.kvs[key]
	kv.Key = key
	return kv, nil
}

// Range implements Storage.
func (m *Memory) Range(ctx context.Context, prefix string) ([]KV, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []KV
	for k, kv := range m.mu.kvs {
		if strings.HasPrefix(k, prefix) {
			out = append(out, kv)
		}
	}
	slices.SortFunc(out, func(a, b KV) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

// Txn implements Storage.
func (m *Memory) Txn(ctx context.Context, conds []Cond, ops []Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range conds {
		kv, ok := m.mu.kvs[c.Key]
		if c.ByRev && kv.ModRevision != c.Rev ||
			!c.ByRev && (!ok || !bytes.Equal(kv.Value, c.Value)) {
			return 0, fmt.Errorf("%w: %s", ErrConflict, c.Key)
		}
	}
	m.mu.rev++
	for _, o := range ops {
		m.applyLocked(o)
	}
	return m.mu.rev, nil
}

func (m *Memory) applyLocked(o Op) {
	kv := KV{Key: o.Key, Value: slices.Clone(o.Value), ModRevision: m.mu.rev}
	if o.Value == nil {
		delete(m.mu.kvs, o.Key)
	} else {
		m.mu.kvs[o.Key] = kv
	}
	for w := range m.mu.watchers {
		if w.key != o.Key {
			continue
		}
		select {
		case w.ch <- Event{KV: kv, Deleted: o.Value == nil}:
		default: // too slow: break the watch, its owner starts over
			close(w.ch)
			delete(m.mu.watchers, w)
		}
	}
}

// Watch implements Storage.
func (m *Memory) Watch(ctx context.Context, key string, fromRev int64) <-chan Event {
	w := &memWatcher{key: key, ch: make(chan Event, 64), done: ctx.Done()}
	m.mu.Lock()
	defer m.mu.Unlock()
	if kv := m.mu.kvs[key]; kv.ModRevision > fromRev {
		w.ch <- Event{KV: kv}
	}
	m.mu.watchers[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if _, ok := m.mu.watchers[w]; ok {
			close(w.ch)
			delete(m.mu.watchers, w)
		}
	})
	return w.ch
}
