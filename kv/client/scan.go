package client

import (
	"bytes"
	"context"
	"sync"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

const (
	// scanPage and scanBytes bound one answer of a scan.
	scanPage  = 1024
	scanBytes = 4 << 20
)

// Scan returns the pairs of [start, end) in key order, at most limit; an empty end is unbounded.
// What comes from one region is a linearizable snapshot of it; over several regions it is not one
// snapshot.
func (c *Client) Scan(ctx context.Context, start, end []byte, limit int) ([]KV, error) {
	var out []KV
	err := c.Pages(ctx, start, end, limit, func(page []KV) error {
		if len(out) == 0 {
			out = page // most often there is only this one
		} else {
			out = append(out, page...)
		}
		return nil
	})
	return out, err
}

// Visit calls visit for the pairs of [start, end) in key order, at most limit (0: all). It makes
// progress over splits and moves.
func (c *Client) Visit(
	ctx context.Context, start, end []byte, limit int, visit func(KV) error,
) error {
	return c.Pages(ctx, start, end, limit, func(page []KV) error {
		for _, kv := range page {
			if err := visit(kv); err != nil {
				return err
			}
		}
		return nil
	})
}

// Pages calls visit for the pairs of [start, end) page by page, at most limit pairs in all (0: no
// limit). Each page is a linearizable snapshot of a part of one region; it may be empty.
func (c *Client) Pages(
	ctx context.Context, start, end []byte, limit int, visit func(page []KV) error,
) error {
	return c.ScanPages(ctx, start, end, ScanOptions{Limit: limit}, visit)
}

// ScanOptions say what a scan shows.
type ScanOptions struct {
	// Limit is how many pairs at most; 0: all.
	Limit int
	// Reverse walks from the end of the range down.
	Reverse bool
	// KeysOnly leaves the values out.
	KeysOnly bool
}

// ScanPages is Pages with options. An empty end is unbounded in either direction.
func (c *Client) ScanPages(
	ctx context.Context, start, end []byte, o ScanOptions, visit func(page []KV) error,
) error {
	left := o.Limit
	for {
		p := page{limit: scanPage, keysOnly: o.KeysOnly}
		if o.Limit > 0 {
			p.limit = min(p.limit, left)
		}
		var pairs []KV
		var next []byte
		var done bool
		var err error
		if o.Reverse {
			pairs, next, done, err = c.scanPageBack(ctx, start, end, p)
		} else {
			pairs, next, done, err = c.scanPage(ctx, start, end, p)
		}
		if err != nil {
			return err
		}
		if err := visit(pairs); err != nil {
			return err
		}
		if left -= len(pairs); done || (o.Limit > 0 && left <= 0) {
			return nil
		}
		if o.Reverse {
			end = next
		} else {
			start = next
		}
	}
}

// page is what one answer of a scan may hold.
type page struct {
	limit    int
	keysOnly bool
}

// scanPage asks one region once; next is where to go on.
func (c *Client) scanPage(
	ctx context.Context, start, end []byte, p page,
) (pairs []KV, next []byte, done bool, err error) {
	do := func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
	) (*errorpb.Error, string, error) {
		upper := within(r, end)
		resp, err := s.RawScan(ctx, &kvrpcpb.RawScanRequest{
			Context: kctx, StartKey: start, EndKey: upper, Limit: uint32(p.limit),
			KeyOnly: p.keysOnly, Cf: c.cf, MaxBytes: scanBytes,
		})
		if err != nil || resp.RegionError != nil || resp.Error != "" {
			if err != nil {
				return nil, "", err
			}
			return resp.RegionError, resp.Error, nil
		}
		pairs = make([]KV, 0, len(resp.Kvs))
		for _, kv := range resp.Kvs {
			pairs = append(pairs, KV{kv.Key, kv.Value})
		}
		if n := len(pairs); n > 0 && (n == p.limit || resp.More) {
			next, done = append(bytes.Clone(pairs[n-1].Key), 0), false
			return nil, "", nil
		}
		// The region is exhausted up to upper.
		next, done = upper, len(upper) == 0 || bytes.Equal(upper, end)
		return nil, "", nil
	}
	err = c.retryWith(ctx, start, patience{answer: 5 * c.opts.AttemptTimeout}, do)
	return pairs, next, done, err
}

// scanPageBack asks the region that ends at the range's end, or behind it, once for its last pairs;
// next is where the rest ends. Regions are found by a key that they have, and no key is known to
// lie right below end. So the search begins a little below it and goes up.
func (c *Client) scanPageBack(
	ctx context.Context, start, end []byte, p page,
) (pairs []KV, next []byte, done bool, err error) {
	anchor, up := below(end), false
	do := func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
	) (*errorpb.Error, string, error) {
		first, last := r.meta.StartKey, r.meta.EndKey
		if up = len(last) > 0 && (len(end) == 0 || bytes.Compare(last, end) < 0); up {
			anchor = last
			return nil, "", nil
		}
		lower := start
		if bytes.Compare(first, lower) > 0 {
			lower = first
		}
		resp, err := s.RawScan(ctx, &kvrpcpb.RawScanRequest{
			Context: kctx, StartKey: end, EndKey: lower, Limit: uint32(p.limit),
			KeyOnly: p.keysOnly, Cf: c.cf, MaxBytes: scanBytes,
			Reverse: true,
		})
		if err != nil {
			return nil, "", err
		}
		pairs = make([]KV, 0, len(resp.Kvs))
		for _, kv := range resp.Kvs {
			pairs = append(pairs, KV{kv.Key, kv.Value})
		}
		if n := len(pairs); n > 0 && (n == p.limit || resp.More) {
			next, done = pairs[n-1].Key, false
		} else {
			next, done = lower, bytes.Compare(lower, start) <= 0
		}
		return resp.RegionError, resp.Error, nil
	}
	for again := true; again && err == nil; again = up {
		err = c.retryWith(ctx, anchor, patience{answer: 5 * c.opts.AttemptTimeout}, do)
	}
	return pairs, next, done, err
}

// below is a key a little below end; empty stands for the end of all keys.
func below(end []byte) []byte {
	high := bytes.Repeat([]byte{0xff}, 16)
	n := len(end)
	switch {
	case n == 0:
		return high
	case end[n-1] == 0:
		return end[:n-1]
	}
	key := bytes.Clone(end)
	key[n-1]--
	return append(key, high...)
}

// PutAll sets many keys with the given number of concurrent writers. It is not atomic: on an error
// some pairs may be set and others not. The first error is returned.
func (c *Client) PutAll(ctx context.Context, pairs []KV, writers int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ch := make(chan KV)
	var wg sync.WaitGroup
	for range max(1, writers) {
		wg.Add(1)
		// Ends when ch is closed or ctx is done.
		go func() {
			defer wg.Done()
			for kv := range ch {
				if err := c.Put(ctx, kv.Key, kv.Value); err != nil {
					cancel(err)
				}
			}
		}()
	}
	for _, kv := range pairs {
		if ctx.Err() != nil {
			break
		}
		ch <- kv
	}
	close(ch)
	wg.Wait()
	return context.Cause(ctx)
}
