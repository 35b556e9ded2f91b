package txn

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

const (
	// maxGets is how many regions a BatchGet asks at a time, maxGetKeys how many keys one request
	// has.
	maxGets    = 16
	maxGetKeys = 1024
)

// BatchGet returns the values of those of the keys that exist.
func (t *Txn) BatchGet(ctx context.Context, keys [][]byte) (map[string][]byte, error) {
	if t.ended {
		return nil, ErrFinished
	}
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
	slices.SortFunc(left, bytes.Compare)
	left = slices.CompactFunc(left, bytes.Equal)
	var mu sync.Mutex
	groups := t.c.groups(left)
	err := parallel(ctx, len(groups), maxGets, func(ctx context.Context, i int) error {
		return t.c.batchGet(ctx, groups[i], t.startTS, func(key string, value []byte) {
			mu.Lock()
			defer mu.Unlock()
			out[key] = value
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// groups cuts sorted keys where regions are known to end.
func (c *Client) groups(keys [][]byte) (out [][][]byte) {
	for len(keys) > 0 {
		n := 1
		if r := c.kv.KnownRegion(memcomparable.Encode(keys[0])); r != nil {
			n = max(1, within(r, keys))
		}
		out, keys = append(out, keys[:n]), keys[n:]
	}
	return out
}

// batchGet reads sorted keys, with one request for each region, and resolves locks that are in the
// way.
func (c *Client) batchGet(
	ctx context.Context, keys [][]byte, ts uint64, found func(key string, value []byte),
) error {
	wait, most := backoff{}, maxGetKeys
	for len(keys) > 0 {
		n, locks, err := c.batchGetOnce(ctx, keys[:min(len(keys), most)], ts, found)
		if status.Code(err) == codes.ResourceExhausted && most > 1 {
			most /= 2 // the values are too large for one answer
			continue
		}
		if err != nil {
			return err
		}
		if len(locks) == 0 {
			keys = keys[n:]
			continue
		}
		infos, again := make([]*kvrpcpb.LockInfo, len(locks)),
			make([][]byte, 0, len(locks)+len(keys)-n)
		for i, p := range locks {
			infos[i] = p.Error.Locked
			again = append(again, p.Key)
		}
		if err := c.pass(ctx, &wait, infos...); err != nil {
			return err
		}
		keys = append(again, keys[n:]...)
	}
	return nil
}

// batchGetOnce asks one region for the first n of the keys. locks are the pairs of those that are
// locked.
func (c *Client) batchGetOnce(
	ctx context.Context, keys [][]byte, ts uint64, found func(key string, value []byte),
) (n int, locks []*kvrpcpb.KvPair, err error) {
	var resp *kvrpcpb.BatchGetResponse
	err = c.kv.Call(ctx, memcomparable.Encode(keys[0]), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
	) (*errorpb.Error, error) {
		n = max(1, within(region, keys))
		r, err := s.KvBatchGet(ctx,
			&kvrpcpb.BatchGetRequest{Context: kctx, Keys: keys[:n], Version: ts})
		resp = r
		return r.GetRegionError(), err
	})
	if err == nil && resp.Error != nil {
		err = keyError(resp.Error)
	}
	if err != nil {
		return 0, nil, err
	}
	for _, p := range resp.Pairs {
		switch {
		case p.Error == nil:
			found(string(p.Key), append([]byte{}, p.Value...))
		case p.Error.Locked == nil:
			return 0, nil, keyError(p.Error)
		default:
			locks = append(locks, p)
		}
	}
	return n, locks, nil
}

// KV is a pair.
type KV struct{ Key, Value []byte }

// scanPage is how many pairs one answer of a scan has at most.
const scanPage = 256

// Scan returns the pairs of [start, end) in key order, at most limit; an empty end is unbounded, a
// limit of 0 as well.
func (t *Txn) Scan(ctx context.Context, start, end []byte, limit int) ([]KV, error) {
	return t.merge(ctx, span{start, end, false}, limit)
}

// ReverseScan is Scan from the end of [start, end) on, in descending order.
func (t *Txn) ReverseScan(ctx context.Context, start, end []byte, limit int) ([]KV, error) {
	return t.merge(ctx, span{start, end, true}, limit)
}

// span is the keys of [start, end), in one of the two orders.
type span struct {
	start, end []byte
	reverse    bool
}

func (s span) has(key string) bool {
	return key >= string(s.start) && (len(s.end) == 0 || key < string(s.end))
}

// before tells whether a comes before b.
func (s span) before(a, b string) bool { return a != b && (a < b) != s.reverse }

// merge reads a span and adds what the transaction itself has written.
func (t *Txn) merge(ctx context.Context, s span, limit int) ([]KV, error) {
	if t.ended {
		return nil, ErrFinished
	}
	var own []string
	for k := range t.writes {
		if _, _, known := t.own([]byte(k)); known && s.has(k) {
			own = append(own, k)
		}
	}
	slices.Sort(own)
	if s.reverse {
		slices.Reverse(own)
	}
	var out []KV
	full := func() bool { return limit > 0 && len(out) >= limit }
	addOwn := func() {
		if value, found, _ := t.own([]byte(own[0])); found {
			out = append(out, KV{[]byte(own[0]), value})
		}
		own = own[1:]
	}
	page := scanPage
	if limit > 0 {
		page = min(page, limit)
	}
	err := t.c.scan(ctx, s, t.startTS, page, func(kv KV) bool {
		for len(own) > 0 && s.before(own[0], string(kv.Key)) && !full() {
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

// scan hands the pairs of a span at a timestamp to visit until that returns false. One answer has
// at most limit pairs.
func (c *Client) scan(
	ctx context.Context, s span, ts uint64, limit int, visit func(KV) bool,
) error {
	for more := true; more; {
		page, rest, err := c.scanOnce(ctx, s, ts, limit)
		if status.Code(err) == codes.ResourceExhausted && limit > 1 {
			limit /= 2 // the pairs are too large for one answer
			continue
		}
		if err != nil {
			return err
		}
		for _, p := range page {
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
		if more = rest != nil; more {
			s = *rest
		}
	}
	return nil
}

// top is a place behind that of every key.
var top = bytes.Repeat([]byte{0xFF}, memcomparable.Size(64<<10))

// last is a place just before that of a key: all keys below it lie in the regions up to that of the
// place. Regions end where the place of a key begins, and no such place lies between the two.
func last(end []byte) []byte {
	if len(end) == 0 {
		return top
	}
	place := memcomparable.Encode(end)
	place[len(place)-1]-- // the marker of the last group is never 0
	return append(place, 0xFF)
}

// scanOnce asks one region. rest is where to go on, nil at the end.
func (c *Client) scanOnce(
	ctx context.Context, s span, ts uint64, limit int,
) (pairs []*kvrpcpb.KvPair, rest *span, err error) {
	place := memcomparable.Encode(s.start)
	if s.reverse {
		place = last(s.end)
	}
	err = c.kv.Call(ctx, place, 0, func(
		ctx context.Context, to tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
	) (*errorpb.Error, error) {
		req := &kvrpcpb.ScanRequest{
			Context: kctx, StartKey: s.start, EndKey: s.end, Limit: uint32(limit), Version: ts,
			Reverse: s.reverse,
		}
		if s.reverse {
			req.StartKey, req.EndKey = s.end, s.start
		}
		resp, err := to.KvScan(ctx, req)
		if err != nil || resp.RegionError != nil {
			return resp.GetRegionError(), err
		}
		pairs = resp.Pairs
		rest, err = s.behind(region, pairs, limit)
		return nil, err
	})
	return pairs, rest, err
}

// behind is what is left of the span after an answer of a region; nil if nothing is.
func (s span) behind(region *metapb.Region, pairs []*kvrpcpb.KvPair, limit int) (*span, error) {
	n := len(pairs)
	switch {
	case n == limit && s.reverse:
		s.end = pairs[n-1].Key
	case n == limit:
		s.start = append(bytes.Clone(pairs[n-1].Key), 0)
	case s.reverse && len(region.StartKey) == 0, !s.reverse && len(region.EndKey) == 0:
		return nil, nil
	case s.reverse:
		key, _, err := memcomparable.Decode(region.StartKey)
		if err != nil {
			return nil, err
		}
		s.end = key
	default:
		key, _, err := memcomparable.Decode(region.EndKey)
		if err != nil {
			return nil, err
		}
		s.start = key
	}
	if len(s.end) == 0 && s.reverse || len(s.end) > 0 && bytes.Compare(s.start, s.end) >= 0 {
		return nil, nil
	}
	return &s, nil
}
