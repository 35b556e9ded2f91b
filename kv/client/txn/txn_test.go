package txn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	scheduler "github.com/tinykv/tinykv/scheduler/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a placement service, an oracle and a store with one region, in memory. commit, if set,
// answers commits instead of the store.
type world struct {
	tinykvpb.TinyKvClient
	srv    *server.Server
	mem    *storage.MemStorage
	mu     sync.Mutex
	now    int64
	commit func(in *kvrpcpb.CommitRequest) (*kvrpcpb.CommitResponse, error)
	// prewrite, if set, answers prewrites.
	prewrite func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error)
}

func newWorld(t *testing.T) (*world, *Client) {
	t.Helper()
	w := &world{mem: storage.NewMemStorage(), now: 1000}
	w.srv = server.New(config.Default(), w.mem.Storage(), nil, nil, zap.NewNop())
	w.srv.SetMode(clustermode.Txn)
	w.srv.SetTimestamps(commands.NewTimestamps(func(ctx context.Context) (uint64, error) {
		physical, logical, err := w.GetTS(ctx)
		return mvcc.Timestamp(physical, logical), err
	}, func() bool { return true }))
	kv := client.New(w,
		client.Options{Dial: func(context.Context, uint64) (tinykvpb.TinyKvClient, error) {
			return w, nil
		}})
	c := New(kv, w)
	t.Cleanup(func() { c.Close(); kv.Close() })
	return w, c
}

func (w *world) region() *metapb.Region {
	return &metapb.Region{
		Id: 1, RegionEpoch: &metapb.RegionEpoch{Version: 1},
		Peers: []*metapb.Peer{{Id: 1, StoreId: 1}},
	}
}

func (w *world) GetRegion(context.Context, []byte) (*scheduler.Region, error) {
	return &scheduler.Region{Meta: w.region(), Leader: w.region().Peers[0]}, nil
}

func (w *world) GetStore(context.Context, uint64) (*metapb.Store, error) {
	return &metapb.Store{Id: 1, Address: "here"}, nil
}

func (w *world) ScanRegions(context.Context, []byte, []byte, int) ([]*scheduler.Region, error) {
	return nil, nil
}

// GetTS lets a millisecond pass with every question.
func (w *world) GetTS(context.Context) (int64, int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now++
	return w.now, 1, nil
}

// RawGet is how the routing client finds out whether a store is there.
func (w *world) RawGet(
	ctx context.Context, in *kvrpcpb.RawGetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawGetResponse, error) {
	return w.srv.RawGet(ctx, in)
}

func (w *world) KvGet(
	ctx context.Context, in *kvrpcpb.GetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.GetResponse, error) {
	return w.srv.KvGet(ctx, in)
}

func (w *world) KvScan(
	ctx context.Context, in *kvrpcpb.ScanRequest, _ ...grpc.CallOption,
) (*kvrpcpb.ScanResponse, error) {
	return w.srv.KvScan(ctx, in)
}

func (w *world) KvBatchGet(
	ctx context.Context, in *kvrpcpb.BatchGetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.BatchGetResponse, error) {
	return w.srv.KvBatchGet(ctx, in)
}

func (w *world) KvPessimisticLock(
	ctx context.Context, in *kvrpcpb.PessimisticLockRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PessimisticLockResponse, error) {
	return w.srv.KvPessimisticLock(ctx, in)
}

func (w *world) KvPessimisticRollback(
	ctx context.Context, in *kvrpcpb.PessimisticRollbackRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PessimisticRollbackResponse, error) {
	return w.srv.KvPessimisticRollback(ctx, in)
}

func (w *world) KvTxnHeartBeat(
	ctx context.Context, in *kvrpcpb.TxnHeartBeatRequest, _ ...grpc.CallOption,
) (*kvrpcpb.TxnHeartBeatResponse, error) {
	return w.srv.KvTxnHeartBeat(ctx, in)
}

func (w *world) KvPrewrite(
	ctx context.Context, in *kvrpcpb.PrewriteRequest, _ ...grpc.CallOption,
) (*kvrpcpb.PrewriteResponse, error) {
	w.mu.Lock()
	prewrite := w.prewrite
	w.mu.Unlock()
	if prewrite != nil {
		return prewrite(in)
	}
	return w.srv.KvPrewrite(ctx, in)
}

func (w *world) onPrewrite(f func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.prewrite = f
}

func (w *world) KvCommit(
	ctx context.Context, in *kvrpcpb.CommitRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CommitResponse, error) {
	w.mu.Lock()
	commit := w.commit
	w.mu.Unlock()
	if commit != nil {
		return commit(in)
	}
	return w.srv.KvCommit(ctx, in)
}

func (w *world) KvCheckTxnStatus(
	ctx context.Context, in *kvrpcpb.CheckTxnStatusRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CheckTxnStatusResponse, error) {
	return w.srv.KvCheckTxnStatus(ctx, in)
}

func (w *world) KvCheckSecondaryLocks(
	ctx context.Context, in *kvrpcpb.CheckSecondaryLocksRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	return w.srv.KvCheckSecondaryLocks(ctx, in)
}

func (w *world) KvBatchRollback(
	ctx context.Context, in *kvrpcpb.BatchRollbackRequest, _ ...grpc.CallOption,
) (*kvrpcpb.BatchRollbackResponse, error) {
	return w.srv.KvBatchRollback(ctx, in)
}

