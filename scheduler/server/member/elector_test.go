package member_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/id"
	"github.com/tinykv/tinykv/scheduler/server/member"
	"github.com/tinykv/tinykv/scheduler/server/storage"
	"github.com/tinykv/tinykv/scheduler/server/tso"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ttl = 200 * time.Millisecond

var keys = storage.KeysOf(1)

// stalling is a storage whose requests can be made to fail, like a disk that hangs.
type stalling struct {
	storage.Storage
	mu      sync.Mutex
	stalled bool
}

func (s *stalling) set(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = on
}

func (s *stalling) wait(ctx context.Context) error {
	s.mu.Lock()
	on := s.stalled
	s.mu.Unlock()
	if !on {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *stalling) Get(ctx context.Context, key string) (storage.KV, error) {
	if err := s.wait(ctx); err != nil {
		return storage.KV{}, err
	}
	return s.Storage.Get(ctx, key)
}

func (s *stalling) Txn(ctx context.Context, conds []storage.Cond, ops []storage.Op) (int64, error) {
	if err := s.wait(ctx); err != nil {
		return 0, err
	}
	return s.Storage.Txn(ctx, conds, ops)
}

type node struct {
	elector *member.Elector
	store   *stalling
	stop    func()
}

// start runs n members on one storage.
func start(t *testing.T, mem *storage.Memory, n int) []*node {
	t.Helper()
	var out []*node
	for i := range n {
		st := &stalling{Storage: mem}
		e := member.New(st, member.Options{
			Self: &schedulerpb.Member{Name: "m", MemberId: uint64(i + 1)}, Keys: keys, TTL: ttl,
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.Run(ctx, func(ctx context.Context, _ *member.Leadership) error {
				<-ctx.Done()
				return nil
			})
		}()
		nd := &node{elector: e, store: st, stop: sync.OnceFunc(func() { cancel(); <-done })}
		t.Cleanup(nd.stop)
		out = append(out, nd)
	}
	return out
}

func leader(t *testing.T, nodes []*node, not *node) *node {
	t.Helper()
	var found *node
	require.Eventually(t, func() bool {
		found = nil
		n := 0
		for _, nd := range nodes {
			if nd.elector.Leadership() != nil {
				found, n = nd, n+1
			}
		}
		require.LessOrEqual(t, n, 1, "two valid leaderships at once")
		return found != nil && found != not
	}, 10*time.Second, time.Millisecond)
	return found
}

func TestOneLeaderAndHandOver(t *testing.T) {
	nodes := start(t, storage.NewMemory(), 3)
	first := leader(t, nodes, nil)
	term := first.elector.Leadership().Term
	began := time.Now()
	first.stop()
	second := leader(t, nodes, first)
	require.Less(t, time.Since(began), ttl,
		"a stopped leader leaves at once, nobody waits for its silence")
	require.Greater(t, second.elector.Leadership().Term, term)
}

// A leader whose storage hangs loses its validity by its own clock, before another one takes over.
func TestStalledLeaderLosesItself(t *testing.T) {
	nodes := start(t, storage.NewMemory(), 2)
	old := leader(t, nodes, nil)
	l := old.elector.Leadership()
	old.store.set(true)
	next := leader(t, nodes, old)
	require.False(t, l.Valid())
	old.store.set(false)
	require.Never(t, func() bool {
		return old.elector.Leadership() != nil && next.elector.Leadership() != nil
	},
		ttl, time.Millisecond)
}

// What a deposed leader still tries to write is refused by its fence.
func TestDeposedLeaderWritesNothing(t *testing.T) {
	mem := storage.NewMemory()
	nodes := start(t, mem, 2)
	old := leader(t, nodes, nil)
	fence := old.elector.Leadership().Fence()
	put := func() error {
		_, err := mem.Txn(t.Context(), []storage.Cond{fence},
			[]storage.Op{storage.Put("/x", []byte("1"))})
		return err
	}
	// it has not noticed
	ids := id.New(mem, keys.AllocID(), func() (storage.Cond, uint64, bool) {
		return fence, 1, true
	})
	clock := time.Now()
	oracle := tso.New(mem, keys.Timestamp(), time.Second, func() time.Time { return clock })
	require.NoError(t, oracle.Start(t.Context(), fence))
	_, err := ids.Alloc(t.Context())
	require.NoError(t, err)
	require.NoError(t, put())
	old.elector.Resign("")
	leader(t, nodes, old)
	require.ErrorIs(t, put(), storage.ErrConflict)
	_, err = ids.AllocN(t.Context(), id.Window)
	require.ErrorIs(t, err, id.ErrNotLeader, "no new window")
	clock = clock.Add(time.Minute)
	require.ErrorIs(t, oracle.Extend(t.Context(), fence), tso.ErrNotLeader, "no new bound")
}

// Deleting the leader key from outside makes the leader step down and somebody lead again.
func TestLeaderKeyDeletedFromOutside(t *testing.T) {
	mem := storage.NewMemory()
	nodes := start(t, mem, 2)
	term := leader(t, nodes, nil).elector.Leadership().Term
	_, err := mem.Txn(t.Context(), nil, []storage.Op{storage.Delete(keys.Leader())})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		l := leader(t, nodes, nil).elector.Leadership()
		return l != nil && l.Term > term
	}, 10*time.Second, time.Millisecond)
}

