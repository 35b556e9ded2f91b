package apply

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// replica is a region's state machine, with the index that comes next.
type replica struct {
	t    *testing.T
	w    *Worker
	host *lone
	e    *memengine.Engine
	id   uint64
	next uint64
}

func newReplica(t *testing.T, native bool) *replica {
	t.Helper()
	r := region(1, "", "", 1, 1, voter(1, 1))
	var wrap func(engine.Engine) engine.Engine
	if !native {
		wrap = func(e engine.Engine) engine.Engine { return plainEngine{e} }
	}
	w, h, e := newTestWorker(t, wrap, r)
	return &replica{t: t, w: w, host: h, e: e, id: 1, next: meta.InitLogIndex + 1}
}

func (r *replica) region() *metapb.Region { return r.w.regions[r.id].region }

// apply carries out entries of one payload each in one round.
func (r *replica) apply(payloads ...[]byte) []message.Result {
	r.t.Helper()
	var entries []eraftpb.Entry
	for _, p := range payloads {
		data := message.AppendChecksum(
			append(message.AppendHeader(nil, r.id, r.region().RegionEpoch), p...))
		entries = append(entries, eraftpb.Entry{Index: r.next, Term: 6, Data: data})
		r.next++
	}
	return r.carryOut(entries)
}

func (r *replica) carryOut(entries []eraftpb.Entry) []message.Result {
	r.t.Helper()
	task, cbs := entriesOf(r.id, entries...)
	require.NoError(r.t, r.w.round([]Task{task}))
	require.Empty(r.t, r.host.damaged)
	out := make([]message.Result, len(cbs))
	for i, cb := range cbs {
		out[i] = answered(r.t, cb)
	}
	return out
}

func (r *replica) admin(req *raft_cmdpb.AdminRequest) message.Result {
	r.t.Helper()
	e := eraftpb.Entry{Index: r.next, Term: 6, Data: adminEntry(r.t, r.region(), req)}
	r.next++
	return r.carryOut([]eraftpb.Entry{e})[0]
}

// view is what a reader sees whose clock says now.
func (r *replica) view(now uint64) *storage.View {
	region := r.region()
	if region.ExpiryFloor == 0 {
		now = 0
	}
	return storage.NewView(r.e.NewSnapshot(), region.StartKey,
		region.EndKey).HideExpired(max(now, region.ExpiryFloor))
}

func (r *replica) scan(now uint64, backwards bool) string {
	r.t.Helper()
	v := r.view(now)
	defer v.Close()
	it := v.Iterate(engine.CFDefault, nil, nil)
	defer it.Close()
	var out []string
	first, next := it.First, it.Next
	if backwards {
		first, next = it.Last, it.Prev
	}
	for first(); it.Valid(); next() {
		line := fmt.Sprintf("%s=%s", it.Key(), it.Value())
		ttl, found, err := v.TTL(engine.CFDefault, it.Key())
		require.NoError(r.t, err)
		require.True(r.t, found, "a scan shows what a get does not")
		if ttl > 0 {
			line += fmt.Sprintf("(%d)", ttl)
		}
		out = append(out, line)
	}
	require.NoError(r.t, it.Err())
	return strings.Join(out, " ")
}

// counts are the values and the expiry times that the engine has, and checks that each time is a
// value's.
func (r *replica) counts() (values, times int) {
	r.t.Helper()
	snap := r.e.NewSnapshot()
	defer snap.Close()
	for _, cf := range engine.AllCFs {
		it := snap.NewIterator(engine.DataKey(cf, nil), engine.DataEndKey(cf, nil))
		for it.First(); it.Valid(); it.Next() {
			if !cf.HoldsExpiry() {
				values++
				continue
			}
			times++
			_, found, err := r.e.Get(engine.DataKey(engine.CFDefault, engine.UserKey(it.Key())))
			require.NoError(r.t, err)
			require.True(r.t, found, "an expiry time without a value")
		}
		it.Close()
	}
	return values, times
}

func putFor(key, value string, now, ttl uint64) []byte {
	if ttl == 0 {
		return message.AppendPut(nil, "default", []byte(key), []byte(value))
	}
	return message.AppendPutWithLife(nil, "default", []byte(key), []byte(value),
		message.Life{Now: now, TTL: ttl})
}

func expireAt(now uint64, keys ...string) []byte {
	r := &raft_cmdpb.ExpireRequest{Now: now}
	for _, k := range keys {
		r.Keys = append(r.Keys, &raft_cmdpb.ExpiringKey{Key: []byte(k)})
	}
	return message.AppendExpire(nil, r)
}

