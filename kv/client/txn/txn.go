package txn

import (
	"bytes"
	"context"
	"math"
	"sync"
	"time"

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
	commits           Commits
	locks             locks
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

// Lock makes the commit fail if another transaction has written the key since this one began. It is
// for keys that are only read: two transactions that each read what the other one writes can both
// commit otherwise.
func (t *Txn) Lock(key []byte) {
	if _, written := t.writes[string(key)]; !written {
		t.writes[string(key)] = mutation{op: kvrpcpb.Op_Lock}
	}
}

// Own is the value that the transaction itself has given to a key, found is false if it has removed
// it; known is false if it has not changed it.
func (t *Txn) Own(key []byte) (value []byte, found, known bool) { return t.own(key) }

// own is the value that the transaction itself has given to a key; known is false if it has not
// changed it.
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

// newest is the timestamp of a read that sees what is committed when it is served.
const newest = math.MaxUint64

// Get returns the newest committed value of a key; found is false if there is none. It is
// linearizable with all transactions that have been acknowledged, and needs no timestamp: several
// reads that are to be of one moment need a transaction.
func (c *Client) Get(ctx context.Context, key []byte) (value []byte, found bool, err error) {
	return c.get(ctx, key, newest)
}

// get reads a key at a timestamp, and resolves locks that are in the way.
func (c *Client) get(
	ctx context.Context, key []byte, ts uint64,
) (value []byte, found bool, err error) {
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
