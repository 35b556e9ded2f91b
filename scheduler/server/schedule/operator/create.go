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
			return nil, fmt.Errorf("operator: no store can take the leadership of region %d", r.ID())
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
	return New(desc, r, kind|OpLeader, prio, TransferLeader{FromStore: r.LeaderStore(), ToStore: target})
}

// CreateMergeOperators let a region go into a neighbour. The second operator is of the neighbour: it waits, and keeps others
// from changing it. Both regions must have healthy voters on the same stores, and nothing else.
func CreateMergeOperators(desc string, source, target *core.RegionInfo, kind Kind, prio Priority) (merge, take *Operator, err error) {
	switch {
	case source.ID() == target.ID():
		return nil, nil, fmt.Errorf("operator: region %d cannot go into itself", source.ID())
	case !endsAt(source, target) && !endsAt(target, source):
		return nil, nil, fmt.Errorf("operator: regions %d and %d are not neighbours", source.ID(), target.ID())
	}
	for _, r := range []*core.RegionInfo{source, target} {
		if r.HasPending() || len(r.DownPeers()) > 0 || r.Voters() != len(r.Peers()) {
			return nil, nil, fmt.Errorf("operator: region %d has a replica that is a learner, down or pending", r.ID())
		}
	}
	for _, p := range source.Peers() {
		if _, ok := target.StorePeer(p.StoreID); !ok || len(source.Peers()) != len(target.Peers()) {
			return nil, nil, fmt.Errorf("operator: regions %d and %d do not have their replicas on the same stores",
				source.ID(), target.ID())
		}
	}
	merge = New(desc, source, kind|OpMerge, prio, MergeRegion{Target: target.Meta(), Version: source.Version()})
	take = New(desc, target, kind|OpMerge, prio, TakeRegion{Source: source.ID(), Version: target.Version()})
	return merge, take, nil
}

func endsAt(left, right *core.RegionInfo) bool {
	return len(left.EndKey()) > 0 && bytes.Equal(left.EndKey(), right.StartKey())
}

// CreateSplitOperator cuts a region at keys inside it (in any order, doubles count once), or without any where
// its leader thinks best.
func CreateSplitOperator(desc string, r *core.RegionInfo, kind Kind, prio Priority, keys [][]byte) *Operator {
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
