package operator

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Leaders picks the store that should lead a region once the leader has to go; ok is false if no
// store can. Callers rank by health, leaders and influence.
type Leaders func(r *core.RegionInfo, exclude uint64) (store uint64, ok bool)

// addSteps returns the steps that add a replica: a learner that is promoted once it has caught up,
// if the stores can do that, else a voter at once. A learner that the region has there already is
// only promoted.
func addSteps(r *core.RegionInfo, store, peerID uint64, learnerFirst bool) []Step {
	if p, ok := r.StorePeer(store); ok && p.ID == peerID && p.Learner {
		return []Step{PromoteLearner{store, peerID}}
	}
	if learnerFirst {
		return []Step{AddLearner{store, peerID}, PromoteLearner{store, peerID}}
	}
	return []Step{AddPeer{store, peerID}}
}

// CreateMovePeerOperator moves the replica on source to target: add first, so that there are never
// fewer replicas than before, then move the leadership away if source leads, then remove. With a
// learner the leadership goes before the promotion, if another voter can take it: the region has a
// voter too many for as short as can be.
func CreateMovePeerOperator(desc string, r *core.RegionInfo, kind Kind, prio Priority,
	source, target, peerID uint64, learnerFirst bool, leaders Leaders,
) (*Operator, error) {
	old, ok := r.StorePeer(source)
	if !ok {
		return nil, fmt.Errorf("operator: region %d has no peer on store %d", r.ID(), source)
	}
	steps := addSteps(r, target, peerID, learnerFirst)
	if r.LeaderStore() == source {
		at, last := len(steps), steps[len(steps)-1]
		to, ok := leaders(r, source)
		if !ok {
			to = target // the only healthy one by then
		} else if _, promote := last.(PromoteLearner); promote {
			at--
		}
		steps = slices.Insert(steps, at, Step(TransferLeader{FromStore: source, ToStore: to}))
		kind |= OpLeader
	}
	steps = append(steps, RemovePeer{FromStore: source, PeerID: old.ID})
	return New(desc, r, kind|OpRegion, prio, steps...), nil
}

// CreateRemovePeerOperator removes the replica on a store, moving the leadership away first.
func CreateRemovePeerOperator(desc string, r *core.RegionInfo, kind Kind, prio Priority,
	source uint64, leaders Leaders,
) (*Operator, error) {
	old, ok := r.StorePeer(source)
	if !ok {
		return nil, fmt.Errorf("operator: region %d has no peer on store %d", r.ID(), source)
	}
	var steps []Step
	if r.LeaderStore() == source {
		to, ok := leaders(r, source)
		if !ok {
			return nil,
				fmt.Errorf("operator: no store can take the leadership of region %d", r.ID())
		}
		steps = append(steps, TransferLeader{FromStore: source, ToStore: to})
		kind |= OpLeader
	}
	steps = append(steps, RemovePeer{FromStore: source, PeerID: old.ID})
	return New(desc, r, kind|OpRegion, prio, steps...), nil
}

// CreateAddPeerOperator adds a replica.
func CreateAddPeerOperator(desc string, r *core.RegionInfo, kind Kind, prio Priority,
	target, peerID uint64, learnerFirst bool,
) *Operator {
	return New(desc, r, kind|OpRegion, prio, addSteps(r, target, peerID, learnerFirst)...)
}

// CreateTransferLeaderOperator moves the leadership.
func CreateTransferLeaderOperator(desc string, r *core.RegionInfo, kind Kind, prio Priority,
	target uint64,
) *Operator {
	return New(desc, r, kind|OpLeader, prio,
		TransferLeader{FromStore: r.LeaderStore(), ToStore: target})
}

// Alignment brings the replicas of a region that is to be merged to the stores of the other one.
type Alignment struct {
	// Moves are carried out one after the other. Invariant: the region's stores after all of them
	// are the target's.
	Moves []Move
	// Lead is the store that leads before the leader's own replica is moved; 0 is the last store
	// that a replica comes to.
	Lead         uint64
	LearnerFirst bool
}

// Move is a replica that goes from one store to another, where its peer has the id.
type Move struct{ From, To, PeerID uint64 }

