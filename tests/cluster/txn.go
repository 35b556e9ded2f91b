package cluster

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/deadlock"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// GetTS gives a timestamp, as the placement service does: each is larger than those before.
func (p *Placement) GetTS(context.Context) (physical, logical int64, err error) {
	p.tso.Lock()
	defer p.tso.Unlock()
	if now := time.Now().UnixMilli(); now > p.tso.physical {
		p.tso.physical, p.tso.logical = now, 0
	}
	p.tso.logical++
	return p.tso.physical, p.tso.logical, nil
}

func (p *Placement) isOff() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.off
}

// GetGCState implements gcworker.Placement.
func (p *Placement) GetGCState(context.Context) (*schedulerpb.GetGCStateResponse, error) {
	if p.isOff() {
		return nil, errPlacementOff
	}
	p.safe.Lock()
	defer p.safe.Unlock()
	return &schedulerpb.GetGCStateResponse{TxnSafePoint: p.safe.txn, GcSafePoint: p.safe.gc}, nil
}

// AdvanceSafePoints implements gcworker.Placement. Nothing holds them back.
func (p *Placement) AdvanceSafePoints(
	_ context.Context, txnTarget, gcTarget uint64,
) (txn, gc uint64, err error) {
	if p.isOff() {
		return 0, 0, errPlacementOff
	}
	p.safe.Lock()
	defer p.safe.Unlock()
	p.safe.txn = max(p.safe.txn, txnTarget)
	p.safe.gc = max(p.safe.gc, min(gcTarget, p.safe.txn))
	return p.safe.txn, p.safe.gc, nil
}

// safePoints is how stores ask.
func (p *Placement) safePoints() *commands.SafePoints {
	return commands.NewSafePoints(func(ctx context.Context) (txn, gc uint64, err error) {
		st, err := p.GetGCState(ctx)
		return st.GetTxnSafePoint(), st.GetGcSafePoint(), err
	})
}

// timestamps is how stores ask for the time.
func (p *Placement) timestamps() *commands.Timestamps {
	return commands.NewTimestamps(func(ctx context.Context) (uint64, error) {
		if p.isOff() {
			return 0, errPlacementOff
		}
		physical, logical, err := p.GetTS(ctx)
		return mvcc.Timestamp(physical, logical), err
	}, func() bool { return true })
}

// detector is the way to the store that leads the first region.
type detector struct{ c *Cluster }

func (d detector) ask(
	ctx context.Context, e deadlock.Edge, remove bool,
) (*kvrpcpb.DetectDeadlockResponse, error) {
	r, err := d.c.Placement.GetRegion(ctx, nil)
	if err != nil {
		return nil, err
	}
	resp, err := call(ctx, &stub{c: d.c, id: r.Leader.GetStoreId()}, &kvrpcpb.DetectDeadlockRequest{
		Context: &kvrpcpb.Context{
			RegionId: r.Meta.Id, RegionEpoch: r.Meta.RegionEpoch, Peer: r.Leader,
		}, Remove: remove,
		Entry: &kvrpcpb.WaitForEntry{Txn: e.Waiter, WaitForTxn: e.Holder, Key: e.Key, Tag: e.Tag},
	}, (*server.Server).DetectDeadlock)
	if err == nil && resp.RegionError != nil {
		err = errors.New(resp.RegionError.Message)
	}
	return resp, err
}

// Detect implements commands.Detector.
func (d detector) Detect(ctx context.Context, e deadlock.Edge) (chain []deadlock.Edge, err error) {
	resp, err := d.ask(ctx, e, false)
	for _, c := range resp.GetChain() {
		chain = append(chain,
			deadlock.Edge{Waiter: c.Txn, Holder: c.WaitForTxn, Key: c.Key, Tag: c.Tag})
	}
	return chain, err
}

// Remove implements commands.Detector.
func (d detector) Remove(ctx context.Context, e deadlock.Edge) { _, _ = d.ask(ctx, e, true) }

