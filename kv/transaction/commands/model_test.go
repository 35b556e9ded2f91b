package commands

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
)

// modelKey is what a dumb model knows of a key.
type modelKey struct {
	lock   uint64 // start timestamp of who has it; 0 is nobody
	kind   mvcc.WriteKind
	value  string
	commit map[uint64]modelVersion // by commit timestamp
	rolled map[uint64]bool         // start timestamps
}

type modelVersion struct {
	start uint64
	kind  mvcc.WriteKind
	value string
}

func (k *modelKey) committed(start uint64) (uint64, bool) {
	for c, v := range k.commit {
		if v.start == start {
			return c, true
		}
	}
	return 0, false
}

// newest is the largest timestamp of a record.
func (k *modelKey) newest() uint64 {
	var ts uint64
	for c := range k.commit {
		ts = max(ts, c)
	}
	for s := range k.rolled {
		ts = max(ts, s)
	}
	return ts
}

func (k *modelKey) at(ts uint64) (string, bool) {
	var best uint64
	for c, v := range k.commit {
		if c <= ts && c > best && v.kind != mvcc.WriteKindLock {
			best = c
		}
	}
	v := k.commit[best]
	return v.value, best > 0 && v.kind == mvcc.WriteKindPut
}

type model map[string]*modelKey

func (m model) prewrite(start uint64, kind mvcc.WriteKind, value string, keys []string) bool {
	inWay := false
	for _, name := range keys {
		k := m[name]
		if k.lock == start || (k.newest() < start && k.lock == 0) {
			continue
		}
		if _, done := k.committed(start); done {
			return true // an old request: success, and nothing is done
		}
		inWay = true
	}
	if inWay {
		return false
	}
	for _, name := range keys {
		if k := m[name]; k.lock != start {
			k.lock, k.kind, k.value = start, kind, value
		}
	}
	return true
}

func (m model) commit(start, commit uint64, keys []string) bool {
	for _, name := range keys {
		if _, done := m[name].committed(start); m[name].lock != start && !done {
			return false
		}
	}
	for _, name := range keys {
		if k := m[name]; k.lock == start {
			k.commit[commit] = modelVersion{start, k.kind, k.value}
			k.lock = 0
		}
	}
	return true
}

func (m model) rollback(start uint64, keys []string) bool {
	for _, name := range keys {
		if _, done := m[name].committed(start); m[name].lock != start && done {
			return false
		}
	}
	for _, name := range keys {
		k := m[name]
		if k.lock == start {
			k.lock = 0
		}
		k.rolled[start] = true
	}
	return true
}

// run is one history: the executor over a storage that loses and refuses writes, and the model.
type run struct {
	t   *rapid.T
	l   *leader
	e   *Executor
	m   model
	all []string
}

// TestAgainstTheModel: random commands, old ones among them, with few keys and timestamps; writes
// that are refused because the leader has changed, and writes whose answer is lost.
func TestAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLeader(storage.NewMemStorage())
		r := &run{
			t: t, l: l, e: New(l, Disk(), time.Minute), m: model{}, all: []string{"a", "b", "c"},
		}
		for _, k := range r.all {
			r.m[k] = &modelKey{commit: map[uint64]modelVersion{}, rolled: map[uint64]bool{}}
		}
		// A transaction's timestamps are its own: even to start, odd to commit.
		for range rapid.IntRange(1, 40).Draw(t, "commands") {
			r.command()
		}
		r.compare()
	})
}

// faulty has the next write refused, or carried out without an answer, and tells whether it takes
// effect.
func (r *run) faulty() (effect, answered bool) {
	effect, answered = true, true
	r.l.outcome = nil
	switch rapid.IntRange(0, 5).Draw(r.t, "fault") {
	case 0:
		effect = false
		r.l.outcome = func(func()) (error, bool) { return errStale, true }
	case 1:
		answered = false
		r.l.outcome = func(write func()) (error, bool) { write(); return errStale, true }
	}
	return effect, answered
}

