package commands

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/memlock"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// oracle gives timestamps: the next number, or an error.
type oracle struct {
	at      atomic.Uint64
	fetched atomic.Int64
	broken  atomic.Bool
}

func (o *oracle) fetch(context.Context) (uint64, error) {
	o.fetched.Add(1)
	if o.broken.Load() {
		return 0, errors.New("no placement service")
	}
	return o.at.Add(1), nil
}

func yes() bool { return true }

func choosing(st storage.BoundStorage, o *oracle) *Executor {
	e := New(st, Disk(), time.Minute)
	e.SetTimestamps(NewTimestamps(o.fetch, yes))
	return e
}

func put(start uint64, keys ...string) *Prewrite {
	p := &Prewrite{StartTS: start, Primary: []byte(keys[0]), TTL: 1, OnePC: true}
	for _, k := range keys {
		p.Mutations = append(p.Mutations,
			Mutation{Kind: mvcc.WriteKindPut, Key: []byte(k), Value: fmt.Append(nil, start)})
	}
	return p
}

// readers are all ways to read the key "k" at a timestamp; they return its value.
var readers = map[string]func(ctx context.Context, e *Executor, ts uint64) (string, error){
	"get": func(ctx context.Context, e *Executor, ts uint64) (string, error) {
		v, err := e.Get(ctx, nil, []byte("k"), At(ts))
		return string(v.Data), err
	},
	"get now": func(ctx context.Context, e *Executor, ts uint64) (string, error) {
		v, ok, err := e.GetNow(nil, []byte("k"), At(ts))
		if !ok {
			v, err = e.Get(ctx, nil, []byte("k"), At(ts))
		}
		return string(v.Data), err
	},
	"batch get": func(ctx context.Context, e *Executor, ts uint64) (s string, err error) {
		err = e.BatchGet(ctx, nil, keys("j", "k"), At(ts), func(p Pair) error {
			s = string(p.Value)
			return p.Err
		})
		return s, err
	},
	"scan": func(ctx context.Context, e *Executor, ts uint64) (s string, err error) {
		scan := &Scan{Read: At(ts), Start: []byte("a"), End: []byte("l"), Limit: 10}
		err = e.Scan(ctx, nil, scan, func(p Pair) error { s = string(p.Value); return p.Err })
		return s, err
	},
	"scan downwards": func(ctx context.Context, e *Executor, ts uint64) (s string, err error) {
		scan := &Scan{Read: At(ts), Start: []byte("z"), End: []byte("b"), Limit: 10, Reverse: true}
		err = e.Scan(ctx, nil, scan, func(p Pair) error { s = string(p.Value); return p.Err })
		return s, err
	},
}

// TestReadsWaitForChosenCommits: a commit whose timestamp the store has chosen is under way. A read
// behind it waits and sees it; one before it does not wait, and neither does one of another key.
func TestReadsWaitForChosenCommits(t *testing.T) {
	for name, read := range readers {
		t.Run(name, func(t *testing.T) {
			o := &oracle{}
			l := newLeader(storage.NewMemStorage())
			e := choosing(l, o)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			res, err := e.Prewrite(ctx, nil, put(10, "k"))
			require.NoError(t, err)
			require.Equal(t, uint64(11), res.CommitTS)
			l.set(func() { l.hold = true })
			written := make(chan Prewritten)
			go func() {
				res, err := e.Prewrite(ctx, nil, put(20, "k"))
				if err != nil {
					t.Error(err)
				}
				written <- res
			}()
			require.Eventually(t, func() bool {
				l.mu.Lock()
				defer l.mu.Unlock()
				return len(l.mu.held) == 1
			}, time.Minute, time.Millisecond)
			require.Equal(t, [][]byte{[]byte("k")}, e.locks.Keys())
			got, err := read(ctx, e, 20)
			require.NoError(t, err)
			require.Equal(t, "10", got, "the commit is behind this read")
			_, err = e.Get(ctx, nil, []byte("other"), At(500))
			require.NoError(t, err)
			type answer struct {
				value string
				err   error
			}
			answers := make(chan answer, 2)
			for _, ts := range []uint64{500, mvcc.TsMax} {
				go func() {
					v, err := read(ctx, e, ts)
					answers <- answer{v, err}
				}()
			}
			short, stop := context.WithTimeout(ctx, 60*time.Millisecond)
			defer stop()
			_, err = read(short, e, 21)
			require.ErrorIs(t, err, context.DeadlineExceeded, "the commit is at 21")
			l.set(func() { l.mu.held[0]() })
			require.Equal(t, uint64(21), (<-written).CommitTS)
			for range 2 {
				a := <-answers
				require.NoError(t, a.err)
				require.Equal(t, "20", a.value)
			}
			require.True(t, e.locks.Idle())
		})
	}
}