// CreateMergeOperators let a region go into a neighbour. The second operator is of the neighbour:
// it waits, and keeps others from changing it. Both regions must have healthy voters and nothing
// else; on the same stores, or the alignment brings the first one's there.
func CreateMergeOperators(desc string, source, target *core.RegionInfo, kind Kind, prio Priority, align Alignment,
) (merge, take *Operator, err error) {
	switch {
	case source.ID() == target.ID():
		return nil, nil, fmt.Errorf("operator: region %d cannot go into itself", source.ID())
	case !endsAt(source, target) && !endsAt(target, source):
		return nil, nil,
			fmt.Errorf("operator: regions %d and %d are not neighbours", source.ID(), target.ID())
	}
	for _, r := range []*core.RegionInfo{source, target} {
		if r.HasPending() || len(r.DownPeers()) > 0 || r.Voters() != len(r.Peers()) {
			return nil, nil,
				fmt.Errorf("operator: region %d has a replica that is a learner, down or pending",
					r.ID())
		}
	}
	if !slices.Equal(storesAfter(source, align.Moves), storesAfter(target, nil)) {
		return nil, nil,
			fmt.Errorf("operator: regions %d and %d do not have their replicas on the same stores",
				source.ID(), target.ID())
	}
	steps, err := align.steps(source)
	if err != nil {
		return nil, nil, err
	}
	if len(steps) > 0 {
		kind |= OpRegion
	}
	steps = append(steps, MergeRegion{Target: target.Meta(), Version: source.Version()})
	merge = New(desc, source, kind|OpMerge, prio, steps...)
	take = New(desc, target, kind&^OpRegion|OpMerge, prio, TakeRegion{
		Source: source.ID(), Version: target.Version(), Moves: len(align.Moves),
		Size: source.Size(),
	})
	merge.partner, take.partner = target.ID(), source.ID()
	return merge, take, nil
}

// storesAfter are the stores of a region after moves, in rising order.
func storesAfter(r *core.RegionInfo, moves []Move) []uint64 {
	var out []uint64
	for _, p := range r.Peers() {
		out = append(out, p.StoreID)
	}
	for _, m := range moves {
		if i := slices.Index(out, m.From); i >= 0 {
			out[i] = m.To
		}
	}
	slices.Sort(out)
	return out
}

// steps are those of moves one by one: a replica is added before one is removed, and a leader goes
// before its replica.
func (a *Alignment) steps(r *core.RegionInfo) (out []Step, err error) {
	for _, m := range a.Moves {
		old, ok := r.StorePeer(m.From)
		if !ok {
			return nil, fmt.Errorf("operator: region %d has no peer on store %d", r.ID(), m.From)
		}
		add := addSteps(r, m.To, m.PeerID, a.LearnerFirst)
		if r.LeaderStore() == m.From {
			to, at := a.Lead, len(add)
			if to == 0 {
				to = m.To
			} else if a.LearnerFirst {
				at-- // the leadership goes before the promotion, as in every move
			}
			add = slices.Insert(add, at, Step(TransferLeader{FromStore: m.From, ToStore: to}))
		}
		out = append(append(out, add...), RemovePeer{FromStore: m.From, PeerID: old.ID})
	}
	return out, nil
}

func endsAt(left, right *core.RegionInfo) bool {
	return len(left.EndKey()) > 0 && bytes.Equal(left.EndKey(), right.StartKey())
}

// CreateSplitOperator cuts a region at keys inside it (in any order, doubles count once), or
// without any where its leader thinks best.
func CreateSplitOperator(
	desc string, r *core.RegionInfo, kind Kind, prio Priority, keys [][]byte,
) *Operator {
	if len(keys) == 0 {
		return New(desc, r, kind|OpSplit, prio, SplitRegion{Version: r.Version()})
	}
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b []byte) int { return bytes.Compare(b, a) })
	var steps []Step
	for _, key := range slices.CompactFunc(keys, bytes.Equal) {
		steps = append(steps, SplitRegion{Key: key, Version: r.Version()})
	}
	return New(desc, r, kind|OpSplit, prio, steps...)
}