// payloadOf reads a command of the transcripts.
func payloadOf(t *testing.T, d *datadriven.TestData) []byte {
	t.Helper()
	var key, value, expected string
	var now, ttl uint64
	d.MaybeScanArgs(t, "now", &now)
	d.MaybeScanArgs(t, "ttl", &ttl)
	d.MaybeScanArgs(t, "key", &key)
	d.MaybeScanArgs(t, "value", &value)
	d.MaybeScanArgs(t, "expected", &expected)
	switch d.Cmd {
	case "put":
		return putFor(key, value, now, ttl)
	case "delete":
		return message.AppendDelete(nil, "default", []byte(key))
	case "delete-range":
		return message.AppendDeleteRange(nil, "default", nil, nil)
	case "expire":
		return expireAt(now, strings.Fields(d.Input)...)
	case "swap":
		q := swapRequest(key, absent, value)
		if d.HasArg("expected") {
			q = swapRequest(key, expected, value)
		}
		q.Now, q.Ttl, q.Delete = now, ttl, d.HasArg("delete")
		return message.AppendSwap(nil, q)
	}
	return nil
}

// TestExpiryTranscripts: testdata/expiry says what the entries do.
func TestExpiryTranscripts(t *testing.T) {
	var r *replica
	datadriven.RunTest(t, "testdata/expiry", func(t *testing.T, d *datadriven.TestData) string {
		var now uint64
		d.MaybeScanArgs(t, "now", &now)
		switch d.Cmd {
		case "new":
			r = newReplica(t, true)
			return ""
		case "show":
			values, times := r.counts()
			return fmt.Sprintf("%s\nfloor %d, %d values, %d times", r.scan(now, false),
				r.region().ExpiryFloor, values, times)
		}
		r.t = t
		res := r.apply(payloadOf(t, d))[0]
		switch s := res.Swap(); {
		case res.Err != nil:
			return res.Err.Error()
		case s == nil:
			return "ok"
		case s.Found:
			return fmt.Sprintf("swapped %v, was %s", s.Swapped, s.Previous)
		default:
			return fmt.Sprintf("swapped %v, was absent", s.Swapped)
		}
	})
}

// TestExpiryOfOddTimes: no clock and no TTL makes a key expire before its time, or a worker stop.
func TestExpiryOfOddTimes(t *testing.T) {
	r := newReplica(t, true)
	res := r.apply(expireAt(1000), putFor("a", "v", math.MaxUint64, math.MaxUint64),
		putFor("b", "v", 0, 5),
		putFor("c", "v", 5, math.MaxUint64),
		message.AppendPut(nil, "lock", []byte("a"), []byte("l")), expireAt(0))
	for i := range res[:5] {
		require.NoError(t, res[i].Err, i)
	}
	require.ErrorContains(t, res[5].Err, "floor")
	require.Equal(t, "a=v(18446744073709551) b=v(1) c=v(18446744073709551)", r.scan(1004, false))
	require.Equal(t, "c=v(18446744073709551) a=v(18446744073709551)", r.scan(1005, true))
	out := r.apply(message.AppendExpire(nil,
		&raft_cmdpb.ExpireRequest{
			Now: 9, Keys: []*raft_cmdpb.ExpiringKey{{Cf: "holidays", Key: []byte("a")}},
		}))
	require.ErrorContains(t, out[0].Err, "holidays")
}

// TestExpiryFamilyOfEachFamily: the same key in two families has two lives.
func TestExpiryFamilyOfEachFamily(t *testing.T) {
	r := newReplica(t, true)
	life := message.Life{Now: 10, TTL: 5}
	r.apply(expireAt(10),
		message.AppendPutWithLife(nil, "lock", []byte("k"), []byte("l"), life),
		message.AppendPut(nil, "write", []byte("k"), []byte("w")),
		putFor("k", "d", 10, 90))
	v := r.view(15)
	defer v.Close()
	for cf, want := range map[engine.CF]bool{
		engine.CFDefault: true, engine.CFLock: false, engine.CFWrite: true,
	} {
		_, found, err := v.Get(cf, []byte("k"))
		require.NoError(t, err)
		require.Equal(t, want, found, cf)
	}
}

// TestExpiryModel has replicas with different rounds, engines and restarts carry out the same
// entries, and compares what readers at any time see, and what compare-and-swaps answer, with a
// map.
func TestExpiryModel(t *testing.T) {
	for seed := range uint64(60) {
		runExpiryModel(t, seed)
	}
}

// living is a value of the model. at is when it expires; 0: never.
type living struct {
	value string
	at    uint64
}

