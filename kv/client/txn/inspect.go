package txn

import (
	"bytes"
	"context"
	"errors"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Records returns all that is stored of a key.
func (c *Client) Records(ctx context.Context, key []byte) (*kvrpcpb.MvccInfo, error) {
	var resp *kvrpcpb.MvccGetByKeyResponse
	err := c.kv.Call(ctx, memcomparable.Encode(key), 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.MvccGetByKey(ctx, &kvrpcpb.MvccGetByKeyRequest{Context: kctx, Key: key})
		resp = r
		return r.GetRegionError(), err
	})
	if err == nil && resp.Error != "" {
		err = errors.New("txn: " + resp.Error)
	}
	if err != nil {
		return nil, err
	}
	return resp.Info, nil
}

// lockPage is how many locks one answer has at most.
const lockPage = 1024

// Locks hands the locks of transactions that began by maxTS, on keys of [start, end), to visit, in
// key order, until that returns false. An empty end is unbounded.
func (c *Client) Locks(
	ctx context.Context, maxTS uint64, start, end []byte, visit func(*kvrpcpb.LockInfo) bool,
) error {
	req := &kvrpcpb.ScanLockRequest{MaxVersion: maxTS, StartKey: start, EndKey: end}
	err := c.lockPages(ctx, req, func(locks []*kvrpcpb.LockInfo) error {
		for _, l := range locks {
			if !visit(l) {
				return errEnough
			}
		}
		return nil
	})
	if err == errEnough {
		err = nil
	}
	return err
}

var errEnough = errors.New("txn: enough")

// lockPages hands the locks that a request is for, in all regions, to visit, page by page; an error
// of visit ends it.
func (c *Client) lockPages(
	ctx context.Context, from *kvrpcpb.ScanLockRequest, visit func([]*kvrpcpb.LockInfo) error,
) error {
	start := from.StartKey
	for {
		var resp *kvrpcpb.ScanLockResponse
		var at []byte // the end of the region
		err := c.kv.Call(ctx, memcomparable.Encode(start), 0, func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
		) (*errorpb.Error, error) {
			r, err := s.KvScanLock(ctx, &kvrpcpb.ScanLockRequest{
				Context: kctx, MaxVersion: from.MaxVersion, StartKey: start, EndKey: from.EndKey,
				Limit:       lockPage,
				RefuseOlder: from.RefuseOlder,
			})
			resp, at = r, region.EndKey
			return r.GetRegionError(), err
		})
		if err == nil && resp.Error != nil {
			err = keyError(resp.Error)
		}
		if err == nil && len(resp.Locks) > 0 {
			err = visit(resp.Locks)
		}
		if err != nil {
			return err
		}
		switch n := len(resp.Locks); {
		case n == lockPage:
			start = append(bytes.Clone(resp.Locks[n-1].Key), 0)
		case len(at) == 0:
			return nil
		default:
			if start, _, err = memcomparable.Decode(at); err != nil {
				return err
			}
		}
		if end := from.EndKey; len(end) > 0 && bytes.Compare(start, end) >= 0 {
			return nil
		}
	}
}
