package txn

import (
	"bytes"
	"context"
	"fmt"
	"math"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// ResolveExpired ends the transactions that began by a timestamp and whose locks' time is over,
// wherever they have locks, and returns how many locks it has met of them.
func (c *Client) ResolveExpired(ctx context.Context, before uint64) (ended int, err error) {
	err = c.lockPages(ctx, &kvrpcpb.ScanLockRequest{MaxVersion: before},
		func(locks []*kvrpcpb.LockInfo) error {
			n, err := c.resolveAll(ctx, locks, false)
			ended += n
			return err
		})
	return ended, err
}

// ResolveAll ends all transactions that began by a safe point, alive or not, and returns how many
// locks it has met. The safe point must be in force for transactions. After it none of them has a
// lock in the cluster, or gets one.
func (c *Client) ResolveAll(ctx context.Context, safePoint uint64) (ended int, err error) {
	old := &kvrpcpb.ScanLockRequest{MaxVersion: safePoint, RefuseOlder: true}
	err = c.lockPages(ctx, old, func(locks []*kvrpcpb.LockInfo) error {
		n, err := c.resolveAll(ctx, locks, true)
		ended += n
		return err
	})
	return ended, err
}

// resolveAll resolves the locks of transactions that have ended; with force it ends all others. It
// asks once for each transaction.
func (c *Client) resolveAll(
	ctx context.Context, locks []*kvrpcpb.LockInfo, force bool,
) (ended int, err error) {
	now := uint64(math.MaxUint64)
	if !force {
		if now, err = c.Timestamp(ctx); err != nil {
			return 0, err
		}
	}
	known := map[uint64]fate{}
	for _, l := range locks {
		of, asked := known[l.LockVersion]
		if !asked {
			if of, err = c.fate(ctx, l, now); err != nil {
				return ended, err
			}
			known[l.LockVersion] = of
		}
		switch {
		case of.alive && force:
			return ended, fmt.Errorf("txn: the transaction %d does not end", l.LockVersion)
		case of.alive:
			continue
		}
		if err := c.resolveAt(ctx, l.Key, l.LockVersion, of.commitTS); err != nil {
			return ended, err
		}
		ended++
	}
	return ended, nil
}

// Collected is what a step of Collect has done.
type Collected struct{ Versions, Bytes, Locked uint64 }

// Collect has each region's leader remove the records that no transaction can see which begins at
// safePoint or later. The safe point must be in force for garbage, and ResolveAll must have been
// done for it. step is called after each step.
func (c *Client) Collect(
	ctx context.Context, safePoint uint64, step func(ctx context.Context, done Collected) error,
) error {
	var start []byte
	for {
		var resp *kvrpcpb.CollectGarbageResponse
		var end []byte
		err := c.kv.Call(ctx, memcomparable.Encode(start), 0, func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
		) (*errorpb.Error, error) {
			r, err := s.CollectGarbage(ctx, &kvrpcpb.CollectGarbageRequest{
				Context: kctx, SafePoint: safePoint, StartKey: start,
			})
			resp, end = r, region.EndKey
			return r.GetRegionError(), err
		})
		if err == nil && resp.Error != nil {
			err = keyError(resp.Error)
		}
		if err == nil {
			err = step(ctx,
				Collected{Versions: resp.Versions, Bytes: resp.Bytes, Locked: resp.Locked})
		}
		switch {
		case err != nil:
			return err
		case !resp.Done:
			start = bytes.Clone(resp.NextKey)
		case len(end) == 0:
			return nil
		default:
			if start, _, err = memcomparable.Decode(end); err != nil {
				return err
			}
		}
	}
}