// TestListsOfLocksWait: a list of locks has those that are under way, and later ones commit behind
// it.
func TestListsOfLocksWait(t *testing.T) {
	l := newLeader(storage.NewMemStorage())
	e := choosing(l, &oracle{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l.hold = true
	go func() {
		p := put(20, "k")
		p.OnePC, p.AsyncCommit = false, true
		if _, err := e.Prewrite(ctx, nil, p); err != nil {
			t.Error(err)
		}
	}()
	require.Eventually(t, func() bool { return !e.locks.Idle() }, time.Minute, time.Millisecond)
	locks, err := e.ScanLocks(ctx, nil, 19, nil, nil, 10)
	require.NoError(t, err)
	require.Empty(t, locks)
	got := make(chan []mvcc.KeyLock)
	go func() {
		locks, err := e.ScanLocks(ctx, nil, 100, nil, nil, 10)
		if err != nil {
			t.Error(err)
		}
		got <- locks
	}()
	require.Eventually(t, func() bool {
		return e.locks.MaxTS() == 100
	}, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.mu.held) == 1
	}, time.Minute, time.Millisecond)
	l.set(func() { l.hold = false; l.mu.held[0]() })
	require.Len(t, <-got, 1)
	p := put(30, "l")
	p.OnePC, p.AsyncCommit = false, true
	res, err := e.Prewrite(ctx, nil, p)
	require.NoError(t, err)
	require.Equal(t, uint64(101), res.MinCommitTS)
}

