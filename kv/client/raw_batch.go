package client

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

const (
	// batchKeys and batchBytes bound what one request has of a batch.
	batchKeys  = 1024
	batchBytes = 512 << 10
)

// BatchGet returns the value of each key, nil for one that does not exist. What one request asks a
// region for is of one moment; the whole is not.
func (c *Client) BatchGet(ctx context.Context, keys [][]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	left := newLeft(len(keys), func(i int) ([]byte, int) { return keys[i], 0 })
	for len(left.places) > 0 {
		var places []int
		var got *kvrpcpb.RawBatchGetResponse
		do := func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
		) (*errorpb.Error, string, error) {
			places = left.in(r)
			req := &kvrpcpb.RawBatchGetRequest{Context: kctx, Cf: c.cf}
			for _, i := range places {
				req.Keys = append(req.Keys, keys[i])
			}
			var err error
			if got, err = s.RawBatchGet(ctx, req); err != nil {
				return withoutBatches(r, err)
			}
			return got.RegionError, got.Error, nil
		}
		if err := c.retry(ctx, left.first(), patience{answer: 5 * c.opts.AttemptTimeout},
			do); err != nil {
			return nil, err
		}
		read := places[:max(1, min(int(got.Read), len(places)))]
		next := 0
		for _, i := range read { // the pairs are in the order of the keys
			if next < len(got.Pairs) && string(got.Pairs[next].Key) == string(keys[i]) {
				values[i] = append([]byte{}, got.Pairs[next].Value...)
				next++
			}
		}
		left.done(read)
	}
	return values, nil
}

// BatchPut sets pairs; of a key that comes twice, the later one stays. The pairs of one request to
// a region are set in one step, at most once; the whole is not one step, and after an error a part
// may be set. ttls are seconds that keys live, 0 for ever: none, one for all, or one for each.
func (c *Client) BatchPut(ctx context.Context, pairs []KV, ttls ...uint64) error {
	if n := len(ttls); n > 1 && n != len(pairs) {
		return &RequestError{fmt.Sprintf("%d TTLs for %d pairs", n, len(pairs))}
	}
	b := &batchWrite{
		c: c,
		left: newLeft(len(pairs), func(i int) ([]byte, int) {
			return pairs[i].Key, len(pairs[i].Value)
		}),
	}
	b.send = func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion, places []int,
	) (uint64, *errorpb.Error, string, error) {
		req := &kvrpcpb.RawBatchPutRequest{Context: kctx, Cf: c.cf}
		for _, i := range places {
			req.Pairs = append(req.Pairs, &kvrpcpb.KvPair{Key: pairs[i].Key, Value: pairs[i].Value})
			if len(ttls) > 1 {
				req.Ttls = append(req.Ttls, ttls[i])
			}
		}
		if len(ttls) == 1 {
			req.Ttls = ttls
		}
		resp, err := s.RawBatchPut(ctx, req)
		if err != nil {
			region, text, err := withoutBatches(r, err)
			return 0, region, text, err
		}
		return resp.LogIndex, resp.RegionError, resp.Error, nil
	}
	return b.run(ctx)
}

// BatchDelete removes keys, those that do not exist too, as BatchPut sets them.
func (c *Client) BatchDelete(ctx context.Context, keys [][]byte) error {
	b := &batchWrite{
		c: c, left: newLeft(len(keys), func(i int) ([]byte, int) { return keys[i], 0 }),
	}
	b.send = func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion, places []int,
	) (uint64, *errorpb.Error, string, error) {
		req := &kvrpcpb.RawBatchDeleteRequest{Context: kctx, Cf: c.cf}
		for _, i := range places {
			req.Keys = append(req.Keys, keys[i])
		}
		resp, err := s.RawBatchDelete(ctx, req)
		if err != nil {
			region, text, err := withoutBatches(r, err)
			return 0, region, text, err
		}
		return resp.LogIndex, resp.RegionError, resp.Error, nil
	}
	return b.run(ctx)
}

// batchWrite sends a batch, part by part.
type batchWrite struct {
	c    *Client
	left *left
	send func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion, places []int,
	) (index uint64, region *errorpb.Error, text string, err error)
}

