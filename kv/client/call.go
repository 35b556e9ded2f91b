package client

import (
	"context"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Command is one attempt at a command of a transaction: s is the service of the region's leader,
// kctx the context to send.
type Command func(
	ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
) (*errorpb.Error, error)

// Call has do ask the leader of the region of key, until it is answered without a region error or
// ctx ends. The key is one as regions are bounded by. do may be called after an attempt of unknown
// outcome, so what it asks for must do no harm when it happens twice. size is how many bytes it
// writes, about.
func (c *Client) Call(ctx context.Context, key []byte, size int, do Command) error {
	p := c.writing(size)
	p.write = false // it has no identity
	return c.retryWith(ctx, key, p, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, r *cachedRegion,
	) (*errorpb.Error, string, error) {
		region, err := do(ctx, s, kctx, r.meta)
		return region, "", err
	})
}

// KnownRegion is the region of a key as this client knows it, nil if it does not; Call finds out.
func (c *Client) KnownRegion(key []byte) *metapb.Region {
	if r := c.cache.lookup(key); r != nil {
		return r.meta
	}
	return nil
}