// TestClaimsOfATermThatHasEnded: a commit whose outcome is never known holds up reads of its term,
// and nobody in the next.
func TestClaimsOfATermThatHasEnded(t *testing.T) {
	l := newLeader(storage.NewMemStorage())
	e := choosing(l, &oracle{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l.outcome = func(func()) (error, bool) { return errStale, false }
	for _, k := range []string{"k", "l"} {
		_, err := e.Prewrite(ctx, nil, put(20, k))
		require.ErrorIs(t, err, errStale)
	}
	short, stop := context.WithTimeout(ctx, 60*time.Millisecond)
	defer stop()
	_, err := e.Get(short, nil, []byte("k"), At(30))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	waiting := make(chan error)
	go func() {
		_, err := e.Get(ctx, nil, []byte("k"), At(40))
		waiting <- err
	}()
	require.Eventually(t, func() bool {
		return e.locks.MaxTS() == 40
	}, time.Minute, time.Millisecond)
	l.set(func() { l.mu.term, l.outcome = 6, nil })
	require.NoError(t, <-waiting)
	require.Equal(t, keys("l"), e.locks.Keys())
	_, err = e.Prewrite(ctx, nil, put(50, "m"))
	require.NoError(t, err)
	require.True(t, e.locks.Idle(), "the first choice of a term drops the claims of earlier ones")
	l.set(func() { l.mu.lost = errStale })
	_, err = e.Get(ctx, nil, []byte("k"), At(60))
	require.NoError(t, err, "nothing is claimed: the view decides")
}

// TestRefusedChoicesLeaveNoClaim: errors, conflicts, writes that are refused.
func TestRefusedChoicesLeaveNoClaim(t *testing.T) {
	l := newLeader(storage.NewMemStorage())
	e := choosing(l, &oracle{})
	ctx := context.Background()
	_, err := e.Prewrite(ctx, nil, put(20, "k"))
	require.NoError(t, err)
	res, err := e.Prewrite(ctx, nil, put(15, "j", "k"))
	require.NoError(t, err)
	require.Len(t, res.InWay, 1)
	require.True(t, e.locks.Idle())
	l.outcome = func(func()) (error, bool) { return errStale, true }
	_, err = e.Prewrite(ctx, nil, put(30, "k"))
	require.ErrorIs(t, err, errStale)
	require.True(t, e.locks.Idle())
	p := put(40, "k")
	p.MaxCommitTS = 40
	l.outcome = func(write func()) (error, bool) {
		require.True(t, e.locks.Idle(), "the locks are plain")
		write()
		return nil, true
	}
	res, err = e.Prewrite(ctx, nil, p)
	require.NoError(t, err)
	require.Equal(t, Prewritten{}, res)
}

// TestFirstChoiceOfATerm: a store asks for a timestamp once in each of its terms before it chooses
// one, after the term has begun; until it has got one, and until all stores know such locks, it
// leaves the choice to the client.
func TestFirstChoiceOfATerm(t *testing.T) {
	o := &oracle{}
	o.at.Store(100)
	l := newLeader(storage.NewMemStorage())
	e := choosing(l, o)
	ctx := context.Background()
	choose := func(start uint64, key string) uint64 {
		t.Helper()
		res, err := e.Prewrite(ctx, nil, put(start, key))
		require.NoError(t, err)
		require.Empty(t, res.InWay)
		return res.CommitTS
	}
	require.Equal(t, uint64(103), choose(10, "a"), "reads of other stores had timestamps up to 100")
	require.Equal(t, uint64(103), choose(11, "b"))
	require.Equal(t, int64(2), o.fetched.Load(), "one told the store that 10 is not in the future")
	o.at.Store(200)
	l.set(func() { l.mu.term = 6 })
	require.Equal(t, uint64(202), choose(12, "c"))
	l.set(func() { l.mu.term = 7 })
	o.broken.Store(true)
	require.Zero(t, choose(13, "d"))
	o.broken.Store(false)
	require.Equal(t, uint64(203), choose(14, "e"), "202 is the timestamp of this term")
	ready := false
	e.SetTimestamps(NewTimestamps(o.fetch, func() bool { return ready }))
	require.Zero(t, choose(15, "f"))
	ready = true
	require.NotZero(t, choose(16, "g"))

	// The term ends between the timestamp and the view.
	l.set(func() { l.mu.term = 8; l.mu.viewTerm = 9 })
	o.at.Store(300)
	require.Equal(t, uint64(303), choose(17, "h"), "one timestamp for each of the two terms")
}

// TestTimestampsOfTheFuture: a read at a timestamp that nobody has given out is refused, and pushes
// nothing.
func TestTimestampsOfTheFuture(t *testing.T) {
	o := &oracle{}
	e := choosing(storage.NewMemStorage().Storage(), o)
	clock := time.Unix(1000, 0)
	e.times.now = func() time.Time { return clock }
	o.at.Store(mvcc.Timestamp(1000_000, 0))
	ctx := context.Background()
	get := func(ms int64) error {
		_, err := e.Get(ctx, nil, []byte("k"), At(mvcc.Timestamp(ms, 7)))
		return err
	}
	require.NoError(t, get(1000_000))
	require.NoError(t, get(1000_900), "clocks are not that exact")
	require.Equal(t, int64(1), o.fetched.Load())
	var abort *AbortError
	require.ErrorAs(t, get(1001_100), &abort)
	require.Equal(t, int64(2), o.fetched.Load(), "it has asked again")
	_, err := e.CheckTxnStatus(ctx, nil,
		&StatusQuery{Primary: []byte("k"), LockTS: 5, CurrentTS: mvcc.Timestamp(1009_000, 0)})
	require.ErrorAs(t, err, &abort)
	_, err = e.ScanLocks(ctx, nil, mvcc.Timestamp(1009_000, 0), nil, nil, 1)
	require.ErrorAs(t, err, &abort)
	require.Equal(t, mvcc.Timestamp(1000_900, 7), e.locks.MaxTS())
	clock = clock.Add(time.Hour)
	require.NoError(t, get(1000_000+3600_000))
	require.Equal(t, int64(4), o.fetched.Load(), "time passes by itself")
	o.broken.Store(true)
	err = get(9000_000)
	require.True(t, NoPlacement(err), "%v", err)
	_, err = e.Get(ctx, nil, []byte("k"), At(mvcc.TsMax))
	require.NoError(t, err)
}

// TestRecordsOfTheFuture: what would keep other transactions from a key until then is refused, and
// leaves nothing. What ends transactions does not depend on the placement service.
func TestRecordsOfTheFuture(t *testing.T) {
	o, mem := &oracle{}, storage.NewMemStorage()
	e := choosing(mem.Storage(), o)
	clock := time.Unix(1000, 0)
	e.times.now = func() time.Time { return clock }
	o.at.Store(mvcc.Timestamp(1000_000, 0))
	ctx := context.Background()
	now, far := mvcc.Timestamp(1000_000, 0), mvcc.Timestamp(2000_000, 0)
	var abort *AbortError
	refused := func(err error) {
		t.Helper()
		require.ErrorAs(t, err, &abort)
		require.ErrorContains(t, err, "in the future")
	}
	for _, p := range []*Prewrite{
		put(far, "k"),
		{StartTS: now, ForUpdateTS: far, Primary: []byte("k"), Mutations: put(now, "k").Mutations},
		{StartTS: now, MinCommitTS: far, Primary: []byte("k"), Mutations: put(now, "k").Mutations},
	} {
		_, err := e.Prewrite(ctx, nil, p)
		refused(err)
	}
	_, err := e.AcquireLocks(ctx, nil, &PessimisticLock{
		StartTS: far, ForUpdateTS: far, Primary: []byte("k"), Keys: []LockedKey{{Key: []byte("k")}},
	})
	refused(err)
	refused(e.Rollback(ctx, nil, keys("k"), far))
	_, err = e.Cleanup(ctx, nil, []byte("k"), far, 0)
	refused(err)
	require.Equal(t, "nothing\n", dump(t, mem, mvcc.CodecTiKV))

	res, err := e.Prewrite(ctx, nil, &Prewrite{
		StartTS: now, Primary: []byte("k"), TTL: 9, MinCommitTS: mvcc.Timestamp(1030_000, 0),
		Mutations: put(now, "k").Mutations,
	})
	require.NoError(t, err)
	require.Empty(t, res.InWay)
	refused(e.Commit(ctx, nil, keys("k"), now, far))
	o.broken.Store(true)
	require.NoError(t, e.Commit(ctx, nil, keys("k"), now, mvcc.Timestamp(1030_000, 0)),
		"another store may have chosen it")
	fetched := o.fetched.Load()
	require.NoError(t, e.Rollback(ctx, nil, keys("l"), far), "it is not known to be in the future")
	require.Equal(t, fetched+1, o.fetched.Load(), "it has asked")
}

// TestChecksOfAbsenceAreReads: a check that a key does not exist holds for its timestamp, so no
// commit gets below it.
func TestChecksOfAbsenceAreReads(t *testing.T) {
	e := choosing(storage.NewMemStorage().Storage(), &oracle{})
	ctx := context.Background()
	_, err := e.Prewrite(ctx, nil, &Prewrite{
		StartTS: 50, Primary: []byte("p"),
		Mutations: []Mutation{{Kind: mvcc.WriteKindLock, Key: []byte("k"), CheckOnly: true}},
	})
	require.NoError(t, err)
	res, err := e.Prewrite(ctx, nil, put(20, "k"))
	require.NoError(t, err)
	require.Equal(t, uint64(51), res.CommitTS)
}

// slow applies each write on a goroutine of its own, some time later.
type slow struct {
	storage.BoundStorage
	wg sync.WaitGroup
}

func (s *slow) WriteBound(
	c *kvrpcpb.Context, b storage.Bound, mods []storage.Modify, d time.Time, done func(error, bool),
) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond) // the time that a write takes
		s.BoundStorage.WriteBound(c, b, mods, d, done)
	}()
}

