// Package checker looks at one region and plans at most one repair for it: a missing, superfluous,
// down or misplaced replica. Checkers are pure functions of a view.
package checker

import (
	"time"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// Defect is what is wrong with a region's placement.
type Defect string

// The defects, by falling priority.
const (
	None    Defect = ""
	Down    Defect = "down-peer"
	Damaged Defect = "damaged-peer"
	Missing Defect = "miss-peer"
	Offline Defect = "offline-peer"
	Extra   Defect = "extra-peer"
	Learner Defect = "learner-peer"
	// Misplaced replicas are closer together than need be.
	Misplaced Defect = "misplaced-peer"
)

// Result is what a check found. With a defect and no operator, the region waits: Blocked says for
// what.
type Result struct {
	Defect  Defect
	Op      *operator.Operator
	Blocked string
}

// Check plans the repair of one region. Only confirmed regions are touched: on a record that no
// leader told us, nothing is moved. Replicas are counted by their votes: a learner counts once it
// is promoted.
func Check(v *view.View, r *core.RegionInfo) Result {
	if !r.Confirmed() {
		return Result{}
	}
	prio := operator.High
	if critical(v, r) {
		prio = operator.Urgent
	}
	for _, check := range []func(*view.View, *core.RegionInfo, operator.Priority) Result{
		checkUselessLearner, checkDown, checkDamaged, checkMissing, checkOffline, checkExtra,
		checkLearner,
		checkMisplaced,
	} {
		if res := check(v, r, prio); res.Defect != None {
			return res
		}
	}
	return Result{}
}

// critical is true if the loss of one more healthy voter stops the region.
func critical(v *view.View, r *core.RegionInfo) bool {
	healthy := 0
	for _, p := range r.Peers() {
		if !p.Learner && v.Healthy(r, p) {
			healthy++
		}
	}
	return v.MaxReplicas() > 1 && healthy <= r.Voters()/2+1 && healthy < v.MaxReplicas()
}

// lost tells whether a peer's store will not come back in time.
func lost(v *view.View, p core.Peer) bool {
	s := v.Store(p.StoreID)
	return s == nil || s.IsTombstone() || filter.Down(s, v.Env())
}

// silence is for how long a peer has not answered its leader, as far as that counts it as down,
// whatever its store does.
func silence(r *core.RegionInfo, p core.Peer) time.Duration {
	for _, d := range r.DownPeers() {
		if d.PeerID == p.ID {
			return time.Duration(d.Seconds) * time.Second
		}
	}
	return 0
}

// checkDown replaces a peer that has been silent for too long, or whose store has. The new replica
// comes first; only when there are enough without it is the lost one removed (by checkExtra, which
// prefers it). A peer that is silent on a live store may only be out of its leader's reach: it is
// replaced sooner, since somebody else can have it at once, but if no other store is left it goes
// first only after the longer time. Then a new one can come there.
func checkDown(v *view.View, r *core.RegionInfo, prio operator.Priority) Result {
	long := v.Env().Schedule.MaxStoreDownTime.D()
	soon := min(v.Env().Schedule.MaxPeerDownTime.D(), long)
	for _, p := range r.Peers() {
		gone, silent := lost(v, p), silence(r, p)
		if p.Learner || !gone && (silent == 0 || silent < soon) || p.StoreID == r.LeaderStore() {
			continue
		}
		res := replaceVoter(v, r, Down, prio, p.StoreID)
		if !gone && silent >= long && res.Blocked == view.NoStore {
			return remove(v, r, Down, "remove-down-peer", prio, p.StoreID)
		}
		return res
	}
	return Result{}
}

// checkDamaged replaces a peer whose store does not serve it because its replica is damaged. If no
// other store may have the new replica, the damaged one is removed first, as far as the others are
// a healthy majority; then its store takes the new one.
func checkDamaged(v *view.View, r *core.RegionInfo, prio operator.Priority) Result {
	for _, p := range r.Peers() {
		s := v.Store(p.StoreID)
		if p.Learner || s == nil || !s.IsDamaged(p.ID) || p.StoreID == r.LeaderStore() {
			continue
		}
		res := replaceVoter(v, r, Damaged, prio, p.StoreID)
		if res.Blocked == view.NoStore {
			return remove(v, r, Damaged, "remove-damaged-peer", prio, p.StoreID)
		}
		return res
	}
	return Result{}
}

// replaceVoter replaces a voter that is no good, or removes it if there are enough without it.
func replaceVoter(
	v *view.View, r *core.RegionInfo, d Defect, prio operator.Priority, store uint64,
) Result {
	if r.Voters() > v.MaxReplicas() {
		return remove(v, r, d, "remove-"+string(d), prio, store)
	}
	return replace(v, r, d, "replace-"+string(d), prio, store)
}

func checkMissing(v *view.View, r *core.RegionInfo, prio operator.Priority) Result {
	if r.Voters() >= v.MaxReplicas() {
		return Result{}
	}
	if p, ok := learner(r); ok {
		return promote(r, prio, p)
	}
	target, why := v.Target(r, 0, true)
	if target == nil {
		return Result{Defect: Missing, Blocked: why}
	}
	id, err := v.AllocID()
	if err != nil {
		return Result{Defect: Missing, Blocked: err.Error()}
	}
	op := operator.CreateAddPeerOperator("make-up-replica", r, operator.OpReplica, prio,
		target.ID(), id,
		v.LearnerFirst())
	return Result{Defect: Missing, Op: op.Because("%d of %d replicas", r.Voters(), v.MaxReplicas())}
}

// checkOffline empties stores that are leaving.
func checkOffline(v *view.View, r *core.RegionInfo, prio operator.Priority) Result {
	for _, p := range r.Peers() {
		s := v.Store(p.StoreID)
		if p.Learner || s == nil || s.State() != metapb.StoreState_Offline {
			continue
		}
		return replaceVoter(v, r, Offline, prio, p.StoreID)
	}
	return Result{}
}

// checkExtra removes a superfluous replica: an unhealthy one first, then one that adds least
// isolation, then the one on the fullest store. So a half-done move, left by a former placement
// leader, is completed rather than undone.
func checkExtra(v *view.View, r *core.RegionInfo, prio operator.Priority) Result {
	if r.Voters() <= v.MaxReplicas() {
		return Result{}
	}
	var worst *core.StoreInfo
	var worstRank [3]float64
	for _, p := range r.Peers() {
		if p.Learner {
			continue
		}
		s := v.Store(p.StoreID)
		if s == nil {
			return remove(v, r, Extra, "remove-extra-peer", prio, p.StoreID)
		}
		rank := [3]float64{0, -isolationWithout(v, r, p.StoreID), v.Load(s)}
		if !v.Healthy(r, p) {
			rank[0] = 1
		}
		rank[1] = -rank[1] // more isolation left is a better removal
		if worst == nil || less(worstRank, rank) {
			worst, worstRank = s, rank
		}
	}
	return remove(v, r, Extra, "remove-extra-peer", prio, worst.ID())
}

func isolationWithout(v *view.View, r *core.RegionInfo, exclude uint64) float64 {
	var rest []*core.StoreInfo
	for _, s := range v.StoresOf(r) {
		if s.ID() != exclude {
			rest = append(rest, s)
		}
	}
	return float64(filter.Isolation(v.Settings.Replication.LocationLabels, rest))
}

func less(a, b [3]float64) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// checkUselessLearner removes a learner that will not become the voter it was added for: its store
// is lost, leaving or has its replica for damaged, it does not answer, or it did not catch up in
// the time that it had. So is one more than is of use. It has no vote, so nothing depends on it.
func checkUselessLearner(v *view.View, r *core.RegionInfo, prio operator.Priority) Result {
	learners := len(r.Peers()) - r.Voters()
	useful := max(1, v.MaxReplicas()-r.Voters())
	if r.Voters() > v.MaxReplicas() {
		useful = 0
	}
	for i := len(r.Peers()) - 1; i >= 0 && learners > 0; i-- { // the newest first
		p := r.Peers()[i]
		if !p.Learner {
			continue
		}
		why := useless(v, r, p)
		if why == "" && learners > useful {
			why = "superfluous"
		}
		if why == "" {
			continue
		}
		op, err := operator.CreateRemovePeerOperator("remove-learner", r, operator.OpReplica, prio,
			p.StoreID,
			v.NewLeader)
		if err != nil {
			return Result{Defect: Learner, Blocked: err.Error()}
		}
		return Result{
			Defect: Learner, Op: op.Because("learner %d on store %d: %s", p.ID, p.StoreID, why),
		}
	}
	return Result{}
}

// useless says why a learner is of no use, "" if it may still become a voter.
func useless(v *view.View, r *core.RegionInfo, p core.Peer) string {
	s := v.Store(p.StoreID)
	switch {
	case lost(v, p):
		return "its store is lost"
	case !s.IsUp():
		return "its store is being emptied"
	case s.IsDamaged(p.ID):
		return "its store reports it as damaged"
	case r.IsDown(p.ID):
		return "it does not answer"
	case v.GivenUp != nil && v.GivenUp(p.ID):
		return "it did not catch up in time"
	}
	return ""
}

// checkLearner completes what an interrupted operator, perhaps of a former placement leader, has
// left behind: the learner gets its vote, if need be once it has caught up, and then a replica is
// too many. Should it not catch up by the operator's deadline, checkUselessLearner removes it.
func checkLearner(_ *view.View, r *core.RegionInfo, prio operator.Priority) Result {
	if p, ok := learner(r); ok {
		return promote(r, prio, p)
	}
	return Result{}
}

// learner returns a learner of the region, one that has its data before one that waits for it. It
// is called after checkUselessLearner: all that are left are of use.
func learner(r *core.RegionInfo) (core.Peer, bool) {
	var best core.Peer
	for _, p := range r.Peers() {
		if p.Learner && (best.ID == 0 || r.IsPending(best.ID) && !r.IsPending(p.ID)) {
			best = p
		}
	}
	return best, best.ID != 0
}

func promote(r *core.RegionInfo, prio operator.Priority, p core.Peer) Result {
	op := operator.New("promote-learner", r, operator.OpReplica|operator.OpRegion, prio,
		operator.PromoteLearner{ToStore: p.StoreID, PeerID: p.ID})
	return Result{Defect: Learner, Op: op.Because("learner %d is there", p.ID)}
}

func replace(
	v *view.View, r *core.RegionInfo, d Defect, desc string, prio operator.Priority, source uint64,
) Result {
	to, id, why := successor(v, r, source)
	if to == 0 {
		return Result{Defect: d, Blocked: why}
	}
	op, err := operator.CreateMovePeerOperator(desc, r, operator.OpReplica, prio, source, to, id,
		v.LearnerFirst(), v.NewLeader)
	if err != nil {
		return Result{Defect: d, Blocked: err.Error()}
	}
	return Result{Defect: d, Op: op.Because("store %d is %s", source, d)}
}

// successor picks the peer that comes instead of the one on source: a learner that is there
// already, or a new peer on the best store.
func successor(v *view.View, r *core.RegionInfo, source uint64) (store, peer uint64, why string) {
	if p, ok := learner(r); ok {
		return p.StoreID, p.ID, ""
	}
	target, why := v.Target(r, source, true)
	if target == nil {
		return 0, 0, why
	}
	id, err := v.AllocID()
	if err != nil {
		return 0, 0, err.Error()
	}
	return target.ID(), id, ""
}

func remove(
	v *view.View, r *core.RegionInfo, d Defect, desc string, prio operator.Priority, source uint64,
) Result {
	if !SafeToRemove(v, r, source) {
		return Result{Defect: d, Blocked: "quorum"}
	}
	op, err := operator.CreateRemovePeerOperator(desc, r, operator.OpReplica, prio, source,
		v.NewLeader)
	if err != nil {
		return Result{Defect: d, Blocked: err.Error()}
	}
	op.Because("store %d is %s, %d of %d replicas", source, d, r.Voters(), v.MaxReplicas())
	return Result{Defect: d, Op: op}
}

// SafeToRemove is the quorum guard of a removal: the healthy voters that remain must be a majority
// of those that remain. A learner may always go.
func SafeToRemove(v *view.View, r *core.RegionInfo, source uint64) bool {
	if p, ok := r.StorePeer(source); ok && p.Learner {
		return true
	}
	healthy, voters := 0, 0
	for _, p := range r.Peers() {
		if p.Learner || p.StoreID == source {
			continue
		}
		voters++
		if v.Healthy(r, p) {
			healthy++
		}
	}
	return voters > 0 && healthy >= voters/2+1
}

// SafeToAdd is the quorum guard of an addition: while the new voter has no data, the healthy ones
// must be a majority of one voter more. With a single or a last healthy majority the only way out
// of danger is to add, so there the old majority is enough.
func SafeToAdd(v *view.View, r *core.RegionInfo) bool {
	healthy, voters := 0, 0
	for _, p := range r.Peers() {
		if p.Learner {
			continue
		}
		voters++
		if v.Healthy(r, p) {
			healthy++
		}
	}
	return healthy >= (voters+1)/2+1 ||
		healthy >= voters/2+1 && voters%2 == 1 && healthy == voters/2+1 ||
		voters == 1 && healthy == 1
}
