package schedule_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/schedule/checker"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// world is one region on a few stores, driven by the lines of a transcript.
type world struct {
	t     *testing.T
	now   time.Time
	core  *core.BasicCluster
	ctl   *schedule.Controller
	set   *view.Settings
	id    uint64
	lines []string
}

func newWorld(t *testing.T, stores, replicas int, version string) *world {
	t.Helper()
	w := &world{t: t, now: time.Unix(1_700_000_000, 0), core: core.NewBasicCluster(), id: 100}
	w.set = &view.Settings{
		Schedule: config.DefaultSchedule(), Replication: config.Replication{MaxReplicas: replicas},
	}
	w.ctl = schedule.NewController(w.core, w, func() time.Time { return w.now }, w.set)
	for i := range stores {
		w.core.PutStore(
			core.NewStore(&metapb.Store{
				Id: uint64(i + 1), Address: fmt.Sprint(i + 1), Version: version,
			}, w.now))
	}
	return w
}

// Send implements schedule.Sender by writing the command down.
func (w *world) Send(store uint64, resp *schedulerpb.RegionHeartbeatResponse) {
	text := ""
	switch {
	case resp.TransferLeader != nil:
		text = fmt.Sprintf("transfer leader to %d@s%d", resp.TransferLeader.Peer.Id,
			resp.TransferLeader.Peer.StoreId)
	case resp.SplitRegion != nil:
		text = fmt.Sprintf("split %q", resp.SplitRegion.Keys)
	case resp.Merge != nil:
		text = fmt.Sprintf("merge into region %d at v%d", resp.Merge.Target.Id,
			resp.Merge.Target.RegionEpoch.Version)
	default:
		cp := resp.ChangePeer
		text = fmt.Sprintf("%s %d@s%d", eraftpb.ConfChangeType_name[int32(cp.ChangeType)],
			cp.Peer.Id, cp.Peer.StoreId)
	}
	w.lines = append(w.lines,
		fmt.Sprintf("-> s%d: %s (v%d/c%d)", store, text, resp.RegionEpoch.Version,
			resp.RegionEpoch.ConfVer))
}

func (w *world) view() *view.View {
	return view.New(view.View{
		Now: w.now, Settings: w.set, Regions: w.core, Rand: rand.New(rand.NewPCG(1, 1)),
		Busy:    w.ctl.Busy,
		AllocID: func() (uint64, error) { w.id++; return w.id, nil },
		GivenUp: w.ctl.GivenUp, TimedOut: w.ctl.TimedOut,
	}, w.ctl.Running())
}

// region parses "1* 2 3~ 4L c=2 v=1 size=96 end=k": peers 11, 12, ... on stores 1, 2, ...; the star
// leads, the tilde is pending, L is a learner; down=6 says that the peer before has not answered
// for 6 minutes. A peer may be given as ID@STORE.
func (w *world) region(line string) *core.RegionInfo {
	m := &metapb.Region{Id: 1, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1}}
	var leader uint64
	var pending []uint64
	var down []core.DownPeer
	opts := []core.RegionOption{core.WithTerm(6)}
	for f := range strings.FieldsSeq(line) {
		var n uint64
		if _, err := fmt.Sscanf(f, "c=%d", &n); err == nil {
			m.RegionEpoch.ConfVer = n
			continue
		}
		if _, err := fmt.Sscanf(f, "v=%d", &n); err == nil {
			m.RegionEpoch.Version = n
			continue
		}
		if _, err := fmt.Sscanf(f, "id=%d", &n); err == nil {
			m.Id = n
			continue
		}
		if key, ok := strings.CutPrefix(f, "start="); ok {
			m.StartKey = []byte(key)
			continue
		}
		if key, ok := strings.CutPrefix(f, "end="); ok {
			m.EndKey = []byte(key)
			continue
		}
		if _, err := fmt.Sscanf(f, "size=%d", &n); err == nil {
			opts = append(opts, core.WithSize(int64(n)))
			continue
		}
		p := &metapb.Peer{}
		if _, err := fmt.Sscanf(f, "down=%d", &n); err == nil { // minutes, of the peer before
			down = append(down, core.DownPeer{PeerID: m.Peers[len(m.Peers)-1].Id, Seconds: 60 * n})
			continue
		}
		bare := strings.TrimRight(f, "*~L")
		if _, err := fmt.Sscanf(bare, "%d@%d", &p.Id, &p.StoreId); err != nil {
			_, err := fmt.Sscanf(bare, "%d", &p.StoreId)
			require.NoError(w.t, err, f)
			p.Id = 10*m.Id + p.StoreId
		}
		if strings.Contains(f, "*") {
			leader = p.StoreId
		}
		if strings.Contains(f, "~") {
			pending = append(pending, p.Id)
		}
		if strings.Contains(f, "L") {
			p.Role = metapb.PeerRole_Learner
		}
		m.Peers = append(m.Peers, p)
	}
	opts = append(opts, core.WithLeaderStore(leader), core.WithPending(pending...),
		core.WithDown(down...))
	return core.NewRegion(m, nil, opts...)
}

func (w *world) put(line string) {
	r := w.region(line)
	res, err := w.core.PutRegion(r)
	require.NoError(w.t, err)
	for _, d := range res.Displaced {
		w.ctl.RegionGone(d.ID(), r)
	}
}