// world is one member's view of ids and timestamps on a shared storage.
type world struct {
	term  uint64
	ids   *id.Allocator
	tso   *tso.Oracle
	fence storage.Cond
}

// Two hundred leaderships, each of which keeps on working after it was replaced: ids and timestamps
// are unique and increasing all the same, with clocks that differ by seconds. (An allocator that
// keeps its window over leaderships, or a timestamp that starts at the clock, fails in a few
// rounds.)
func TestIDsAndTimestampsOver200Leaders3C(t *testing.T) {
	mem := storage.NewMemory()
	ctx := t.Context()
	seenID, seenTS := map[uint64]bool{}, map[uint64]bool{}
	var lastID, lastTS uint64
	worlds := make([]*world, 3)
	for i := range worlds {
		w := &world{}
		w.ids = id.New(mem, keys.AllocID(), func() (storage.Cond, uint64, bool) {
			return w.fence, w.term, w.term != 0
		})
		skew := time.Duration(i-1) * 3 * time.Second
		w.tso = tso.New(mem, keys.Timestamp(), 50*time.Millisecond, func() time.Time {
			return time.Now().Add(skew)
		})
		worlds[i] = w
	}
	use := func(w *world, must bool) {
		n, err := w.ids.Alloc(ctx)
		require.False(t, must && err != nil, "%v", err)
		if err == nil {
			require.False(t, seenID[n], "id %d given twice", n)
			seenID[n] = true
			if must {
				require.Greater(t, n, lastID)
				lastID = n
			}
		}
		p, l, err := w.tso.Generate(ctx, w.fence, 10)
		require.False(t, must && err != nil, "%v", err)
		if err != nil {
			return
		}
		for k := range int64(10) {
			ts := tso.Compose(p, l-k)
			require.False(t, seenTS[ts], "timestamp given twice")
			seenTS[ts] = true
		}
		if must {
			require.Greater(t, tso.Compose(p, l-9), lastTS)
			lastTS = tso.Compose(p, l)
		}
	}
	for term := uint64(1); term <= 200; term++ {
		w := worlds[term%3]
		_, err := mem.Txn(ctx, nil,
			[]storage.Op{storage.Put(keys.LeaderTerm(), storage.Uint64(term))})
		require.NoError(t, err)
		w.term, w.fence = term, storage.ValueIs(keys.LeaderTerm(), storage.Uint64(term))
		require.NoError(t, w.tso.Start(ctx, w.fence))
		for range 5 {
			use(w, true)
		}
		use(worlds[(term+1)%3], false) // former leaders that have not noticed yet
		use(worlds[(term+2)%3], false)
	}
	require.Greater(t, len(seenID), 1000)
}
