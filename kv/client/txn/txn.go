package txn

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Txn is a transaction. Not safe for concurrent use.
type Txn struct {
	c                 *Client
	startTS, commitTS uint64
	begun             time.Time
	writes            map[string]mutation
	ended             bool
}

// mutation is what the transaction does to a key.
type mutation struct {
	op    kvrpcpb.Op
	value []byte
}

// StartTS is the moment whose state the transaction sees.
func (t *Txn) StartTS() uint64 { return t.startTS }

// CommitTS is the moment at which it was committed; 0 before, and of one that has changed nothing.
func (t *Txn) CommitTS() uint64 { return t.commitTS }

// Set sets a key when the transaction is committed.
func (t *Txn) Set(key, value []byte) {
	t.writes[string(key)] = mutation{kvrpcpb.Op_Put, bytes.Clone(value)}
}

// Delete removes a key when the transaction is committed.
func (t *Txn) Delete(key []byte) { t.writes[string(key)] = mutation{op: kvrpcpb.Op_Del} }

// Lock makes the commit fail if another transaction has written the key since this one began. It is for keys that are only
// read: two transactions that each read what the other one writes can both commit otherwise.
func (t *Txn) Lock(key []byte) {
	if _, written := t.writes[string(key)]; !written {
		t.writes[string(key)] = mutation{op: kvrpcpb.Op_Lock}
	}
}

// own is the value that the transaction itself has given to a key; known is false if it has not changed it.
func (t *Txn) own(key []byte) (value []byte, found, known bool) {
	m, ok := t.writes[string(key)]
	if !ok || m.op == kvrpcpb.Op_Lock {
		return nil, false, false
	}
	return bytes.Clone(m.value), m.op == kvrpcpb.Op_Put, true
}

// Get returns the value of a key; found is false if there is none.
func (t *Txn) Get(ctx context.Context, key []byte) (value []byte, found bool, err error) {
	if t.ended {
		return nil, false, ErrFinished
	}
	if value, found, known := t.own(key); known {
		return value, found, nil
	}
	return t.c.get(ctx, key, t.startTS)
}

// maxGets is how many keys of a BatchGet are asked for at a time.
const maxGets = 16

