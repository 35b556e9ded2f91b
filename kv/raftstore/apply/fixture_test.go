package apply

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errIO         = errors.New("input/output error")
	initTruncated = rspb.RaftTruncatedState{Index: meta.InitLogIndex, Term: meta.InitLogTerm}
)

// lone is a store that has nothing but the worker under test, and notes what that does.
type lone struct {
	reports  []*message.Applied
	batches  int
	entries  uint64
	released int64
	damaged  []error
	reserved []*metapb.Region
	age      time.Duration
	stages   []message.Stages
}

func (h *lone) Neighbours(r *metapb.Region) []*metapb.Region { return []*metapb.Region{r} }

func (h *lone) ReserveSplit(right *metapb.Region, _ uint64) bool {
	h.reserved = append(h.reserved, right)
	return true
}

func (h *lone) Report(_ uint64, m *message.Applied) { h.reports = append(h.reports, m) }

func (h *lone) Flushed(entries uint64) {
	h.batches++
	h.entries += entries
}

// Age implements Host: each look at the clock is a millisecond later.
func (h *lone) Age() time.Duration {
	h.age += time.Millisecond
	return h.age
}

func (h *lone) Applied(_ uint64, p *message.Proposal) { h.stages = append(h.stages, p.Stages) }

func (h *lone) Release(bytes int64) { h.released += bytes }

func (h *lone) Damaged(_ uint64, err error) {
	h.damaged = append(h.damaged, err)
}

// newTestWorker makes the only worker of store 1, over an engine in memory that has the regions at
// their initial state. wrap stands between the two if it is not nil.
func newTestWorker(
	t testing.TB, wrap func(engine.Engine) engine.Engine, regions ...*metapb.Region,
) (*Worker, *lone, *memengine.Engine) {
	t.Helper()
	e := memengine.New()
	b := e.NewBatch()
	for _, r := range regions {
		meta.PutRegionState(b, rspb.PeerState_Normal, r, r.Peers[0])
		meta.Put(b, meta.ApplyStateKey(r.Id), meta.InitialApplyState())
	}
	require.NoError(t, e.Write(b, true))
	h := &lone{}
	var used engine.Engine = e
	if wrap != nil {
		used = wrap(e)
	}
	w := New(Options{StoreID: 1, Host: h, Engine: used, Swaps: &Swaps{}})
	for _, r := range regions {
		w.begin(r.Id, beginning(r))
	}
	return w, h, e
}

func beginning(r *metapb.Region) *Begin {
	return &Begin{
		Peer: r.Peers[0], Region: r, Applied: meta.InitLogIndex, Term: meta.InitLogTerm,
		Truncated: initTruncated,
	}
}

func region(
	id uint64, start, end string, version, conf uint64, peers ...*metapb.Peer,
) *metapb.Region {
	return &metapb.Region{
		Id: id, StartKey: []byte(start), EndKey: []byte(end), Peers: peers,
		RegionEpoch: &metapb.RegionEpoch{Version: version, ConfVer: conf},
	}
}

func voter(id, store uint64) *metapb.Peer { return &metapb.Peer{Id: id, StoreId: store} }

func trio() *metapb.Region {
	return region(1, "", "m", 2, 2, voter(1, 1), voter(2, 2), voter(3, 3))
}

// answered returns the answer to a command, which must have come.
func answered(t testing.TB, cb *message.Callback) message.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	res, err := cb.Wait(ctx)
	require.NoError(t, err, "no answer")
	return res
}

// requireUnknown fails unless a command's answer says that its outcome is unknown.
func requireUnknown(t testing.TB, cb *message.Callback) {
	t.Helper()
	var unknown *regionerr.UnknownError
	require.ErrorAs(t, answered(t, cb).Err, &unknown)
}

func splitRequest(key string, newRegion uint64, newPeers ...uint64) *raft_cmdpb.AdminRequest {
	return &raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_Split,
		Split: &raft_cmdpb.SplitRequest{
			SplitKey: []byte(key), NewRegionId: newRegion, NewPeerIds: newPeers,
		}}
}

func adminEntry(t testing.TB, r *metapb.Region, req *raft_cmdpb.AdminRequest) []byte {
	t.Helper()
	data, err := (&raft_cmdpb.RaftCmdRequest{
		Header:       &raft_cmdpb.RaftRequestHeader{RegionId: r.Id, RegionEpoch: r.RegionEpoch},
		AdminRequest: req,
	}).Marshal()
	require.NoError(t, err)
	return data
}

// entriesOf is a task of entries, each with somebody who waits.
func entriesOf(regionID uint64, entries ...eraftpb.Entry) (Task, []*message.Callback) {
	task := Task{RegionID: regionID, Entries: entries}
	var cbs []*message.Callback
	for i, e := range entries {
		cbs = append(cbs, message.NewCallback())
		task.Proposals = append(task.Proposals, message.NewProposal(e.Index, e.Term, 0, cbs[i]))
	}
	return task, cbs
}
