package client

import (
	"context"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

const (
	maxLookupBatch    = 128 // keys in one request
	lookupConcurrency = 2   // requests on their way at once
)

// lookups lets callers of GetRegion who wait at the same time share a request.
type lookups struct {
	*batcher[[]byte, []*pb.GetRegionResponse]
	c *Client
	// alone is true once the service said that it does not know the shared request.
	alone atomic.Bool
}

func newLookups(c *Client) *lookups {
	return &lookups{batcher: newBatcher[[]byte, []*pb.GetRegionResponse](maxLookupBatch), c: c}
}

func (l *lookups) run() {
	defer l.c.wg.Done()
	var version uint64
	l.batcher.run(l.c.ctx, func(keys [][]byte) ([]*pb.GetRegionResponse, error) {
		leader, err := l.c.leader()
		if version = leader.version; err != nil {
			return nil, err
		}
		return l.exchange(leader, keys)
	}, func(error) error { return l.c.rediscover(version) })
}

func (l *lookups) exchange(leader target, keys [][]byte) ([]*pb.GetRegionResponse, error) {
	ctx, cancel := context.WithCancel(l.c.ctx)
	defer cancel()
	defer l.c.try(leader, cancel)()
	resp, err := leader.GetRegions(ctx,
		&pb.GetRegionsRequest{Header: l.c.header(), RegionKeys: keys})
	switch {
	case status.Code(err) == codes.Unimplemented:
		l.alone.Store(true)
		return nil, err
	case err != nil:
		return nil, err
	case resp.GetHeader().GetError() != nil:
		return nil, headerError(resp.Header)
	case len(resp.Regions) != len(keys):
		return nil, fmt.Errorf("asked for %d regions, got %d", len(keys), len(resp.Regions))
	}
	return resp.Regions, nil
}

// GetRegion returns the region that contains the key, nil if none is known. Callers that wait at
// the same time share a request.
func (c *Client) GetRegion(ctx context.Context, key []byte) (*Region, error) {
	if !c.lookups.alone.Load() {
		list, i, err := c.lookups.ask(ctx, key)
		if err == nil {
			return toRegion(list[i]), nil
		}
		if !c.lookups.alone.Load() {
			return nil, fmt.Errorf("get region: %w", err)
		}
	}
	resp, err := unary(ctx, c, "get region",
		&pb.GetRegionRequest{Header: c.header(), RegionKey: key}, pb.SchedulerClient.GetRegion)
	return toRegion(resp), err
}