func (s *stub) KvPessimisticLock(
	ctx context.Context, in *kvrpcpb.PessimisticLockRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PessimisticLockResponse, error) {
	return call(ctx, s, in, (*server.Server).KvPessimisticLock)
}

func (s *stub) KvPessimisticRollback(
	ctx context.Context, in *kvrpcpb.PessimisticRollbackRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PessimisticRollbackResponse, error) {
	return call(ctx, s, in, (*server.Server).KvPessimisticRollback)
}

func (s *stub) KvTxnHeartBeat(
	ctx context.Context, in *kvrpcpb.TxnHeartBeatRequest, _ ...grpc.CallOption,
) (*kvrpcpb.TxnHeartBeatResponse, error) {
	return call(ctx, s, in, (*server.Server).KvTxnHeartBeat)
}

func (s *stub) KvCheckSecondaryLocks(
	ctx context.Context, in *kvrpcpb.CheckSecondaryLocksRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCheckSecondaryLocks)
}

func (s *stub) CollectGarbage(
	ctx context.Context, in *kvrpcpb.CollectGarbageRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CollectGarbageResponse, error) {
	return call(ctx, s, in, (*server.Server).CollectGarbage)
}

// TxnClient returns a client of transactions, and what closes it.
func (c *Cluster) TxnClient() (*txn.Client, func()) {
	kv := c.Client()
	t := txn.New(kv, c.Placement)
	return t, func() { t.Close(); kv.Close() }
}

func (s *stub) KvGet(
	ctx context.Context, in *kvrpcpb.GetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.GetResponse, error) {
	return call(ctx, s, in, (*server.Server).KvGet)
}

func (s *stub) KvScan(
	ctx context.Context, in *kvrpcpb.ScanRequest, _ ...grpc.CallOption,
) (*kvrpcpb.ScanResponse, error) {
	return call(ctx, s, in, (*server.Server).KvScan)
}

func (s *stub) KvBatchGet(
	ctx context.Context, in *kvrpcpb.BatchGetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.BatchGetResponse, error) {
	return call(ctx, s, in, (*server.Server).KvBatchGet)
}

func (s *stub) KvScanLock(
	ctx context.Context, in *kvrpcpb.ScanLockRequest, _ ...grpc.CallOption,
) (*kvrpcpb.ScanLockResponse, error) {
	return call(ctx, s, in, (*server.Server).KvScanLock)
}

func (s *stub) MvccGetByKey(
	ctx context.Context, in *kvrpcpb.MvccGetByKeyRequest, _ ...grpc.CallOption,
) (*kvrpcpb.MvccGetByKeyResponse, error) {
	return call(ctx, s, in, (*server.Server).MvccGetByKey)
}

func (s *stub) KvPrewrite(
	ctx context.Context, in *kvrpcpb.PrewriteRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PrewriteResponse, error) {
	return call(ctx, s, in, (*server.Server).KvPrewrite)
}

func (s *stub) KvCommit(
	ctx context.Context, in *kvrpcpb.CommitRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CommitResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCommit)
}

func (s *stub) KvCheckTxnStatus(
	ctx context.Context, in *kvrpcpb.CheckTxnStatusRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CheckTxnStatusResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCheckTxnStatus)
}

func (s *stub) KvBatchRollback(
	ctx context.Context, in *kvrpcpb.BatchRollbackRequest, _ ...grpc.CallOption,
) (*kvrpcpb.BatchRollbackResponse, error) {
	return call(ctx, s, in, (*server.Server).KvBatchRollback)
}

func (s *stub) KvResolveLock(
	ctx context.Context, in *kvrpcpb.ResolveLockRequest, _ ...grpc.CallOption,
) (*kvrpcpb.ResolveLockResponse, error) {
	return call(ctx, s, in, (*server.Server).KvResolveLock)
}
