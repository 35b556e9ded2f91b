package merge_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a few regions on six stores, in three zones, driven by the lines of a transcript.
type world struct {
	t       *testing.T
	now     time.Time
	core    *core.BasicCluster
	set     *view.Settings
	policy  *merge.Policy
	allowed string
	busy    map[uint64]bool
	id      uint64
	out     []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), core: core.NewBasicCluster(),
		busy: map[uint64]bool{}, id: 100,
	}
	w.set = &view.Settings{
		Schedule: config.DefaultSchedule(), Replication: config.Replication{MaxReplicas: 3},
	}
	w.policy = merge.New(w.now, func() string { return w.allowed })
	for i := range uint64(6) {
		m := &metapb.Store{Id: i + 1, Address: fmt.Sprint(i + 1), Version: "1",
			Labels: []*metapb.StoreLabel{{
				Key: "zone", Value: fmt.Sprint(i % 3),
			}}}
		w.core.PutStore(core.NewStore(m, w.now))
		w.beat(i+1, 0)
	}
	return w
}

func (w *world) beat(store, split uint64) {
	w.core.UpdateStore(store, core.WithStats(&schedulerpb.StoreStats{
		StoreId: store, Capacity: 1 << 40, Available: 1 << 40,
		RegionSplitSize: split<<20 | min(split, 1)<<19,
	}, w.now))
}

func (w *world) view() *view.View {
	return view.New(view.View{
		Now: w.now, Settings: w.set, Regions: w.core, Rand: rand.New(rand.NewPCG(1, 1)),
		Busy:    func(id uint64) bool { return w.busy[id] },
		AllocID: func() (uint64, error) { w.id++; return w.id, nil },
	}, nil)
}

// region parses "1 a..m 1* 2 3~ size=3 keys=9 v=2": region 1 with peers on stores 1, 2 and 3. The
// star leads, the tilde is pending; guess: its size is not measured.
func (w *world) region(line string) {
	fields := strings.Fields(line)
	m := &metapb.Region{RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1}}
	_, err := fmt.Sscan(fields[0], &m.Id)
	require.NoError(w.t, err)
	start, end, ok := strings.Cut(fields[1], "..")
	require.True(w.t, ok, line)
	m.StartKey, m.EndKey = []byte(start), []byte(end)
	hb := &schedulerpb.RegionHeartbeatRequest{Region: m, Term: 6, SizeMeasured: true}
	for _, f := range fields[2:] {
		var n uint64
		switch {
		case scan(f, "size=%d", &n):
			hb.ApproximateSize = n << 20
		case scan(f, "keys=%d", &n):
			hb.ApproximateKeys = n
		case scan(f, "v=%d", &n):
			m.RegionEpoch.Version = n
		case f == "guess":
			hb.SizeMeasured = false
		default:
			p := &metapb.Peer{}
			_, err := fmt.Sscan(strings.TrimRight(f, "*~"), &p.StoreId)
			require.NoError(w.t, err, f)
			p.Id = 10*m.Id + p.StoreId
			m.Peers = append(m.Peers, p)
			if strings.Contains(f, "*") {
				hb.Leader = p
			}
			if strings.Contains(f, "~") {
				hb.PendingPeers = append(hb.PendingPeers, p)
			}
		}
	}
	r := core.RegionFromHeartbeat(hb)
	res, err := w.core.PutRegion(r)
	require.NoError(w.t, err)
	w.policy.Note(r, res.Old, res.Displaced, w.now)
}

func scan(f, format string, n *uint64) bool {
	_, err := fmt.Sscanf(f, format, n)
	return err == nil
}

func (w *world) do(line string) {
	cmd, rest, _ := strings.Cut(line, " ")
	var a, b uint64
	_, _ = fmt.Sscan(rest, &a, &b)
	switch cmd {
	case "region":
		w.region(rest)
	case "wait":
		d, err := time.ParseDuration(rest)
		require.NoError(w.t, err)
		w.now = w.now.Add(d)
		for _, s := range w.core.Stores() {
			w.core.UpdateStore(s.ID(), core.WithLastHeartbeat(w.now))
		}
	case "plan":
		v := w.view()
		if f := w.policy.Cluster(v); !f.None() {
			w.out = append(w.out, f.String())
			return
		}
		res := w.policy.Plan(v, w.core.Region(a), merge.LimitsOf(v))
		switch {
		case res.Merge != nil:
			w.out = append(w.out, res.Merge.String(), res.Take.String())
		case res.Refusal.None():
			w.out = append(w.out, "nothing")
		default:
			w.out = append(w.out, res.Refusal.String())
		}
	case "explain":
		w.out = append(w.out, w.policy.Explain(w.view(), w.core.Region(a))...)
	case "busy":
		w.busy[a] = !w.busy[a]
	case "split-size":
		w.beat(a, b) // in MiB
	case "ended": // a merge of region a into b, with an outcome
		st := operator.Canceled
		if strings.HasSuffix(rest, "success") {
			st = operator.Success
		}
		w.policy.Ended(operator.Record{
			RegionID: a, Into: b, Kind: operator.OpMerge, Status: st,
			Reason: "the merge was refused", Finished: w.now,
		})
	case "hold": // a..m 2h
		f := strings.Fields(rest)
		start, end, _ := strings.Cut(f[0], "..")
		d, err := time.ParseDuration(f[1])
		require.NoError(w.t, err)
		list, err := merge.With(w.policy.Holds(w.now),
			merge.Hold{Start: []byte(start), End: []byte(end), Until: w.now.Add(d)}, w.now)
		require.NoError(w.t, err)
		w.policy.SetHolds(list)
	case "release":
		start, end, _ := strings.Cut(rest, "..")
		list, found := merge.Without(w.policy.Holds(w.now), []byte(start), []byte(end), w.now)
		require.True(w.t, found)
		w.policy.SetHolds(list)
	case "leader-changed":
		w.policy.Reset(w.now)
	case "zones":
		w.set = &view.Settings{
			Schedule:    w.set.Schedule,
			Replication: config.Replication{MaxReplicas: 3, LocationLabels: []string{"zone"}},
		}
	case "allowed":
		w.allowed = rest
	case "offline":
		w.core.UpdateStore(a, core.WithState(metapb.StoreState_Offline))
	default:
		w.t.Fatalf("unknown line %q", line)
	}
}

