package client

import (
	"context"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Consistency is what came of comparing the replicas of a region with each other.
type Consistency struct {
	RegionID uint64
	// Index is the entry of the region's log as of which the data was compared.
	Index    uint64
	Replicas []ReplicaHash
	// Undecided: replicas differ, and none of their data has a majority. Nothing is changed then.
	Undecided bool
}

// ReplicaHash is a replica's part in a comparison.
type ReplicaHash struct {
	PeerID, StoreID uint64
	// Known: the replica has answered in time, with Hash.
	Known bool
	Hash  uint64
	// Diverged: its data are not those of most replicas. It is not served any more, and gets
	// replaced.
	Diverged bool
}

// CheckConsistency has the replicas of the region that has key compared with each other. It waits
// for their answers no longer than wait. Regions that are being compared already are waited for.
func (c *Client) CheckConsistency(
	ctx context.Context, key []byte, wait time.Duration,
) (Consistency, error) {
	var out Consistency
	do := func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *cachedRegion,
	) (*errorpb.Error, string, error) {
		resp, err := s.CheckConsistency(ctx,
			&kvrpcpb.CheckConsistencyRequest{Context: kctx, WaitMs: uint64(wait.Milliseconds())})
		if err != nil {
			return nil, "", err
		}
		out = Consistency{RegionID: kctx.RegionId, Index: resp.Index, Undecided: resp.Undecided}
		for _, r := range resp.Replicas {
			out.Replicas = append(out.Replicas, ReplicaHash{
				PeerID: r.GetPeer().GetId(), StoreID: r.GetPeer().GetStoreId(), Known: r.Known,
				Hash: r.Hash, Diverged: r.Diverged,
			})
		}
		return resp.RegionError, resp.Error, nil
	}
	err := c.retryWith(ctx, key, patience{answer: wait + c.opts.AttemptTimeout}, do)
	return out, err
}
