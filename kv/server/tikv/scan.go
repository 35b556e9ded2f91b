package tikv

import (
	"bytes"
	"context"
	"fmt"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	own "github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	ownmeta "github.com/tinykv/tinykv/proto/pkg/metapb"
)

// scanRange is one range of a scan: [lower, upper) in either direction.
type scanRange struct {
	lower, upper []byte
	limit        int
	reverse      bool
	keyOnly      bool
}

// rangeOf turns the bounds of a request round if it goes backwards: they stand in the order of the
// walk.
func rangeOf(start, end []byte, limit uint32, reverse, keyOnly bool) scanRange {
	r := scanRange{lower: start, upper: end, limit: int(limit), reverse: reverse, keyOnly: keyOnly}
	if reverse {
		r.lower, r.upper = end, start
	}
	return r
}

func (s *Service) checkScan(limit uint32, ranges ...scanRange) error {
	if most := s.cfg.Server.MaxScanLimit; limit > most {
		return &requestError{
			fmt.Sprintf("the limit of %d pairs exceeds the most allowed, %d", limit, most),
		}
	}
	for _, r := range ranges {
		if most := int(s.cfg.Server.MaxKeySize); len(r.lower) > most+1 || len(r.upper) > most+1 {
			return &requestError{
				fmt.Sprintf("a bound of the scan exceeds the key limit of %d bytes", most),
			}
		}
	}
	return nil
}

// RawScan implements tikvpb.Tikv. It stays within the region. Clients take fewer pairs than the
// limit for the region's end, so nothing else may cut the answer.
func (s *Service) RawScan(
	ctx context.Context,
	req *kvrpcpb.RawScanRequest,
) (*kvrpcpb.RawScanResponse, error) {
	one := rangeOf(req.StartKey, req.EndKey, req.Limit, req.Reverse, req.KeyOnly)
	pairs, err := s.scan(ctx, req.Context, req.Cf, req.Limit, []scanRange{one})
	resp := &kvrpcpb.RawScanResponse{}
	var rpc error
	if resp.RegionError, rpc = readOutcome(err); err == nil {
		resp.Kvs = pairs
	}
	return resp, rpc
}

// RawBatchScan implements tikvpb.Tikv: ranges of one region, at one moment.
func (s *Service) RawBatchScan(
	ctx context.Context,
	req *kvrpcpb.RawBatchScanRequest,
) (*kvrpcpb.RawBatchScanResponse, error) {
	resp := &kvrpcpb.RawBatchScanResponse{}
	var err error
	var ranges []scanRange
	if n := len(req.Ranges); n > rawops.MaxKeys {
		err = tooMany(n)
	} else {
		for _, r := range req.Ranges {
			one := rangeOf(r.GetStartKey(), r.GetEndKey(), req.EachLimit, req.Reverse, req.KeyOnly)
			ranges = append(ranges, one)
		}
		resp.Kvs, err = s.scan(ctx, req.Context, req.Cf, req.EachLimit, ranges)
	}
	var rpc error
	if resp.RegionError, rpc = readOutcome(err); err != nil {
		resp.Kvs = nil
	}
	return resp, rpc
}