func (b *batchWrite) run(ctx context.Context) error {
	for len(b.left.places) > 0 {
		var places []int
		size := 0
		do := func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
		) (*errorpb.Error, string, error) {
			switch {
			case len(kctx.WriteOrigins) == 0:
				places = b.left.in(r)
			case !b.left.allIn(r, places):
				return nil, splitInDoubt, nil
			}
			index, region, text, err := b.send(ctx, s, kctx, r, places)
			if err == nil && region == nil && text == "" {
				b.c.advance(r, index)
			}
			return region, text, err
		}
		for _, i := range b.left.places[:min(batchKeys, len(b.left.places))] {
			_, n := b.left.of(i)
			size += n
		}
		if err := b.c.retry(ctx, b.left.first(), b.c.writing(min(size, batchBytes)),
			do); err != nil {
			return err
		}
		b.left.done(places)
	}
	return nil
}

// left are the places of a batch that are still to be done, in order.
type left struct {
	places []int
	// of is the key at a place and the bytes of its value.
	of func(i int) (key []byte, size int)
}

func newLeft(n int, of func(i int) ([]byte, int)) *left {
	l := &left{places: make([]int, n), of: of}
	for i := range l.places {
		l.places[i] = i
	}
	return l
}

func (l *left) first() []byte {
	key, _ := l.of(l.places[0])
	return key
}

// in are the places of keys in a region, as many as one request takes, beginning with the first.
func (l *left) in(r *cachedRegion) (places []int) {
	bytes := 0
	for _, i := range l.places {
		key, size := l.of(i)
		if !r.contains(key) {
			continue
		}
		bytes += len(key) + size
		if len(places) == batchKeys || bytes > batchBytes && len(places) > 0 {
			break
		}
		places = append(places, i)
	}
	return places
}

func (l *left) allIn(r *cachedRegion, places []int) bool {
	for _, i := range places {
		if key, _ := l.of(i); !r.contains(key) {
			return false
		}
	}
	return true
}

// done takes places out, which are in order.
func (l *left) done(places []int) {
	kept := l.places[:0]
	for _, i := range l.places {
		if len(places) > 0 && places[0] == i {
			places = places[1:]
			continue
		}
		kept = append(kept, i)
	}
	l.places = kept
}

// Sum is what Checksum returns: the CRC-64/XZ of each key followed by its value, exclusive or; the
// number of pairs; their bytes.
type Sum struct{ Checksum, Pairs, Bytes uint64 }

// Checksum sums up the pairs of [start, end), region by region; an empty end is unbounded. Equal
// pairs have equal sums, however they lie in regions.
func (c *Client) Checksum(ctx context.Context, start, end []byte) (Sum, error) {
	var sum Sum
	for {
		var upper []byte
		var got *kvrpcpb.RawChecksumResponse
		do := func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
		) (*errorpb.Error, string, error) {
			upper = within(r, end)
			var err error
			got, err = s.RawChecksum(ctx,
				&kvrpcpb.RawChecksumRequest{
					Context: kctx, StartKey: start, EndKey: upper, Cf: c.cf,
				})
			if err != nil {
				return withoutBatches(r, err)
			}
			return got.RegionError, got.Error, nil
		}
		if err := c.retryWith(ctx, start, patience{answer: 10 * c.opts.AttemptTimeout},
			do); err != nil {
			return Sum{}, err
		}
		sum.Checksum ^= got.Checksum
		sum.Pairs += got.TotalKvs
		sum.Bytes += got.TotalBytes
		if len(upper) == 0 || string(upper) == string(end) {
			return sum, nil
		}
		start = upper
	}
}

// withoutBatches is what an attempt returns for an error of its call, as olderStore is.
func withoutBatches(r *cachedRegion, err error) (*errorpb.Error, string, error) {
	if status.Code(err) != codes.Unimplemented {
		return nil, "", err
	}
	return nil, fmt.Sprintf("store %d is of a version without batches and checksums: "+
		"every store of the cluster must run a newer one", r.leader.GetStoreId()), nil
}