// TestReadsMissNoChosenCommit: transactions of both kinds and reads of all kinds side by side. Each
// read sees all commits up to its timestamp, also those that were chosen and not written when it
// began.
func TestReadsMissNoChosenCommit(t *testing.T) {
	o := &oracle{}
	st := &slow{BoundStorage: storage.NewMemStorage().Storage()}
	e := choosing(st, o)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	commits := []uint64{}
	values := map[uint64]string{0: ""}
	type seen struct {
		ts    uint64
		way   string
		value string
	}
	var looks []seen
	const enough = 60
	some := func() bool { // until there is enough to mean anything
		mu.Lock()
		defer mu.Unlock()
		return (len(commits) < enough || len(looks) < enough) && !t.Failed()
	}
	write := func(start uint64) {
		p := put(start, "k")
		if start%2 == 0 {
			p.OnePC, p.AsyncCommit = false, true
		}
		res, err := e.Prewrite(ctx, nil, p)
		if err != nil || len(res.InWay) > 0 {
			return
		}
		at := res.CommitTS
		if at == 0 {
			at = res.MinCommitTS
			if err := e.Commit(ctx, nil, keys("k"), start, at); err != nil {
				t.Error(err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		commits = append(commits, at)
		values[at] = fmt.Sprint(start)
	}
	look := func(way string, ts uint64) {
		v, err := readers[way](ctx, e, ts)
		var locked *LockedError
		if errors.As(err, &locked) {
			return
		}
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		looks = append(looks, seen{ts, way, v})
	}
	var wg sync.WaitGroup
	run := func(do func(ts uint64)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for some() {
				do(o.at.Add(1))
			}
		}()
	}
	for range 3 {
		run(write)
	}
	for way := range readers {
		run(func(ts uint64) { look(way, ts) })
	}
	wg.Wait()
	st.wg.Wait()
	sort.Slice(commits, func(i, j int) bool { return commits[i] < commits[j] })
	for _, s := range looks {
		n := sort.Search(len(commits), func(i int) bool { return commits[i] > s.ts })
		want := ""
		if n > 0 {
			want = values[commits[n-1]]
		}
		require.Equal(t, want, s.value, "%s at %d", s.way, s.ts)
	}
	require.True(t, e.locks.Idle())
}

// partings are all ways in which the pessimistic lock of the transaction 105 on the key "k" goes
// without a record of a commit.
var partings = map[string]func(ctx context.Context, e *Executor) error{
	"release": func(ctx context.Context, e *Executor) error {
		return e.ReleaseLocks(ctx, nil, keys("k"), 105, 150)
	},
	"release of all": func(ctx context.Context, e *Executor) error {
		return e.ReleaseLocks(ctx, nil, nil, 105, 150)
	},
	"release at the end of time": func(ctx context.Context, e *Executor) error {
		return e.ReleaseLocks(ctx, nil, keys("k"), 105, mvcc.TsMax)
	},
	"release in the future": func(ctx context.Context, e *Executor) error {
		return e.ReleaseLocks(ctx, nil, keys("k"), 105, mvcc.Timestamp(3600_000, 0))
	},
	"rollback": func(ctx context.Context, e *Executor) error {
		return e.Rollback(ctx, nil, keys("k"), 105)
	},
	"cleanup": func(ctx context.Context, e *Executor) error {
		_, err := e.Cleanup(ctx, nil, []byte("k"), 105, 0)
		return err
	},
	"resolving": func(ctx context.Context, e *Executor) error {
		return e.ResolveLocks(ctx, nil, Outcomes{105: 0})
	},
	"secondary": func(ctx context.Context, e *Executor) error {
		_, err := e.CheckSecondaryLocks(ctx, nil, keys("k"), 105)
		return err
	},
	"status": func(ctx context.Context, e *Executor) error {
		_, err := e.CheckTxnStatus(ctx, nil,
			&StatusQuery{Primary: []byte("k"), LockTS: 105, CurrentTS: mvcc.TsMax})
		return err
	},
	"status of a pessimistic lock": func(ctx context.Context, e *Executor) error {
		_, err := e.CheckTxnStatus(ctx, nil, &StatusQuery{
			Primary: []byte("k"), LockTS: 105, CurrentTS: mvcc.TsMax, Pessimistic: true,
		})
		return err
	},
	"status of another primary": func(ctx context.Context, e *Executor) error {
		_, err := e.CheckTxnStatus(ctx, nil, &StatusQuery{
			Primary: []byte("k"), LockTS: 105, VerifyPrimary: true, RollbackIfMissing: true,
		})
		return err
	},
}

// lockedOnce has the transaction 105 lock "k" at 110, in an executor that has chosen a timestamp
// before.
func lockedOnce(t *testing.T, e *Executor, o *oracle) {
	t.Helper()
	o.at.Store(100)
	res, err := e.Prewrite(context.Background(), nil, put(5, "a"))
	require.NoError(t, err)
	require.Equal(t, uint64(103), res.CommitTS)
	_, err = e.AcquireLocks(context.Background(), nil, &PessimisticLock{
		Keys: []LockedKey{{Key: []byte("k")}}, Primary: []byte("p"), StartTS: 105, ForUpdateTS: 110,
		TTL: 1,
	})
	require.NoError(t, err)
	o.at.Store(150)
}

// TestLocksThatGoPushLaterCommits: a transaction has locked a key, and then another one, in another
// store, at 150. Then the lock goes. Who has waited for it commits behind 150, although this store
// has heard of no such timestamp; and the lock goes although the placement service does not answer.
func TestLocksThatGoPushLaterCommits(t *testing.T) {
	for name, part := range partings {
		t.Run(name, func(t *testing.T) {
			o := &oracle{}
			e := choosing(newLeader(storage.NewMemStorage()), o)
			lockedOnce(t, e, o)
			ctx := context.Background()
			waits := put(106, "k")
			waits.MinCommitTS = 120
			res, err := e.Prewrite(ctx, nil, waits)
			require.NoError(t, err)
			require.Len(t, res.InWay, 1)
			o.broken.Store(true)
			require.NoError(t, part(ctx, e))
			o.broken.Store(false)
			res, err = e.Prewrite(ctx, nil, waits)
			require.NoError(t, err)
			require.Empty(t, res.InWay)
			require.Greater(t, res.CommitTS, uint64(150))
			n := o.fetched.Load()
			res, err = e.Prewrite(ctx, nil, put(107, "l"))
			require.NoError(t, err)
			require.NotZero(t, res.CommitTS)
			require.Equal(t, n, o.fetched.Load(), "one timestamp is enough")
		})
	}
}

// TestLocksThatGoMeanwhile: the lock goes after a commit has found max_ts large enough, while it
// waits for its latch.
func TestLocksThatGoMeanwhile(t *testing.T) {
	o := &oracle{}
	l := newLeader(storage.NewMemStorage())
	e := choosing(l, o)
	lockedOnce(t, e, o)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l.set(func() { l.hold = true })
	ends := make(chan error, 3)
	go func() {
		_, err := e.HeartBeat(ctx, nil, []byte("k"), 105, 2)
		ends <- err
	}()
	held := func() (n int) {
		l.set(func() { n = len(l.mu.held) })
		return n
	}
	require.Eventually(t, func() bool { return held() == 1 }, time.Minute, time.Millisecond)
	waiters := func(n int) func() bool { return func() bool { return e.latches.Waiting() == n } }
	go func() { ends <- e.Rollback(ctx, nil, keys("k"), 105) }()
	require.Eventually(t, waiters(1), time.Minute, time.Millisecond)
	chosen := make(chan uint64, 1)
	go func() {
		res, err := e.Prewrite(ctx, nil, put(106, "k"))
		chosen <- res.CommitTS
		ends <- err
	}()
	require.Eventually(t, waiters(2), time.Minute, time.Millisecond)
	l.set(func() { l.hold = false; l.mu.held[0]() })
	require.Greater(t, <-chosen, uint64(150))
	for range 3 {
		require.NoError(t, <-ends)
	}
}

// TestDoubtDuringASync: a timestamp that was asked for before a lock went is not enough.
func TestDoubtDuringASync(t *testing.T) {
	var s *Timestamps
	doubts, at := 1, uint64(0)
	s = NewTimestamps(func(context.Context) (uint64, error) {
		at++
		if doubts--; doubts >= 0 {
			s.doubt(1)
		}
		return at, nil
	}, yes)
	var locks memlock.Table
	ctx := context.Background()
	require.False(t, s.sync(ctx, &locks, 1, tenure{5, 1}))
	require.True(t, s.sync(ctx, &locks, 1, tenure{5, 1}))
	require.True(t, s.synced(1, tenure{5, 1}))
	s.doubt(2)
	require.True(t, s.synced(1, tenure{5, 1}), "that was another region")
	s.doubt(1)
	require.False(t, s.synced(1, tenure{5, 1}))
	require.Equal(t, uint64(2), at)
}

// TestTenures: what was fetched counts for one version of the region in one term. A region of
// another version may have taken another one in, with keys that other leaders have served, and from
// which they have removed versions.
func TestTenures(t *testing.T) {
	at := uint64(0)
	s := NewTimestamps(func(context.Context) (uint64, error) { at++; return at, nil }, yes)
	safe := NewSafePoints(func(context.Context) (txn, gc uint64, err error) {
		at++
		return at, at, nil
	})
	var locks memlock.Table
	ctx := context.Background()
	for i, next := range []tenure{{5, 1}, {5, 2}, {6, 2}, {7, 3}} {
		require.False(t, s.synced(1, next))
		require.True(t, s.sync(ctx, &locks, 1, next))
		require.True(t, s.sync(ctx, &locks, 1, next))
		require.Equal(t, uint64(2*i+1), locks.MaxTS())
		for range 2 {
			got, err := safe.txnIn(ctx, 1, next)
			require.NoError(t, err)
			require.Equal(t, uint64(2*i+2), got)
		}
	}
	require.False(t, s.sync(ctx, &locks, 1, tenure{7, 2}), "that version is over")
	require.True(t, s.synced(1, tenure{7, 3}))
}