func (s *Service) scan(
	ctx context.Context,
	c *kvrpcpb.Context,
	cfName string,
	limit uint32,
	ranges []scanRange,
) ([]*kvrpcpb.KvPair, error) {
	to, cf, err := s.target(c, cfName)
	if err == nil {
		err = s.checkScan(limit, ranges...)
	}
	if err != nil {
		return nil, err
	}
	// The upper bound may equal the region's end, and the lower one of a walk backwards may lie
	// below its start.
	r, err := s.storage.Reader(ctx, to, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var pairs []*kvrpcpb.KvPair
	room := maxScanBytes
	for _, rng := range ranges {
		if err := rng.begins(r, to); err != nil {
			return nil, err
		}
		if pairs, err = rng.fill(ctx, pairs, r, cf, &room); err != nil {
			return nil, err
		}
	}
	return pairs, nil
}

// begins refuses a scan that begins in another region: the part in this one would pass for all of
// it.
func (r *scanRange) begins(view storage.Reader, to *own.Context) error {
	if !r.reverse {
		return rawops.Within(view, to.RegionId, r.lower)
	}
	start, end := view.Range()
	outside := len(end) > 0 && (len(r.upper) == 0 || bytes.Compare(r.upper, end) > 0)
	if outside || len(r.upper) > 0 && bytes.Compare(r.upper, start) < 0 {
		return &regionerr.KeyNotInRegionError{
			Key: r.upper, Region: &ownmeta.Region{Id: to.RegionId, StartKey: start, EndKey: end},
		}
	}
	return nil
}

// fill appends the pairs of a range.
func (r *scanRange) fill(
	ctx context.Context,
	pairs []*kvrpcpb.KvPair,
	view storage.Reader,
	cf engine.CF,
	room *int,
) ([]*kvrpcpb.KvPair, error) {
	if r.limit == 0 {
		return pairs, nil
	}
	it := view.Iterate(cf, r.lower, r.upper)
	defer it.Close()
	next, first := it.Next, it.First
	if r.reverse {
		next, first = it.Prev, it.Last
	}
	n, held := 0, rpc.RoomOf(ctx)
	for first(); it.Valid() && n < r.limit; next() {
		if n%1024 == 1023 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		pair := &kvrpcpb.KvPair{Key: bytes.Clone(it.Key())}
		if !r.keyOnly {
			pair.Value = bytes.Clone(it.Value())
		}
		if *room -= len(pair.Key) + len(pair.Value) + 16; *room < 0 {
			return nil, errAnswerTooLarge
		}
		if !held.Gather(maxScanBytes - *room) {
			return nil, &regionerr.BusyError{Reason: rpc.NoRoom}
		}
		pairs = append(pairs, pair)
		n++
	}
	return pairs, it.Err()
}

// RawChecksum implements tikvpb.Tikv. The ranges are clipped to the region, as clients expect.
func (s *Service) RawChecksum(
	ctx context.Context,
	req *kvrpcpb.RawChecksumRequest,
) (*kvrpcpb.RawChecksumResponse, error) {
	resp := &kvrpcpb.RawChecksumResponse{}
	err := s.checksum(ctx, req, resp)
	if err != nil {
		*resp = kvrpcpb.RawChecksumResponse{}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

func (s *Service) checksum(
	ctx context.Context,
	req *kvrpcpb.RawChecksumRequest,
	resp *kvrpcpb.RawChecksumResponse,
) error {
	if req.Algorithm != kvrpcpb.ChecksumAlgorithm_Crc64_Xor {
		return &requestError{"unknown checksum algorithm " + req.Algorithm.String()}
	}
	to, cf, err := s.target(req.Context, "")
	if err != nil {
		return err
	}
	r, err := s.storage.Reader(ctx, to, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	var sum rawops.Sum
	for _, rng := range req.Ranges {
		if err := sum.Add(ctx, r, cf, rng.GetStartKey(), rng.GetEndKey()); err != nil {
			return err
		}
	}
	resp.Checksum, resp.TotalKvs, resp.TotalBytes = sum.Checksum, sum.Pairs, sum.Bytes
	return nil
}

// SplitRegion implements tikvpb.Tikv.
func (s *Service) SplitRegion(
	ctx context.Context,
	req *kvrpcpb.SplitRegionRequest,
) (*kvrpcpb.SplitRegionResponse, error) {
	resp := &kvrpcpb.SplitRegionResponse{}
	keys := req.SplitKeys
	//lint:ignore SA1019 old clients set nothing else
	if key := req.GetSplitKey(); len(key) > 0 &&
		len(keys) == 0 {
		keys = [][]byte{key}
	}
	to, keys, err := s.splitTarget(req.Context, keys, req.IsRawKv)
	switch {
	case err != nil:
	case s.split == nil:
		err = &requestError{"this store is not replicated: it has one region"}
	case len(keys) == 0:
		err = &requestError{"a split without keys"}
	default:
		var parts []*ownmeta.Region
		parts, err = s.split.Split(ctx, to, keys)
		resp.Regions = regions(parts)
	}
	if n := len(resp.Regions); n == 2 {
		resp.Left, resp.Right = resp.Regions[0], resp.Regions[1]
	}
	var rpc error
	resp.RegionError, rpc = readOutcome(err)
	return resp, rpc
}

// splitTarget checks whom a split is for, and its keys. Among transactions regions are bounded by
// encoded keys, which some requests have already.
func (s *Service) splitTarget(
	c *kvrpcpb.Context, keys [][]byte, encoded bool,
) (*own.Context, [][]byte, error) {
	if s.txn == nil {
		to, _, err := s.target(c, "", keys...)
		return to, keys, err
	}
	if encoded {
		to, err := s.txnTarget(c)
		return to, keys, err
	}
	to, err := s.txnTarget(c, keys...)
	places := make([][]byte, len(keys))
	for i, k := range keys {
		places[i] = memcomparable.Encode(k)
	}
	return to, places, err
}