func (w *world) KvResolveLock(
	ctx context.Context, in *kvrpcpb.ResolveLockRequest, _ ...grpc.CallOption,
) (*kvrpcpb.ResolveLockResponse, error) {
	return w.srv.KvResolveLock(ctx, in)
}

func (w *world) onCommit(f func(in *kvrpcpb.CommitRequest) (*kvrpcpb.CommitResponse, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit = f
}

// TestLostAnswersOfCommits: an answer that is lost is asked for again. One that never comes leaves
// the outcome unknown, and the transaction happened all the same.
func TestLostAnswersOfCommits(t *testing.T) {
	w, c := newWorld(t)
	c.SetCommits(TwoPhases)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lost := 2
	w.onCommit(func(in *kvrpcpb.CommitRequest) (*kvrpcpb.CommitResponse, error) {
		resp, err := w.srv.KvCommit(ctx, in)
		if lost--; lost >= 0 {
			return nil, status.Error(codes.Unavailable, "lost")
		}
		return resp, err
	})
	set := func(ctx context.Context, value string) error {
		return c.Run(ctx, func(x *Txn) error { x.Set([]byte("k"), []byte(value)); return nil })
	}
	require.NoError(t, set(ctx, "1"))
	lost = 1 << 30
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	err := set(short, "2")
	require.True(t, IsUnknown(err), "%v", err)
	w.onCommit(nil)
	x, err := c.Begin(ctx)
	require.NoError(t, err)
	v, found, err := x.Get(ctx, []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "2", string(v))
}

// TestRunTriesAgain: at conflicts, and with a new transaction.
func TestRunTriesAgain(t *testing.T) {
	_, c := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	attempts := 0
	require.NoError(t, c.Run(ctx, func(x *Txn) error {
		x.Set([]byte("k"), []byte("mine"))
		if attempts++; attempts < 3 {
			return c.Run(ctx, func(y *Txn) error {
				y.Set([]byte("k"), []byte("other"))
				return nil
			})
		}
		return nil
	}))
	require.Equal(t, 3, attempts)
	ended, stop := context.WithCancel(ctx)
	err := c.Run(ended, func(x *Txn) error { stop(); return fmt.Errorf("%w: always", ErrConflict) })
	require.ErrorIs(t, err, ErrConflict)
}

// TestLocksOfOthers: the lock of a transaction that lives is waited for; when its time is over, it
// is rolled back, and its own commit says so.
func TestLocksOfOthers(t *testing.T) {
	w, c := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	start, err := c.Timestamp(ctx)
	require.NoError(t, err)
	resp, err := w.srv.KvPrewrite(ctx, &kvrpcpb.PrewriteRequest{
		Mutations:    []*kvrpcpb.Mutation{{Key: []byte("k"), Value: []byte("theirs")}},
		PrimaryLock:  []byte("k"),
		StartVersion: start, LockTtl: 10, // ten questions for the time
	})
	require.NoError(t, err)
	require.Empty(t, resp.Errors)
	x, err := c.Begin(ctx)
	require.NoError(t, err)
	_, found, err := x.Get(ctx, []byte("k"))
	require.NoError(t, err)
	require.False(t, found)
	com, err := w.srv.KvCommit(ctx,
		&kvrpcpb.CommitRequest{
			StartVersion: start, CommitVersion: start + 1<<30, Keys: [][]byte{[]byte("k")},
		})
	require.NoError(t, err)
	require.NotEmpty(t, com.Error.GetRetryable())

	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	_, err = w.srv.KvPrewrite(ctx, &kvrpcpb.PrewriteRequest{
		Mutations:   []*kvrpcpb.Mutation{{Key: []byte("p"), Value: []byte("theirs")}},
		PrimaryLock: []byte("p"), StartVersion: start, LockTtl: 1 << 40,
	})
	require.NoError(t, err)
	_, _, err = x.Get(short, []byte("p"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestLargeValues: more than one request of a phase, and scans whose answers are cut.
func TestLargeValues(t *testing.T) {
	_, c := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, c.Run(ctx, func(x *Txn) error {
		for i := range 40 {
			x.Set(fmt.Appendf(nil, "%02d", i), make([]byte, 1<<20))
		}
		return nil
	}))
	x, err := c.Begin(ctx)
	require.NoError(t, err)
	pairs, err := x.Scan(ctx, nil, nil, 0)
	require.NoError(t, err)
	require.Len(t, pairs, 40)
	require.Len(t, pairs[39].Value, 1<<20)
}

func TestErrorsOfKeys(t *testing.T) {
	require.ErrorIs(t, keyError(&kvrpcpb.KeyError{Retryable: "TxnLockNotFound"}), ErrConflict)
	require.ErrorIs(t, keyError(&kvrpcpb.KeyError{Conflict: &kvrpcpb.WriteConflict{}}), ErrConflict)
	require.NotErrorIs(t, keyError(&kvrpcpb.KeyError{Abort: "no"}), ErrConflict)
	require.Error(t, keyError(&kvrpcpb.KeyError{}))
	require.True(t, IsUnknown(fmt.Errorf("x: %w", &UnknownError{errors.New("y")})))
}

// TestLockTTL: the time to live counts from the start timestamp, so a transaction that has thought
// for long gets as much time to commit as another one.
func TestLockTTL(t *testing.T) {
	require.EqualValues(t, 3000, lockTTL(0, 0))
	require.EqualValues(t, 3010, lockTTL(10<<10, 0))
	require.EqualValues(t, 20000, lockTTL(1<<30, 0))
	require.EqualValues(t, 63000, lockTTL(0, time.Minute))
}