// TestTranscripts shows what is against a merge, and what a merge consists of.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w := newWorld(t)
			for line := range strings.SplitSeq(d.Input, "\n") {
				if strings.HasPrefix(line, "plan") || strings.HasPrefix(line, "explain") {
					w.out = append(w.out, "> "+line)
				}
				w.do(line)
			}
			return strings.Join(w.out, "\n")
		})
	})
}

// TestAlignment: whatever stores two regions are on, the moves bring the source's replicas to the
// target's stores, one at a time, never bring one to a store that has one, and never move more than
// need be. The leader's own replica comes last.
func TestAlignment(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.now = w.now.Add(2 * time.Hour)
		pick := func(name string) []int {
			return rapid.Permutation([]int{1, 2, 3, 4, 5, 6}).Draw(rt, name)[:3]
		}
		source, target := pick("source"), pick("target")
		w.region(fmt.Sprintf("1 ..m %d* %d %d", source[0], source[1], source[2]))
		w.region(fmt.Sprintf("2 m.. %d* %d %d", target[0], target[1], target[2]))
		w.do("wait 2h")
		v := w.view()
		res := w.policy.Plan(v, w.core.Region(1), merge.LimitsOf(v))
		if res.Merge == nil {
			rt.Fatalf("no merge: %v", res.Refusal)
		}
		at, want, leader := map[int]bool{}, map[int]bool{}, source[0]
		for i := range source {
			at[source[i]], want[target[i]] = true, true
		}
		moves, common := 0, 0
		for s := range at {
			if want[s] {
				common++
			}
		}
		for _, st := range res.Merge.Steps() {
			switch st := st.(type) {
			case operator.AddLearner:
				if at[int(st.ToStore)] || len(at) != 3 {
					rt.Fatalf("a replica comes to store %d while they are on %v: %v", st.ToStore,
						at, res.Merge)
				}
				at[int(st.ToStore)] = true
				moves++
			case operator.TransferLeader:
				leader = int(st.ToStore)
				if !at[leader] {
					rt.Fatalf("the leadership goes to store %d: %v", leader, res.Merge)
				}
			case operator.RemovePeer:
				if int(st.FromStore) == leader || len(at) != 4 {
					rt.Fatalf(
						"the replica of store %d is removed, store %d leads, they are on %v: %v",
						st.FromStore, leader, at, res.Merge)
				}
				delete(at, int(st.FromStore))
			}
		}
		if fmt.Sprint(at) != fmt.Sprint(want) || moves != 3-common {
			rt.Fatalf("%d moves end on stores %v, not %v: %v", moves, at, want, res.Merge)
		}
	})
}

// TestHolds: a list of holds is bounded, has one of each range, and forgets those that have ended.
func TestHolds(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var list []merge.Hold
	var err error
	for i := range merge.MaxHolds {
		list, err = merge.With(list,
			merge.Hold{
				Start: fmt.Append(nil, i), End: fmt.Append(nil, i, "x"), Until: now.Add(time.Hour),
			}, now)
		require.NoError(t, err)
	}
	_, err = merge.With(list, merge.Hold{Until: now.Add(time.Hour)}, now)
	require.ErrorContains(t, err, "1024 holds already")
	same := merge.Hold{Start: list[0].Start, End: list[0].End, Until: now.Add(3 * time.Hour)}
	list, err = merge.With(list, same, now)
	require.NoError(t, err)
	require.Len(t, list, merge.MaxHolds)
	now = now.Add(2 * time.Hour)
	list, err = merge.With(list, merge.Hold{Start: []byte("a"), Until: now.Add(time.Hour)}, now)
	require.NoError(t, err)
	require.Len(t, list, 2)
	_, err = merge.With(nil, merge.Hold{Start: []byte("b"), End: []byte("b")}, now)
	require.ErrorContains(t, err, "is empty")
	_, err = merge.With(nil, merge.Hold{Why: strings.Repeat("x", 1025)}, now)
	require.ErrorContains(t, err, "1 KiB")
	list, found := merge.Without(list, []byte("a"), nil, now)
	require.True(t, found)
	require.Len(t, list, 1)
	_, found = merge.Without(list, []byte("a"), []byte("c"), now)
	require.False(t, found)
}
