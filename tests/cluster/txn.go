package cluster

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
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

// TxnClient returns a client of transactions, and what closes it.
func (c *Cluster) TxnClient() (*txn.Client, func()) {
	kv := c.Client()
	t := txn.New(kv, c.Placement)
	return t, func() { t.Close(); kv.Close() }
}

func (s *stub) KvGet(ctx context.Context, in *kvrpcpb.GetRequest, _ ...grpc.CallOption) (*kvrpcpb.GetResponse, error) {
	return call(ctx, s, in, (*server.Server).KvGet)
}

func (s *stub) KvScan(ctx context.Context, in *kvrpcpb.ScanRequest, _ ...grpc.CallOption) (*kvrpcpb.ScanResponse, error) {
	return call(ctx, s, in, (*server.Server).KvScan)
}

func (s *stub) KvBatchGet(ctx context.Context, in *kvrpcpb.BatchGetRequest, _ ...grpc.CallOption) (*kvrpcpb.BatchGetResponse, error) {
	return call(ctx, s, in, (*server.Server).KvBatchGet)
}

func (s *stub) KvScanLock(ctx context.Context, in *kvrpcpb.ScanLockRequest, _ ...grpc.CallOption) (*kvrpcpb.ScanLockResponse, error) {
	return call(ctx, s, in, (*server.Server).KvScanLock)
}

func (s *stub) MvccGetByKey(ctx context.Context, in *kvrpcpb.MvccGetByKeyRequest, _ ...grpc.CallOption) (*kvrpcpb.MvccGetByKeyResponse, error) {
	return call(ctx, s, in, (*server.Server).MvccGetByKey)
}

func (s *stub) KvPrewrite(ctx context.Context, in *kvrpcpb.PrewriteRequest, _ ...grpc.CallOption) (*kvrpcpb.PrewriteResponse, error) {
	return call(ctx, s, in, (*server.Server).KvPrewrite)
}

func (s *stub) KvCommit(ctx context.Context, in *kvrpcpb.CommitRequest, _ ...grpc.CallOption) (*kvrpcpb.CommitResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCommit)
}

func (s *stub) KvCheckTxnStatus(ctx context.Context, in *kvrpcpb.CheckTxnStatusRequest, _ ...grpc.CallOption) (*kvrpcpb.CheckTxnStatusResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCheckTxnStatus)
}

func (s *stub) KvBatchRollback(ctx context.Context, in *kvrpcpb.BatchRollbackRequest, _ ...grpc.CallOption) (*kvrpcpb.BatchRollbackResponse, error) {
	return call(ctx, s, in, (*server.Server).KvBatchRollback)
}

func (s *stub) KvResolveLock(ctx context.Context, in *kvrpcpb.ResolveLockRequest, _ ...grpc.CallOption) (*kvrpcpb.ResolveLockResponse, error) {
	return call(ctx, s, in, (*server.Server).KvResolveLock)
}
