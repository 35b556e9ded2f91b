package operator

import (
	"bytes"
	"fmt"

	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Step is one indivisible part of an operator.
type Step interface {
	fmt.Stringer
	// Done tells whether the region shows the step's result.
	Done(r *core.RegionInfo) bool
	// ConfChanges is how many membership changes of this step the region already shows.
	ConfChanges(r *core.RegionInfo) int
	// Command fills the command for the region's leader; false if there is nothing to send now.
	Command(r *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse) bool
	// influence adds what the step will still change.
	influence(r *core.RegionInfo, inf Influence)
	// conf is true for membership changes, which may take a snapshot's time.
	conf() bool
}

// TransferLeader moves the leadership. FromStore is for people.
type TransferLeader struct{ FromStore, ToStore uint64 }

// AddPeer adds a voter.
type AddPeer struct{ ToStore, PeerID uint64 }

// AddLearner adds a replica that does not vote yet.
type AddLearner struct{ ToStore, PeerID uint64 }

// PromoteLearner makes a learner a voter.
type PromoteLearner struct{ ToStore, PeerID uint64 }

// RemovePeer removes a replica. PeerID 0 means whatever peer is on the store.
type RemovePeer struct{ FromStore, PeerID uint64 }

// SplitRegion cuts a region at a key that lies inside it, or without one where its leader thinks
// best. The region keeps what is left of the key, so an operator with several keys has a step for
// each, the greatest first.
type SplitRegion struct {
	Key []byte
	// Version is that of the region when the step was planned.
	Version uint64
}

// MergeRegion lets a region go into its neighbour, as that was when the step was planned. The end
// of it is that the region is gone (Controller.RegionGone); it is refused if the region has gone
// on.
type MergeRegion struct {
	Target *metapb.Region
	// Version is the region's when the step was planned. Stores add one when they begin, and
	// another one if it is refused.
	Version uint64
}

// TakeRegion waits for another region to come, or to be refused: either gives this one another
// version.
type TakeRegion struct {
	Source, Version uint64
	// Moves is how many replicas of the source are moved before, Size its size in MiB: so long it
	// may take.
	Moves int
	Size  int64
}

func (s TransferLeader) String() string {
	return fmt.Sprintf("transfer leader from store %d to store %d", s.FromStore, s.ToStore)
}

// Done implements Step.
func (s TransferLeader) Done(r *core.RegionInfo) bool { return r.LeaderStore() == s.ToStore }

// ConfChanges implements Step.
func (s TransferLeader) ConfChanges(*core.RegionInfo) int { return 0 }

// Command implements Step.
func (s TransferLeader) Command(
	r *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse,
) bool {
	p, ok := r.StorePeer(s.ToStore)
	if !ok {
		return false
	}
	resp.TransferLeader = &schedulerpb.TransferLeader{Peer: p.ToProto()}
	return true
}

func (s TransferLeader) conf() bool { return false }

func (s TransferLeader) influence(r *core.RegionInfo, inf Influence) {
	if s.Done(r) {
		return
	}
	if from := r.LeaderStore(); from != 0 {
		inf.Of(from).Leaders--
	}
	inf.Of(s.ToStore).Leaders++
}

func (s AddPeer) String() string {
	return fmt.Sprintf("add peer %d on store %d", s.PeerID, s.ToStore)
}

// Done implements Step.
func (s AddPeer) Done(r *core.RegionInfo) bool {
	p, ok := r.StorePeer(s.ToStore)
	return ok && p.ID == s.PeerID && !p.Learner && !r.IsPending(p.ID)
}

// ConfChanges implements Step.
func (s AddPeer) ConfChanges(r *core.RegionInfo) int {
	p, ok := r.StorePeer(s.ToStore)
	return b2i(ok && p.ID == s.PeerID && !p.Learner)
}

// Command implements Step. A peer that is listed but pending is only waited for.
func (s AddPeer) Command(r *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse) bool {
	if _, ok := r.StorePeer(s.ToStore); ok {
		return false
	}
	resp.ChangePeer = changePeer(eraftpb.ConfChangeType_AddNode,
		core.Peer{ID: s.PeerID, StoreID: s.ToStore})
	return true
}

func (s AddPeer) conf() bool { return true }

func (s AddPeer) influence(r *core.RegionInfo, inf Influence) {
	addInfluence(s.ToStore, s.Done(r), r, inf)
}

func (s AddLearner) String() string {
	return fmt.Sprintf("add learner %d on store %d", s.PeerID, s.ToStore)
}

// Done implements Step.
func (s AddLearner) Done(r *core.RegionInfo) bool {
	p, ok := r.StorePeer(s.ToStore)
	return ok && p.ID == s.PeerID && !r.IsPending(p.ID)
}

// ConfChanges implements Step.
func (s AddLearner) ConfChanges(r *core.RegionInfo) int {
	p, ok := r.StorePeer(s.ToStore)
	return b2i(ok && p.ID == s.PeerID)
}

// Command implements Step.
func (s AddLearner) Command(r *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse) bool {
	if _, ok := r.StorePeer(s.ToStore); ok {
		return false
	}
	resp.ChangePeer = changePeer(eraftpb.ConfChangeType_AddLearnerNode,
		core.Peer{ID: s.PeerID, StoreID: s.ToStore, Learner: true})
	return true
}

func (s AddLearner) conf() bool { return true }

func (s AddLearner) influence(r *core.RegionInfo, inf Influence) {
	addInfluence(s.ToStore, s.Done(r), r, inf)
}

func (s PromoteLearner) String() string {
	return fmt.Sprintf("promote learner %d on store %d", s.PeerID, s.ToStore)
}

// Done implements Step.
func (s PromoteLearner) Done(r *core.RegionInfo) bool { return s.ConfChanges(r) == 1 }

// ConfChanges implements Step.
func (s PromoteLearner) ConfChanges(r *core.RegionInfo) int {
	p, ok := r.StorePeer(s.ToStore)
	return b2i(ok && p.ID == s.PeerID && !p.Learner)
}

// Command implements Step. The controller sends it only once the learner is healthy.
func (s PromoteLearner) Command(
	r *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse,
) bool {
	p, ok := r.StorePeer(s.ToStore)
	if !ok || p.ID != s.PeerID || !p.Learner {
		return false
	}
	resp.ChangePeer = changePeer(eraftpb.ConfChangeType_AddNode,
		core.Peer{ID: s.PeerID, StoreID: s.ToStore})
	return true
}

func (s PromoteLearner) conf() bool { return true }

func (s PromoteLearner) influence(*core.RegionInfo, Influence) {}

func (s RemovePeer) String() string { return fmt.Sprintf("remove peer on store %d", s.FromStore) }

// Done implements Step.
func (s RemovePeer) Done(r *core.RegionInfo) bool {
	p, ok := r.StorePeer(s.FromStore)
	return !ok || s.PeerID != 0 && p.ID != s.PeerID
}

// ConfChanges implements Step.
func (s RemovePeer) ConfChanges(r *core.RegionInfo) int { return b2i(s.Done(r)) }

// Command implements Step. The leader itself is never removed: the controller moves the
// leadership away first.
func (s RemovePeer) Command(r *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse) bool {
	p, ok := r.StorePeer(s.FromStore)
	if !ok || r.LeaderStore() == s.FromStore {
		return false
	}
	resp.ChangePeer = changePeer(eraftpb.ConfChangeType_RemoveNode, p)
	return true
}

func (s RemovePeer) conf() bool { return true }

func (s RemovePeer) influence(r *core.RegionInfo, inf Influence) {
	if s.Done(r) {
		return
	}
	si := inf.Of(s.FromStore)
	si.Size -= r.Size()
	si.Count--
	si.OutBytes += r.Size()
	si.OutMoves++
}

func (s SplitRegion) String() string {
	if len(s.Key) == 0 {
		return "split region"
	}
	return fmt.Sprintf("split region at %v", redact.Key(s.Key))
}

// Done implements Step: the region ends at the key. Without one a split shows as a new version.
func (s SplitRegion) Done(r *core.RegionInfo) bool {
	if len(s.Key) == 0 {
		return r.Version() > s.Version
	}
	return bytes.Equal(r.EndKey(), s.Key)
}

// ConfChanges implements Step.
func (s SplitRegion) ConfChanges(*core.RegionInfo) int { return 0 }

// Command implements Step.
func (s SplitRegion) Command(_ *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse) bool {
	resp.SplitRegion = &schedulerpb.SplitRegion{}
	if len(s.Key) > 0 {
		resp.SplitRegion.Keys = [][]byte{s.Key}
	}
	return true
}

func (s SplitRegion) conf() bool { return false }

func (s SplitRegion) influence(*core.RegionInfo, Influence) {}

func (s MergeRegion) String() string {
	return fmt.Sprintf("merge into region %d", s.Target.GetId())
}

// Done implements Step: a region that is there has not been merged.
func (s MergeRegion) Done(*core.RegionInfo) bool { return false }

// Refused tells whether the region was frozen, and has gone on.
func (s MergeRegion) Refused(r *core.RegionInfo) bool { return r.Version() > s.Version+1 }

// ConfChanges implements Step.
func (s MergeRegion) ConfChanges(*core.RegionInfo) int { return 0 }

// Command implements Step. A region that is frozen has begun already.
func (s MergeRegion) Command(r *core.RegionInfo, resp *schedulerpb.RegionHeartbeatResponse) bool {
	resp.Merge = &schedulerpb.Merge{Target: s.Target}
	return r.Version() == s.Version
}

func (s MergeRegion) conf() bool { return false }

func (s MergeRegion) influence(*core.RegionInfo, Influence) {}

func (s TakeRegion) String() string { return fmt.Sprintf("take region %d", s.Source) }

// Done implements Step.
func (s TakeRegion) Done(r *core.RegionInfo) bool { return r.Version() > s.Version }

// ConfChanges implements Step.
func (s TakeRegion) ConfChanges(*core.RegionInfo) int { return 0 }

// Command implements Step: there is nothing to tell.
func (s TakeRegion) Command(*core.RegionInfo, *schedulerpb.RegionHeartbeatResponse) bool {
	return false
}

func (s TakeRegion) conf() bool { return false }

func (s TakeRegion) influence(*core.RegionInfo, Influence) {}

func changePeer(t eraftpb.ConfChangeType, p core.Peer) *schedulerpb.ChangePeer {
	return &schedulerpb.ChangePeer{ChangeType: t, Peer: p.ToProto()}
}

func addInfluence(store uint64, done bool, r *core.RegionInfo, inf Influence) {
	if _, listed := r.StorePeer(store); !listed {
		inf.Of(store).Size += r.Size()
		inf.Of(store).Count++
	}
	if !done {
		inf.Of(store).InBytes += r.Size()
		inf.Of(store).InMoves++
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