func (w *world) add(op *operator.Operator, err error) {
	if err == nil {
		err = w.ctl.Add(w.view(), op)
	}
	if err != nil {
		w.lines = append(w.lines, err.Error())
	}
}

// do carries out one line of a transcript.
func (w *world) do(line string) {
	cmd, rest, _ := strings.Cut(line, " ")
	r := w.core.Region(1)
	var a, b uint64
	_, _ = fmt.Sscan(rest, &a, &b)
	w.id = max(w.id, 100)
	leaders := w.view().NewLeader
	switch cmd {
	case "region":
		w.put(rest)
	case "heartbeat":
		w.put(rest)
		w.ctl.Dispatch(w.view, w.core.Region(w.region(rest).ID()))
	case "move":
		w.add(operator.CreateMovePeerOperator("move", r, operator.OpBalance, operator.Low, a, b,
			w.nextID(), false, leaders))
	case "move-learner":
		w.add(operator.CreateMovePeerOperator("move", r, operator.OpBalance, operator.Low, a, b,
			w.nextID(), true, leaders))
	case "repair":
		w.add(operator.CreateAddPeerOperator("repair", r, operator.OpReplica, operator.High, a,
			w.nextID(), false), nil)
	case "remove":
		w.add(operator.CreateRemovePeerOperator("remove", r, operator.OpReplica, operator.High, a,
			leaders))
	case "transfer":
		w.add(operator.CreateTransferLeaderOperator("transfer", r, operator.OpBalance, operator.Low,
			a), nil)
	case "split":
		var keys [][]byte
		for key := range strings.FieldsSeq(rest) {
			keys = append(keys, []byte(key))
		}
		w.add(operator.CreateSplitOperator("split", r, operator.OpAdmin, operator.Medium, keys),
			nil)
	case "merge":
		align := operator.Alignment{LearnerFirst: true}
		for f := range strings.FieldsSeq(rest) { // 3>4: the replica on store 3 goes to store 4
			var m operator.Move
			if n, _ := fmt.Sscanf(f, "%d>%d", &m.From, &m.To); n == 2 {
				m.PeerID = w.nextID()
				align.Moves = append(align.Moves, m)
			}
			_, _ = fmt.Sscanf(f, "lead=%d", &align.Lead)
		}
		merge, take, err := operator.CreateMergeOperators("merge", r, w.core.Region(a),
			operator.OpMerge, operator.Low, align)
		if err == nil {
			err = w.ctl.AddPair(w.view(), merge, take)
		}
		if err != nil {
			w.lines = append(w.lines, err.Error())
		}
	case "check":
		res := checker.Check(w.view(), r)
		w.lines = append(w.lines, fmt.Sprintf("defect %q blocked %q", res.Defect, res.Blocked))
		if res.Op != nil {
			w.lines = append(w.lines, res.Op.String()+" because "+res.Op.Why())
			if rest == "do" {
				w.add(res.Op, nil)
			}
		}
	case "wait":
		d, err := time.ParseDuration(rest)
		require.NoError(w.t, err)
		w.now = w.now.Add(d)
		for _, s := range w.core.Stores() {
			if s.LastHeartbeat().Add(d + time.Second).After(w.now) {
				w.core.UpdateStore(s.ID(), core.WithLastHeartbeat(w.now))
			}
		}
		w.ctl.Tick(w.view())
	case "silent":
		d, err := time.ParseDuration(strings.Fields(rest)[1])
		require.NoError(w.t, err)
		w.core.UpdateStore(a, core.WithLastHeartbeat(w.now.Add(-d)))
	case "damaged": // the store reports the peers
		st := &schedulerpb.StoreStats{StoreId: a, RegionCount: 1}
		if b != 0 {
			st.DamagedPeerIds = []uint64{b}
		}
		w.core.UpdateStore(a, core.WithStats(st, w.now))
	case "offline":
		w.core.UpdateStore(a, core.WithState(metapb.StoreState_Offline))
	case "cancel":
		w.ctl.Cancel(max(a, 1), "by hand")
	case "operators":
		for _, rec := range w.ctl.Records() {
			w.lines = append(w.lines,
				fmt.Sprintf("r%d: %s", rec.RegionID, strings.Join(rec.Steps, "; ")))
		}
	case "gone":
		w.core.RemoveRegion(1)
		w.ctl.RegionGone(1, nil)
	default:
		w.t.Fatalf("unknown line %q", line)
	}
}

func (w *world) nextID() uint64 { w.id++; return w.id }

// TestTranscripts shows the life of operators and what the checker plans.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			stores, replicas := 5, 3
			d.MaybeScanArgs(t, "stores", &stores)
			d.MaybeScanArgs(t, "replicas", &replicas)
			version := "" // as of the course's stores: replicas are added as voters
			if strings.HasSuffix(path, "learners.txt") {
				version = "1"
			}
			w := newWorld(t, stores, replicas, version)
			for line := range strings.SplitSeq(d.Input, "\n") {
				w.lines = append(w.lines, "> "+line)
				w.do(line)
				if rec, ok := w.ctl.Find(1); ok {
					text := fmt.Sprintf("   %s: %s, step %d", rec.Desc, rec.Status, rec.Current)
					if rec.Reason != "" {
						text += " (" + rec.Reason + ")"
					}
					w.lines = append(w.lines, text)
				}
			}
			return strings.Join(w.lines, "\n")
		})
	})
}
