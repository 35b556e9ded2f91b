package gcworker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ms(n uint64) uint64 { return n << logicalBits }

// world is a placement service and a cluster that write down what is asked of them. fail is the
// call that fails.
type world struct {
	now, txn, gc uint64
	barrier      uint64
	byClient     *time.Duration
	calls        []string
	fail         string
	leads        bool
}

var errDown = errors.New("down")

func (w *world) did(format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	w.calls = append(w.calls, call)
	if w.fail != "" && strings.HasPrefix(call, w.fail) {
		return errDown
	}
	return nil
}

func (w *world) GetGCState(context.Context) (*schedulerpb.GetGCStateResponse, error) {
	st := &schedulerpb.GetGCStateResponse{TxnSafePoint: w.txn, GcSafePoint: w.gc}
	if w.byClient != nil {
		st.ByClient, st.ClientAgoMs = true, uint64(w.byClient.Milliseconds())
	}
	return st, w.did("state")
}

func (w *world) AdvanceSafePoints(
	_ context.Context, txnTarget, gcTarget uint64,
) (uint64, uint64, error) {
	if w.barrier > 0 {
		txnTarget = min(txnTarget, w.barrier)
	}
	err := w.did("advance txn=%d gc=%d", txnTarget>>logicalBits, gcTarget>>logicalBits)
	if err == nil {
		w.txn = max(w.txn, txnTarget)
		w.gc = max(w.gc, min(gcTarget, w.txn))
	}
	return w.txn, w.gc, err
}

func (w *world) Timestamp(context.Context) (uint64, error) { return w.now, w.did("now") }

func (w *world) ResolveExpired(_ context.Context, before uint64) (int, error) {
	return 1, w.did("expired before=%d", before>>logicalBits)
}

func (w *world) ResolveAll(_ context.Context, safePoint uint64) (int, error) {
	return 2, w.did("resolve %d", safePoint>>logicalBits)
}

func (w *world) Collect(
	ctx context.Context, safePoint uint64, step func(context.Context, txn.Collected) error,
) error {
	if err := w.did("collect %d", safePoint>>logicalBits); err != nil {
		return err
	}
	for range 3 {
		if err := step(ctx, txn.Collected{Versions: 5, Bytes: 10}); err != nil {
			return err
		}
	}
	return nil
}

// round does one and returns what was asked for.
func (w *world) round(t *testing.T, worker *Worker, wrong error) []string {
	t.Helper()
	w.calls = nil
	require.ErrorIs(t, worker.Round(t.Context()), wrong)
	return w.calls
}

func newWorker(w *world) *Worker {
	return New(Options{
		LifeTime: 100 * time.Second, Interval: time.Millisecond, Rate: 1 << 30,
		Leads: func(context.Context) bool { return w.leads }, Placement: w, Cluster: w,
		Logger: zap.NewNop(),
	})
}

// TestOrderOfARound: the safe point of transactions, their locks, the safe point of garbage, the
// garbage. The next round does it again for a later safe point only.
func TestOrderOfARound(t *testing.T) {
	w := &world{now: ms(500_000), leads: true}
	worker := newWorker(w)
	require.Equal(t, []string{
		"now", "expired before=470000", "state", "advance txn=400000 gc=0", "resolve 400000",
		"advance txn=0 gc=400000", "collect 400000",
	}, w.round(t, worker, nil))
	require.Equal(t, Stats{
		Rounds: 1, Expired: 1, Ended: 2, Versions: 15, Bytes: 30, SafePoint: ms(400_000),
		Last: worker.Stats().Last,
	}, worker.Stats())
	require.NotContains(t, strings.Join(w.round(t, worker, nil), " "), "resolve")
	w.now = ms(501_000)
	require.Contains(t, w.round(t, worker, nil), "collect 401000")
	w.now = ms(50_000) // the cluster is younger than the life time
	w.txn, w.gc = 0, 0
	require.NotContains(t, strings.Join(w.round(t, newWorker(w), nil), " "), "resolve")
}

// TestFailuresEndARound: nothing that comes later is done, and the next round begins anew.
func TestFailuresEndARound(t *testing.T) {
	for _, at := range []string{
		"now", "expired", "state", "advance txn=4", "resolve", "advance txn=0", "collect",
	} {
		w := &world{now: ms(500_000), leads: true, fail: at}
		worker := newWorker(w)
		calls := w.round(t, worker, errDown)
		require.True(t, strings.HasPrefix(calls[len(calls)-1], at), "%s: %v", at, calls)
		require.EqualValues(t, 1, worker.Stats().Failures)
		require.Equal(t, "down", worker.Stats().LastError)
		require.Zero(t, worker.Stats().SafePoint)
		if at == "resolve" {
			require.Zero(t, w.gc, "the safe point of garbage has passed locks")
		}
		w.fail = ""
		require.Len(t, w.round(t, worker, nil), 7)
		require.Equal(t, ms(400_000), worker.Stats().SafePoint)
	}
}

// TestBarriersHoldBack: garbage is collected up to the barrier.
func TestBarriersHoldBack(t *testing.T) {
	w := &world{now: ms(500_000), leads: true, barrier: ms(300_000)}
	worker := newWorker(w)
	calls := w.round(t, worker, nil)
	require.Contains(t, calls, "resolve 300000")
	require.Equal(t, "collect 300000", calls[len(calls)-1])
}

// TestClientsSafePoint: while a client takes care of it, it is not raised; what lies below it is
// collected all the same, after its locks.
func TestClientsSafePoint(t *testing.T) {
	ago := time.Hour
	w := &world{now: ms(500_000), leads: true, byClient: &ago, txn: ms(200_000), gc: ms(150_000)}
	worker := newWorker(w)
	require.Equal(t,
		[]string{"now", "expired before=470000", "state", "resolve 150000", "collect 150000"},
		w.round(t, worker, nil))
	require.Len(t, w.round(t, worker, nil), 3)
	ago = 25 * time.Hour // it has stopped
	calls := w.round(t, worker, nil)
	require.Equal(t, "collect 400000", calls[len(calls)-1])
}

// TestAnotherStoreTakesOver: the one that does not lead any more ends its round, and one that leads
// again begins anew.
func TestAnotherStoreTakesOver(t *testing.T) {
	w := &world{now: ms(500_000)}
	worker := newWorker(w)
	require.ErrorIs(t, worker.Round(t.Context()), errLost)
	require.Zero(t, worker.Stats().SafePoint)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { worker.Run(ctx); close(done) }()
	require.Never(t, func() bool {
		return worker.Stats().Rounds > 1
	}, 20*time.Millisecond, time.Millisecond)
	cancel()
	<-done
}

// TestRunDoesRounds: at each interval, until it is stopped; it waits as its rate demands.
func TestRunDoesRounds(t *testing.T) {
	w := &world{now: ms(500_000), leads: true}
	worker := newWorker(w)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { worker.Run(ctx); close(done) }()
	require.Eventually(t, func() bool {
		return worker.Stats().Rounds > 2
	}, 10*time.Second, time.Millisecond)
	cancel()
	<-done

	slow := newWorker(&world{now: ms(500_000), leads: true})
	slow.opt.Rate = 1
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	require.ErrorIs(t, slow.Round(short), context.DeadlineExceeded)
	require.EqualValues(t, 5, slow.Stats().Versions)
}