type expiryModel struct {
	t      *testing.T
	rng    *rand.Rand
	floor  uint64
	values map[string]living
	now    uint64
}

func runExpiryModel(t *testing.T, seed uint64) {
	t.Helper()
	m := &expiryModel{
		t: t, rng: rand.New(rand.NewPCG(seed, 7)), values: map[string]living{}, now: 1000,
	}
	one, many := newReplica(t, true), newReplica(t, false)
	var payloads [][]byte
	var want []message.Result
	var gave []message.Result
	for range 150 {
		m.now += m.rng.Uint64N(20)
		p, res := m.step()
		payloads, want = append(payloads, p), append(want, res)
		got := one.apply(p)[0]
		gave = append(gave, got)
		m.check(res, got)
		m.compare(one, seed)
		if m.rng.IntN(20) == 0 { // a restart goes on with what the engine has
			st, err := meta.LoadRegionState(one.e, one.id)
			require.NoError(t, err)
			b := beginning(st.Region)
			b.Applied = one.next - 1
			one.w.begin(one.id, b)
		}
	}
	got := many.apply(payloads...) // in one round
	for i := range want {
		require.Equal(t, fmt.Sprint(gave[i].Err, gave[i].Swap()),
			fmt.Sprint(got[i].Err, got[i].Swap()), "seed %d entry %d", seed, i)
	}
	require.Equal(t, one.region().ExpiryFloor, many.region().ExpiryFloor)
	require.Equal(t, dataHash(t, one), dataHash(t, many), "seed %d: replicas differ", seed)
	m.split(one, many, seed)
}

// split has both replicas split their region, and the right halves go on.
func (m *expiryModel) split(one, many *replica, seed uint64) {
	m.t.Helper()
	floor := one.region().ExpiryFloor
	for _, r := range []*replica{one, many} {
		res := r.admin(splitRequest("c", 2, 20))
		require.NoError(m.t, res.Err)
		right := r.host.reserved[0]
		require.Equal(m.t, floor, right.ExpiryFloor,
			"the right half does not know that its keys may expire")
		require.Equal(m.t, floor, r.region().ExpiryFloor)
		r.w.begin(2, beginning(right))
		r.id, r.next = 2, meta.InitLogIndex+1
		require.NoError(m.t, r.apply(putFor("d", "right", m.now, uint64(seed)*1000))[0].Err)
	}
	require.Equal(m.t, one.scan(m.now, false), many.scan(m.now, false))
}

func dataHash(t *testing.T, r *replica) uint64 {
	t.Helper()
	snap := r.e.NewSnapshot()
	defer snap.Close()
	h, err := runner.HashRegion(snap, r.region(), func(int) error { return nil })
	require.NoError(t, err)
	return h
}

// get is what an entry with a clock finds.
func (m *expiryModel) get(key string, now uint64) (living, bool) {
	v, ok := m.values[key]
	if ok && v.at > 0 && v.at <= max(now, m.floor) {
		return living{}, false
	}
	return v, ok
}

func (m *expiryModel) put(key, value string, now, ttl uint64) {
	v := living{value: value}
	if ttl > 0 {
		v.at = max(now, m.floor) + ttl
	}
	m.values[key] = v
}

// step makes one entry and carries it out on the map. Proposers' clocks are some way apart.
func (m *expiryModel) step() ([]byte, message.Result) {
	clock := m.now - m.rng.Uint64N(60)
	key, value := string(rune('a'+m.rng.IntN(5))), fmt.Sprint(m.rng.IntN(3))
	ttl := m.rng.Uint64N(3) * m.rng.Uint64N(100)
	switch m.rng.IntN(12) {
	case 0, 1, 2, 3:
		if ttl > 0 && m.floor == 0 {
			return putFor(key, value, clock, ttl), message.Result{Err: errNotExpiring}
		}
		m.put(key, value, clock, ttl)
		return putFor(key, value, clock, ttl), message.Result{}
	case 4:
		delete(m.values, key)
		return message.AppendDelete(nil, "default", []byte(key)), message.Result{}
	case 5:
		for k := range m.values {
			if k >= "b" && k < "d" {
				delete(m.values, k)
			}
		}
		return message.AppendDeleteRange(nil, "default", []byte("b"), []byte("d")), message.Result{}
	case 6, 7:
		m.floor = max(m.floor, clock)
		for _, k := range []string{key, "a"} {
			if _, ok := m.get(k, 0); !ok {
				delete(m.values, k)
			}
		}
		return expireAt(clock, key, "a"), message.Result{}
	default:
		return m.swap(key, value, clock, ttl)
	}
}