// BatchGet returns the values of those of the keys that exist.
func (t *Txn) BatchGet(ctx context.Context, keys [][]byte) (map[string][]byte, error) {
	if t.ended {
		return nil, ErrFinished
	}
	var mu sync.Mutex
	out := make(map[string][]byte, len(keys))
	var left [][]byte
	for _, k := range keys {
		value, found, known := t.own(k)
		switch {
		case !known:
			left = append(left, k)
		case found:
			out[string(k)] = value
		}
	}
	err := parallel(ctx, len(left), maxGets, func(ctx context.Context, i int) error {
		value, found, err := t.c.get(ctx, left[i], t.startTS)
		if found {
			mu.Lock()
			out[string(left[i])] = value
			mu.Unlock()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// parallel runs f for 0 to n-1, at most width at a time; the first error ends it.
func parallel(ctx context.Context, n, width int, f func(ctx context.Context, i int) error) error {
	if n == 1 {
		return f(ctx, 0)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, width)
	for i := range n {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Add(1)
		// Ends with its calls; parallel waits for all.
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			if err := f(ctx, i); err != nil {
				cancel(err)
			}
		}()
	}
	wg.Wait()
	return context.Cause(ctx)
}

// get reads a key at a timestamp, and resolves locks that are in the way.
func (c *Client) get(ctx context.Context, key []byte, ts uint64) (value []byte, found bool, err error) {
	wait := backoff{}
	for {
		var resp *kvrpcpb.GetResponse
		err := c.kv.Call(ctx, memcomparable.Encode(key), 0, func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
		) (*errorpb.Error, error) {
			r, err := s.KvGet(ctx, &kvrpcpb.GetRequest{Context: kctx, Key: key, Version: ts})
			resp = r
			return r.GetRegionError(), err
		})
		switch {
		case err != nil:
			return nil, false, err
		case resp.Error == nil && resp.NotFound:
			return nil, false, nil
		case resp.Error == nil:
			return append([]byte{}, resp.Value...), true, nil
		case resp.Error.Locked == nil:
			return nil, false, keyError(resp.Error)
		}
		if err := c.pass(ctx, &wait, resp.Error.Locked); err != nil {
			return nil, false, err
		}
	}
}

// KV is a pair.
type KV struct{ Key, Value []byte }

// scanPage is how many pairs one answer of a scan has at most.
const scanPage = 256

// Scan returns the pairs of [start, end) in key order, at most limit; an empty end is unbounded, a limit of 0 as well.
func (t *Txn) Scan(ctx context.Context, start, end []byte, limit int) ([]KV, error) {
	if t.ended {
		return nil, ErrFinished
	}
	var own []string
	for k := range t.writes {
		_, _, known := t.own([]byte(k))
		if known && k >= string(start) && (len(end) == 0 || k < string(end)) {
			own = append(own, k)
		}
	}
	slices.Sort(own)
	var out []KV
	full := func() bool { return limit > 0 && len(out) >= limit }
	addOwn := func() {
		if value, found, _ := t.own([]byte(own[0])); found {
			out = append(out, KV{[]byte(own[0]), value})
		}
		own = own[1:]
	}
	err := t.c.scan(ctx, start, end, t.startTS, func(kv KV) bool {
		for len(own) > 0 && own[0] < string(kv.Key) && !full() {
			addOwn()
		}
		switch {
		case full():
		case len(own) > 0 && own[0] == string(kv.Key):
			addOwn()
		default:
			out = append(out, kv)
		}
		return !full()
	})
	if err != nil {
		return nil, err
	}
	for len(own) > 0 && !full() {
		addOwn()
	}
	return out, nil
}

// scan hands the pairs of [start, end) at a timestamp to visit until that returns false.
func (c *Client) scan(ctx context.Context, start, end []byte, ts uint64, visit func(KV) bool) error {
	limit := scanPage
	for {
		pairs, next, err := c.scanOnce(ctx, start, ts, limit)
		if status.Code(err) == codes.ResourceExhausted && limit > 1 {
			limit /= 2 // the pairs are too large for one answer
			continue
		}
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if len(end) > 0 && bytes.Compare(p.Key, end) >= 0 {
				return nil
			}
			kv := KV{p.Key, append([]byte{}, p.Value...)}
			if p.Error != nil {
				if p.Error.Locked == nil {
					return keyError(p.Error)
				}
				value, found, err := c.get(ctx, p.Key, ts) // it resolves the lock
				if err != nil {
					return err
				}
				if !found {
					continue
				}
				kv.Value = value
			}
			if !visit(kv) {
				return nil
			}
		}
		if next == nil || len(end) > 0 && bytes.Compare(next, end) >= 0 {
			return nil
		}
		start = next
	}
}

// scanOnce asks one region. next is where to go on, nil at the end.
func (c *Client) scanOnce(ctx context.Context, start []byte, ts uint64, limit int) (pairs []*kvrpcpb.KvPair, next []byte, err error) {
	err = c.kv.Call(ctx, memcomparable.Encode(start), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
	) (*errorpb.Error, error) {
		resp, err := s.KvScan(ctx, &kvrpcpb.ScanRequest{Context: kctx, StartKey: start, Limit: uint32(limit), Version: ts})
		if err != nil || resp.RegionError != nil {
			return resp.GetRegionError(), err
		}
		pairs, next = resp.Pairs, nil
		if n := len(pairs); n == limit {
			next = append(bytes.Clone(pairs[n-1].Key), 0)
		} else if len(region.EndKey) > 0 {
			next, _, err = memcomparable.Decode(region.EndKey)
		}
		return nil, err
	})
	return pairs, next, err
}