func (r *run) command() {
	ctx := context.Background()
	id := rapid.Uint64Range(1, 6).Draw(r.t, "txn")
	start, commit := 10*id, 10*id+rapid.SampledFrom([]uint64{1, 13, 25}).Draw(r.t, "later")
	names := rapid.SliceOfNDistinct(rapid.SampledFrom(r.all), 1, 3, rapid.ID).Draw(r.t, "keys")
	if c, done := r.commitOf(start); done {
		commit = c // it is decided
	}
	effect, answered := r.faulty()
	var err error
	var ok bool
	before := r.m.clone()
	switch rapid.IntRange(0, 4).Draw(r.t, "command") {
	case 0:
		kind := rapid.SampledFrom([]mvcc.WriteKind{
			mvcc.WriteKindPut, mvcc.WriteKindDelete, mvcc.WriteKindLock,
		}).Draw(r.t, "kind")
		value := ""
		if kind == mvcc.WriteKindPut {
			value = fmt.Sprint(id, "-", string(make([]byte, 300*int(id%2))))
		}
		p := &Prewrite{StartTS: start, Primary: []byte("a"), TTL: 1}
		for _, n := range names {
			p.Mutations = append(p.Mutations,
				Mutation{Kind: kind, Key: []byte(n), Value: []byte(value)})
		}
		var res Prewritten
		res, err = r.e.Prewrite(ctx, nil, p)
		err = errors.Join(append(res.InWay, err)...)
		ok = r.m.prewrite(start, kind, value, names)
	case 1:
		if r.decided(start) {
			return // what is rolled back anywhere is never committed
		}
		err = r.e.Commit(ctx, nil, keys(names...), start, commit)
		ok = r.m.commit(start, commit, names)
	case 2:
		if _, done := r.commitOf(start); done {
			return
		}
		err = r.e.Rollback(ctx, nil, keys(names...), start)
		ok = r.m.rollback(start, names)
	case 3:
		r.status(start)
		return
	default:
		var locked []string
		for _, n := range r.all {
			if r.m[n].lock == start {
				locked = append(locked, n)
			}
		}
		if c, done := r.commitOf(start); done {
			err = r.e.ResolveLocks(ctx, nil, Outcomes{start: c})
			ok = r.m.commit(start, c, locked)
		} else {
			err = r.e.ResolveLocks(ctx, nil, Outcomes{start: 0})
			ok = r.m.rollback(start, locked)
		}
	}
	switch {
	case errors.Is(err, errStale):
		if !effect {
			r.m = before
		}
	case err != nil:
		require.False(r.t, ok, "%v", err)
	default:
		require.True(r.t, ok)
		// Without anything to write no fault strikes.
		require.True(r.t, effect && answered || r.m.equal(before),
			"a write that was refused was acknowledged")
	}
}

// status checks CheckTxnStatus on the key "a", with a time at which no lock has expired.
func (r *run) status(start uint64) {
	if _, done := r.m["a"].committed(start); !done && r.m["a"].lock != start {
		if _, elsewhere := r.commitOf(start); elsewhere {
			return // its primary would be committed first
		}
	}
	r.l.outcome = nil
	st, err := r.e.CheckTxnStatus(context.Background(), nil, &StatusQuery{
		Primary: []byte("a"), LockTS: start, CurrentTS: start, RollbackIfMissing: true,
	})
	require.NoError(r.t, err)
	c, done := r.m["a"].committed(start)
	require.Equal(r.t, done, st.CommitTS == c && c != 0)
	require.Equal(r.t, r.m["a"].lock == start, st.LockTTL > 0)
	if !done && r.m["a"].lock != start {
		r.m["a"].rolled[start] = true
	}
}

// commitOf is where a transaction was committed, at any key.
func (r *run) commitOf(start uint64) (uint64, bool) {
	for _, k := range r.m {
		if c, done := k.committed(start); done {
			return c, true
		}
	}
	return 0, false
}

func (r *run) decided(start uint64) bool {
	for _, k := range r.m {
		if k.rolled[start] {
			return true
		}
	}
	return false
}

// compare reads everything at every timestamp.
func (r *run) compare() {
	for _, name := range r.all {
		for ts := uint64(1); ts < 90; ts++ {
			got, err := r.e.Get(context.Background(), nil, []byte(name), At(ts))
			k := r.m[name]
			if k.lock != 0 && k.lock <= ts && k.kind != mvcc.WriteKindLock {
				var locked *LockedError
				require.ErrorAs(r.t, err, &locked)
				continue
			}
			require.NoError(r.t, err)
			want, wantFound := k.at(ts)
			require.Equal(r.t, wantFound, got.Found, "%s at %d", name, ts)
			require.Equal(r.t, want, string(got.Data))
		}
	}
}

func (m model) clone() model {
	out := model{}
	for name, k := range m {
		c := *k
		c.commit, c.rolled = map[uint64]modelVersion{}, map[uint64]bool{}
		for ts, v := range k.commit {
			c.commit[ts] = v
		}
		for ts := range k.rolled {
			c.rolled[ts] = true
		}
		out[name] = &c
	}
	return out
}

func (m model) equal(o model) bool { return fmt.Sprint(flat(m)) == fmt.Sprint(flat(o)) }

func flat(m model) map[string]string {
	out := map[string]string{}
	for name, k := range m {
		locked := k.value
		if k.lock == 0 {
			locked = ""
		}
		out[name] = fmt.Sprint(k.lock, locked, k.commit, k.rolled)
	}
	return out
}