func (m *expiryModel) swap(key, value string, now, ttl uint64) ([]byte, message.Result) {
	q := swapRequest(key, absent, value)
	if m.rng.IntN(2) == 0 {
		q = swapRequest(key, fmt.Sprint(m.rng.IntN(3)), value)
	}
	q.Now, q.Ttl, q.Delete = now, ttl, m.rng.IntN(4) == 0
	if ttl > 0 && m.floor == 0 {
		return message.AppendSwap(nil, q), message.Result{Err: errNotExpiring}
	}
	was, found := m.get(key, now)
	out := &message.Swap{Found: found}
	if found {
		out.Previous = []byte(was.value)
	} else {
		delete(m.values, key)
	}
	out.Swapped = found == (q.Expected != nil) && (!found || was.value == string(q.Expected.Value))
	if out.Swapped {
		if m.put(key, value, now, ttl); q.Delete {
			delete(m.values, key)
		}
	}
	return message.AppendSwap(nil, q), message.Result{Answer: &message.Answer{Swap: out}}
}

func (m *expiryModel) check(want, got message.Result) {
	m.t.Helper()
	require.Equal(m.t, want.Err == nil, got.Err == nil, "%v, not %v", got.Err, want.Err)
	require.Equal(m.t, fmt.Sprint(want.Swap()), fmt.Sprint(got.Swap()))
}

// compare has readers at several times look at the replica.
func (m *expiryModel) compare(r *replica, seed uint64) {
	m.t.Helper()
	r.counts()
	for _, now := range []uint64{1, m.now - 50, m.now, m.now + 100} {
		var up, down []string
		for k := 'a'; k <= 'e'; k++ {
			v, ok := m.get(string(k), now)
			if !ok {
				continue
			}
			line := fmt.Sprintf("%c=%s", k, v.value)
			if v.at > 0 {
				line += fmt.Sprintf("(%d)", (v.at-max(now, m.floor)+999)/1000)
			}
			up, down = append(up, line), append([]string{line}, down...)
		}
		require.Equal(m.t, strings.Join(up, " "), r.scan(now, false), "seed %d at %d", seed, now)
		require.Equal(m.t, strings.Join(down, " "), r.scan(now, true), "seed %d at %d", seed, now)
	}
}

// countingEngine counts the deletes of expiry times in its batches.
type countingEngine struct {
	engine.Engine
	deletes int
}

type countingBatch struct {
	engine.Batch
	e *countingEngine
}

func (e *countingEngine) NewBatch() engine.Batch { return &countingBatch{e.Engine.NewBatch(), e} }

func (e *countingEngine) Write(b engine.Batch, sync bool) error {
	return e.Engine.Write(b.(*countingBatch).Batch, sync)
}

func (b *countingBatch) Delete(key []byte) {
	for _, cf := range engine.CFs {
		if bytes.HasPrefix(key, engine.DataKey(cf.Expiry(), nil)) {
			b.e.deletes++
		}
	}
	b.Batch.Delete(key)
}

// TestNoTombstonesOfTimes: puts and deletes without a TTL write no tombstones where no expiry time
// is, and one where one is, also if it is of the same batch.
func TestNoTombstonesOfTimes(t *testing.T) {
	counting := &countingEngine{}
	w, h, e := newTestWorker(t, func(e engine.Engine) engine.Engine {
		counting.Engine = e
		return counting
	}, region(1, "", "", 1, 1, voter(1, 1)))
	r := &replica{t: t, w: w, host: h, e: e, id: 1, next: meta.InitLogIndex + 1}
	r.apply(expireAt(1000))
	for i := range 10 {
		r.apply(putFor(fmt.Sprint("k", i), "v", 0, 0), putFor("m", "v", 1000, 0),
			message.AppendDelete(nil, "default", []byte("d")))
	}
	require.Zero(t, counting.deletes)
	r.apply(putFor("k1", "v", 1000, 5000), putFor("k2", "v", 0, 0), putFor("k1", "v", 0, 0))
	require.Equal(t, 1, counting.deletes, "the time is in the same batch")
	r.apply(putFor("k1", "v", 0, 0), putFor("k3", "v", 1000, 5000))
	require.Equal(t, 1, counting.deletes)
	r.apply(putFor("k3", "v", 0, 0))
	require.Equal(t, 2, counting.deletes, "the time is in the engine")
	for _, key := range []string{"k1", "k3"} {
		at, err := engine.LoadExpiry(e, engine.CFDefault, []byte(key))
		require.NoError(t, err)
		require.Zero(t, at)
	}
}
