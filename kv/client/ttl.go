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

// PutTTL sets a key that does not exist any more after a number of seconds; 0 sets it for ever, as
// Put does.
func (c *Client) PutTTL(ctx context.Context, key, value []byte, seconds uint64) error {
	do := func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
	) (*errorpb.Error, string, error) {
		if region, text, err := c.keepsTTL(ctx, s, kctx, r, key, seconds); region != nil ||
			text != "" || err != nil {
			return region, text, err
		}
		resp, err := s.RawPut(ctx,
			&kvrpcpb.RawPutRequest{Context: kctx, Key: key, Value: value, Cf: c.cf, Ttl: seconds})
		if err != nil {
			return nil, "", err
		}
		c.advance(r, resp.LogIndex)
		return resp.RegionError, resp.Error, nil
	}
	return c.retry(ctx, key, c.writing(len(value)), do)
}

// TTL returns how many seconds a key has left, rounded up; 0 if it does not expire. found is false
// when it does not exist.
func (c *Client) TTL(ctx context.Context, key []byte) (seconds uint64, found bool, err error) {
	do := func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
	) (*errorpb.Error, string, error) {
		resp, err := s.RawGetKeyTTL(ctx,
			&kvrpcpb.RawGetKeyTTLRequest{Context: kctx, Key: key, Cf: c.cf})
		if err != nil {
			return withoutTTL(r, err)
		}
		seconds, found = resp.Ttl, !resp.NotFound
		return resp.RegionError, resp.Error, nil
	}
	if err := c.retry(ctx, key, patience{answer: c.opts.AttemptTimeout}, do); err != nil {
		return 0, false, err
	}
	return seconds, found, nil
}

// keepsTTL finds out whether a store keeps TTLs: one of an older version would carry out the write
// without its TTL. Each store is asked once.
func (c *Client) keepsTTL(
	ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion, key []byte, seconds uint64,
) (*errorpb.Error, string, error) {
	store := r.leader.GetStoreId()
	if _, known := c.ids.ttl.Load(store); known || seconds == 0 {
		return nil, "", nil
	}
	resp, err := s.RawGetKeyTTL(ctx,
		&kvrpcpb.RawGetKeyTTLRequest{Context: kctx, Key: key, Cf: c.cf})
	if err != nil {
		return withoutTTL(r, err)
	}
	if resp.RegionError == nil && resp.Error == "" {
		c.ids.ttl.Store(store, true)
	}
	return resp.RegionError, resp.Error, nil
}

// withoutTTL is what an attempt returns for an error of its call, as olderStore is.
func withoutTTL(r *cachedRegion, err error) (*errorpb.Error, string, error) {
	if status.Code(err) != codes.Unimplemented {
		return nil, "", err
	}
	return nil,
		fmt.Sprintf(
			"store %d is of a version without TTLs: every store of the cluster must run a newer one",
			r.leader.GetStoreId()), nil
}
