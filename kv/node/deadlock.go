package node

import (
	"context"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/transaction/deadlock"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// detector asks the store that leads the first region, which may be this one, whether a wait closes
// a circle.
type detector struct{ kv *client.Client }

// newDetector makes one; Stop of the node closes its connections.
func (n *Node) newDetector() *detector {
	n.deadlocks = &detector{
		client.New(n.placement, client.Options{Identity: n.identity, Conns: 1, Unary: true}),
	}
	return n.deadlocks
}

func (d *detector) ask(
	ctx context.Context, e deadlock.Edge, remove bool,
) (*kvrpcpb.DetectDeadlockResponse, error) {
	var resp *kvrpcpb.DetectDeadlockResponse
	err := d.kv.Call(ctx, nil, 0, func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, _ *metapb.Region,
	) (*errorpb.Error, error) {
		r, err := s.DetectDeadlock(ctx, &kvrpcpb.DetectDeadlockRequest{
			Context: kctx, Remove: remove,
			Entry: &kvrpcpb.WaitForEntry{
				Txn: e.Waiter, WaitForTxn: e.Holder, Key: e.Key, Tag: e.Tag,
			},
		})
		resp = r
		return r.GetRegionError(), err
	})
	return resp, err
}

// Detect implements commands.Detector.
func (d *detector) Detect(ctx context.Context, e deadlock.Edge) (chain []deadlock.Edge, err error) {
	resp, err := d.ask(ctx, e, false)
	for _, c := range resp.GetChain() {
		chain = append(chain,
			deadlock.Edge{Waiter: c.Txn, Holder: c.WaitForTxn, Key: c.Key, Tag: c.Tag})
	}
	return chain, err
}

// Remove implements commands.Detector. Where it fails, the edge ends by itself.
func (d *detector) Remove(ctx context.Context, e deadlock.Edge) { _, _ = d.ask(ctx, e, true) }
