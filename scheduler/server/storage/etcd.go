package storage

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Etcd is a Storage on an etcd client, in-process or remote. The client belongs to the caller.
type Etcd struct {
	client *clientv3.Client
}

// NewEtcd wraps a client.
func NewEtcd(client *clientv3.Client) *Etcd { return &Etcd{client: client} }

// Get implements Storage. Reads are linearizable.
func (e *Etcd) Get(ctx context.Context, key string) (KV, error) {
	resp, err := e.client.Get(ctx, key)
	if err != nil {
		return KV{}, fmt.Errorf("get %s: %w", key, err)
	}
	if len(resp.Kvs) == 0 {
		return KV{Key: key}, nil
	}
	return KV{Key: key, Value: resp.Kvs[0].Value, ModRevision: resp.Kvs[0].ModRevision}, nil
}

// Range implements Storage.
func (e *Etcd) Range(ctx context.Context, prefix string) ([]KV, error) {
	const page = 500
	var out []KV
	end := clientv3.GetPrefixRangeEnd(prefix)
	for from := prefix; ; {
		resp, err := e.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil {
			return nil, fmt.Errorf("range %s: %w", prefix, err)
		}
		for _, kv := range resp.Kvs {
			out = append(out, KV{Key: string(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision})
		}
		if !resp.More {
			return out, nil
		}
		from = out[len(out)-1].Key + "\x00"
	}
}

// Txn implements Storage.
func (e *Etcd) Txn(ctx context.Context, conds []Cond, ops []Op) (int64, error) {
	cmps := make([]clientv3.Cmp, len(conds))
	for i, c := range conds {
		if c.ByRev {
			cmps[i] = clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Rev)
		} else {
			cmps[i] = clientv3.Compare(clientv3.Value(c.Key), "=", string(c.Value))
		}
	}
	puts := make([]clientv3.Op, len(ops))
	for i, o := range ops {
		if o.Value == nil {
			puts[i] = clientv3.OpDelete(o.Key)
		} else {
			puts[i] = clientv3.OpPut(o.Key, string(o.Value))
		}
	}
	resp, err := e.client.Txn(ctx).If(cmps...).Then(puts...).Commit()
	if err != nil {
		return 0, fmt.Errorf("txn: %w", err)
	}
	if !resp.Succeeded {
		return 0, ErrConflict
	}
	return resp.Header.Revision, nil
}

// Watch implements Storage.
func (e *Etcd) Watch(ctx context.Context, key string, fromRev int64) <-chan Event {
	out := make(chan Event, 16)
	go e.watch(ctx, key, fromRev, out) // ends with ctx or when the watch breaks
	return out
}

func (e *Etcd) watch(ctx context.Context, key string, fromRev int64, out chan<- Event) {
	defer close(out)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range e.client.Watch(ctx, key, clientv3.WithRev(fromRev+1)) {
		if resp.Err() != nil {
			return
		}
		for _, ev := range resp.Events {
			e := Event{
				KV:      KV{Key: key, Value: ev.Kv.Value, ModRevision: ev.Kv.ModRevision},
				Deleted: ev.Type == clientv3.EventTypeDelete,
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}
}
