package tests

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// replayer loses answers, and sends requests again, at once or long after their transaction has
// ended: as clients that try again and networks that deliver late do.
type replayer struct {
	mu     sync.Mutex
	late   sync.WaitGroup
	ctx    context.Context
	stop   context.CancelFunc
	old    []func(ctx context.Context)
	counts [2]int // lost, replayed
}

func newReplayer() *replayer {
	r := &replayer{}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

func (r *replayer) end() {
	r.stop()
	r.late.Wait()
}

// pass carries out a request, and keeps it.
func pass[Resp any](
	r *replayer, ctx context.Context, do func(ctx context.Context) (*Resp, error),
) (*Resp, error) {
	r.mu.Lock()
	r.old = append(r.old, func(ctx context.Context) { _, _ = do(ctx) })
	if len(r.old) > 300 {
		r.old = r.old[1:]
	}
	var again func(ctx context.Context)
	if rand.IntN(3) == 0 {
		again = r.old[rand.IntN(len(r.old))]
		r.counts[1]++
		r.late.Add(1)
	}
	lose := rand.IntN(8) == 0
	if lose {
		r.counts[0]++
	}
	r.mu.Unlock()
	if again != nil {
		go func() {
			defer r.late.Done()
			ctx, cancel := context.WithTimeout(r.ctx, time.Second)
			defer cancel()
			again(ctx)
		}()
	}
	resp, err := do(ctx)
	if lose && err == nil {
		return nil, status.Error(codes.Unavailable, "the answer is lost")
	}
	return resp, err
}

// echo is a store's service through a replayer.
type echo struct {
	tinykvpb.TinyKvClient
	r *replayer
}

func (e echo) KvPrewrite(
	ctx context.Context, in *kvrpcpb.PrewriteRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PrewriteResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.PrewriteResponse, error) {
		return e.TinyKvClient.KvPrewrite(ctx, in)
	})
}

func (e echo) KvCommit(
	ctx context.Context, in *kvrpcpb.CommitRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CommitResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.CommitResponse, error) {
		return e.TinyKvClient.KvCommit(ctx, in)
	})
}

func (e echo) KvBatchRollback(
	ctx context.Context, in *kvrpcpb.BatchRollbackRequest, _ ...grpc.CallOption,
) (*kvrpcpb.BatchRollbackResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.BatchRollbackResponse, error) {
		return e.TinyKvClient.KvBatchRollback(ctx, in)
	})
}

func (e echo) KvCheckTxnStatus(
	ctx context.Context, in *kvrpcpb.CheckTxnStatusRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CheckTxnStatusResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.CheckTxnStatusResponse, error) {
		return e.TinyKvClient.KvCheckTxnStatus(ctx, in)
	})
}

func (e echo) KvPessimisticLock(
	ctx context.Context, in *kvrpcpb.PessimisticLockRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PessimisticLockResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.PessimisticLockResponse, error) {
		return e.TinyKvClient.KvPessimisticLock(ctx, in)
	})
}

func (e echo) KvPessimisticRollback(
	ctx context.Context, in *kvrpcpb.PessimisticRollbackRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PessimisticRollbackResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.PessimisticRollbackResponse, error) {
		return e.TinyKvClient.KvPessimisticRollback(ctx, in)
	})
}

func (e echo) KvCheckSecondaryLocks(
	ctx context.Context, in *kvrpcpb.CheckSecondaryLocksRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
		return e.TinyKvClient.KvCheckSecondaryLocks(ctx, in)
	})
}

func (e echo) KvResolveLock(
	ctx context.Context, in *kvrpcpb.ResolveLockRequest, _ ...grpc.CallOption,
) (*kvrpcpb.ResolveLockResponse, error) {
	return pass(e.r, ctx, func(ctx context.Context) (*kvrpcpb.ResolveLockResponse, error) {
		return e.TinyKvClient.KvResolveLock(ctx, in)
	})
}

// TestBankWithReplays: requests are repeated after the end of their transactions, answers are lost,
// leaders move.
func TestBankWithReplays(t *testing.T) {
	c, _ := txnCluster(t, 12, 4)
	r := newReplayer()
	kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient { return echo{s, r} })
	cl := txn.New(kv, c.Placement)
	b := newBank(t, c, cl, 12)
	stop := make(chan struct{})
	wait := b.run(6, stop)
	var counts faultCounts
	moved := make(chan struct{})
	go func() { defer close(moved); transferer(c, &counts, stop) }()
	b.rage(3 * time.Second)
	close(stop)
	<-moved
	wait()
	cl.Close()
	r.end()
	kv.Close()

	clean, closeClean := c.TxnClient()
	defer closeClean()
	b.cl = clean
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	rng := rand.New(rand.NewPCG(1, 1))
	require.NoError(t, b.look(ctx, rng))
	b.check()
	b.audit()
	c.CheckConsistency()
	t.Logf("%d answers lost, %d requests repeated", r.counts[0], r.counts[1])
	require.Greater(t, r.counts[1], 50)
}
