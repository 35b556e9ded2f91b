package client

import (
	"bytes"
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// CompareAndSwap gives a key a value if it has the expected one, in one step that is linearizable
// with all other writes. A nil expected means that the key must not exist, a nil value deletes it;
// an empty slice is an empty value. It returns what the key had before, nil if there was nothing.
// It is carried out at most once, whatever is sent again; an UnknownError says that it may have
// been.
func (c *Client) CompareAndSwap(
	ctx context.Context, key, expected, value []byte,
) (previous []byte, swapped bool, err error) {
	return c.CompareAndSwapTTL(ctx, key, expected, value, 0)
}

// CompareAndSwapTTL is CompareAndSwap with a value that lives for a number of seconds; 0 is for
// ever.
func (c *Client) CompareAndSwapTTL(
	ctx context.Context, key, expected, value []byte, seconds uint64,
) (previous []byte, swapped bool, err error) {
	size := len(expected) + len(value)
	do := func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
	) (*errorpb.Error, string, error) {
		if region, text, err := c.keepsTTL(ctx, s, kctx, r, key, seconds); region != nil ||
			text != "" || err != nil {
			return region, text, err
		}
		resp, err := s.RawCAS(ctx, &kvrpcpb.RawCASRequest{
			Context: kctx, Key: key, Cf: c.cf, Value: value, Delete: value == nil,
			PreviousValue: expected, PreviousNotExist: expected == nil, Ttl: seconds,
		})
		if err != nil {
			return olderStore(r, err)
		}
		c.advance(r, resp.LogIndex)
		swapped, previous = resp.Succeed, nil
		if !resp.PreviousNotExist {
			previous = append([]byte{}, resp.PreviousValue...)
		}
		return resp.RegionError, resp.Error, nil
	}
	if err := c.retry(ctx, key, c.writing(size), do); err != nil {
		return nil, false, err
	}
	return previous, swapped, nil
}

// DeleteRange deletes the keys of [start, end); an empty end is unbounded. Each region is one
// write, carried out at most once; over several regions it is not atomic, and after an error a part
// may be deleted. UnknownError also if a region is split after an attempt of unknown outcome.
func (c *Client) DeleteRange(ctx context.Context, start, end []byte) error {
	if len(end) > 0 && bytes.Compare(start, end) >= 0 {
		return nil // there is nothing in it
	}
	for {
		var upper []byte
		do := func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
		) (*errorpb.Error, string, error) {
			switch last := within(r, end); {
			case len(kctx.WriteOrigins) == 0:
				upper = last
			case !reaches(last, upper):
				return nil, splitInDoubt, nil
			}
			resp, err := s.RawDeleteRange(ctx,
				&kvrpcpb.RawDeleteRangeRequest{
					Context: kctx, StartKey: start, EndKey: upper, Cf: c.cf,
				})
			if err != nil {
				return olderStore(r, err)
			}
			c.advance(r, resp.LogIndex)
			return resp.RegionError, resp.Error, nil
		}
		if err := c.retryWith(ctx, start, c.writing(0), do); err != nil {
			return err
		}
		if len(upper) == 0 || bytes.Equal(upper, end) {
			return nil
		}
		start = upper
	}
}

// splitInDoubt is why a write over several keys ends: an attempt may have been carried out, and the
// same write can not be a smaller one now. What is left of it would be a write of its own, and
// might delete or overwrite what others have put since.
const splitInDoubt = "the region was split after an attempt of unknown outcome"

// reaches tells whether a range that ends at last has all that one up to upper has; empty is
// unbounded.
func reaches(last, upper []byte) bool {
	return len(last) == 0 || len(upper) > 0 && bytes.Compare(last, upper) >= 0
}

// olderStore is what an attempt returns for an error of its call: a store that does not know the
// call is of an older version, which ends the request.
func olderStore(r *cachedRegion, err error) (*errorpb.Error, string, error) {
	if status.Code(err) != codes.Unimplemented {
		return nil, "", err
	}
	return nil, fmt.Sprintf("store %d is of a version without compare-and-swap and range deletes: "+
		"every store of the cluster must run a newer one", r.leader.GetStoreId()), nil
}

// within is the end of the part of a range that lies in a region; empty is unbounded.
func within(r *cachedRegion, end []byte) []byte {
	if last := r.meta.EndKey; len(last) > 0 && (len(end) == 0 || bytes.Compare(last, end) < 0) {
		return last
	}
	return end
}

// Count returns how many keys are in [start, end), region by region; an empty end is unbounded.
func (c *Client) Count(ctx context.Context, start, end []byte) (int, error) {
	n := 0
	for {
		keys, next, done, err := c.scanPage(ctx, start, end, page{limit: scanPage, keysOnly: true})
		if err != nil {
			return 0, err
		}
		if n += len(keys); done {
			return n, nil
		}
		start = next
	}
}
