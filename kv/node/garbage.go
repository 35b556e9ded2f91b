package node

import (
	"context"
	"time"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/kv/gcworker"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/feature"
)

// transactional tells whether the store is one of a cluster of transactions.
func (n *Node) transactional() bool {
	return n.store != nil && clustermode.Mode(n.ident.Mode) == clustermode.Txn
}

// safePoints asks the placement service.
func (n *Node) safePoints() *commands.SafePoints {
	return commands.NewSafePoints(func(ctx context.Context) (txn, gc uint64, err error) {
		ctx, cancel := context.WithTimeout(ctx, n.cfg.Raftstore.SchedulerTimeout.Duration)
		defer cancel()
		st, err := n.placement.GetGCState(ctx)
		return st.GetTxnSafePoint(), st.GetGcSafePoint(), err
	})
}

// timestamps are those of the placement service. This store chooses such by itself only once all
// stores know the locks of asynchronous commit.
func (n *Node) timestamps() *commands.Timestamps {
	return commands.NewTimestamps(func(ctx context.Context) (uint64, error) {
		ctx, cancel := context.WithTimeout(ctx, n.cfg.Raftstore.SchedulerTimeout.Duration)
		defer cancel()
		physical, logical, err := n.placement.GetTS(ctx)
		return mvcc.Timestamp(physical, logical), err
	}, func() bool { return n.features.inForce().Has(feature.AsyncCommit) })
}

// placementTime is the time of the placement service's timestamps.
func (n *Node) placementTime(ctx context.Context) (time.Time, error) {
	physical, _, err := n.placement.GetTS(ctx)
	return time.UnixMilli(physical), err
}

// newGC makes what collects the garbage of the cluster while this store leads the first region; nil
// where nothing does. close ends its connections.
func (n *Node) newGC() (w *gcworker.Worker, close func()) {
	if !n.transactional() || n.cfg.GC.Interval.Duration == 0 {
		return nil, nil
	}
	kv := client.New(n.placement, client.Options{Identity: n.identity, Conns: 1, Unary: true})
	txns := txn.New(kv, n.placement)
	return gcworker.New(gcworker.Options{
		LifeTime: n.cfg.GC.LifeTime.Duration, Interval: n.cfg.GC.Interval.Duration,
		Rate:  int64(n.cfg.GC.Rate),
		Leads: n.leadsFirstRegion, Placement: n.placement, Cluster: txns,
		Logger: n.logger.Named("gc"),
	}), func() { txns.Close(); kv.Close() }
}

// startGC runs it until run ends.
func (n *Node) startGC(run context.Context, close func()) {
	if n.gc == nil {
		return
	}
	n.wg.Add(1)
	// Owned by the node; ends with run.
	go func() {
		defer n.wg.Done()
		defer close()
		n.gc.Run(run)
	}()
}

// leadsFirstRegion tells whether this store leads the region with which the key space begins.
func (n *Node) leadsFirstRegion(ctx context.Context) bool {
	for _, r := range n.store.Regions() {
		if len(r.StartKey) == 0 {
			p, err := n.store.Peer(ctx, r.Id)
			return err == nil && p.IsLeader
		}
	}
	return false
}
