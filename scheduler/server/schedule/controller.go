package schedule

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/checker"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

const (
	historySize = 10_000
	recordTTL   = 10 * time.Minute
	// timedOutTTL is for how long a store at which a region's replica did not arrive comes after
	// others.
	timedOutTTL = 5 * time.Minute
	// leftTTL is how long a store is no target of balance for a region that has left it.
	leftTTL = time.Hour
	// givenUpTTL is long enough for the removal of a learner, however often that is tried.
	givenUpTTL = 24 * time.Hour
)

// ErrNotAdmitted means that an operator was refused; the text says why.
var ErrNotAdmitted = errors.New("schedule: operator not admitted")

// Sender delivers a command to a store. It must not block.
type Sender interface {
	Send(storeID uint64, resp *schedulerpb.RegionHeartbeatResponse)
}

// Controller owns the running operators, one per region at most, from admission to their end.
//
// Lock order: BasicCluster.mu < Controller.mu < id shards (schedulers ask Busy while they look at a
// store set; nothing here takes BasicCluster.mu). Send is called with mu held; it only queues.
type Controller struct {
	regions *core.BasicCluster
	send    Sender
	now     func() time.Time
	// running is the number of operators: heartbeats of a quiet cluster need not take mu.
	running atomic.Int64
	onEnd   func(operator.Record)
	onStart func(operator.Record)

	mu struct {
		sync.Mutex
		ops     map[uint64]*operator.Operator
		records map[uint64]operator.Record // last ended one by region
		history []operator.Record          // ring
		next    int                        // where history is written next once it is full
		failed  map[failKey]failState
		givenUp map[uint64]time.Time // learners that did not catch up in time, by peer
		// stores that replicas were moved away from without need, by region and store
		left  map[failKey]time.Time
		cfg   *view.Settings
		ended map[string]uint64 // by desc and status
	}
}

type failKey struct{ region, target uint64 }

type failState struct {
	count int
	last  time.Time
	until time.Time
}

// NewController returns a controller without operators.
func NewController(
	regions *core.BasicCluster, send Sender, now func() time.Time, cfg *view.Settings,
) *Controller {
	c := &Controller{regions: regions, send: send, now: now}
	c.mu.ops = make(map[uint64]*operator.Operator)
	c.mu.records = make(map[uint64]operator.Record)
	c.mu.failed = make(map[failKey]failState)
	c.mu.givenUp = make(map[uint64]time.Time)
	c.mu.left = make(map[failKey]time.Time)
	c.mu.ended = make(map[string]uint64)
	c.mu.cfg = cfg
	return c
}

// OnStart and OnEnd set who is told about operators. Call them before the first operator; the
// functions are called with the controller's lock held and must only queue.
func (c *Controller) OnStart(fn func(operator.Record)) { c.onStart = fn }

// OnEnd is described at OnStart.
func (c *Controller) OnEnd(fn func(operator.Record)) { c.onEnd = fn }

// SetSettings changes deadlines and limits.
func (c *Controller) SetSettings(cfg *view.Settings) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.cfg = cfg
}

// Busy tells whether the region has an operator.
func (c *Controller) Busy(regionID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.ops[regionID] != nil
}

// Idle tells whether no operator is under way.
func (c *Controller) Idle() bool { return c.running.Load() == 0 }

// Running returns the operators under way. They may be read only by the goroutine that plans, and
// only their immutable parts (region, steps, kind).
func (c *Controller) Running() []*operator.Operator {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*operator.Operator, 0, len(c.mu.ops))
	for _, op := range c.mu.ops {
		out = append(out, op)
	}
	slices.SortFunc(out, func(a, b *operator.Operator) int {
		return int(int64(a.RegionID()) - int64(b.RegionID()))
	})
	return out
}

// Count returns how many running operators have any of the kind's bits.
func (c *Controller) Count(kind operator.Kind) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, op := range c.mu.ops {
		if op.Kind()&kind == kind {
			n++
		}
	}
	return n
}

// Len returns the number of running operators.
func (c *Controller) Len() int { return int(c.running.Load()) }

// Add admits an operator: everything it was planned on must still hold. The first command is sent
// at once.
func (c *Controller) Add(v *view.View, op *operator.Operator) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	r := c.regions.Region(op.RegionID())
	if reason := c.refusalLocked(v, op, r, now); reason != "" {
		op.Finish(operator.Canceled, reason, now)
		return fmt.Errorf("%w: %s", ErrNotAdmitted, reason)
	}
	c.startLocked(v, op, r, now)
	return nil
}

// AddPair admits the two operators of a merge, or neither. If one of them ends in another way than
// with success, so does the other.
func (c *Controller) AddPair(v *view.View, merge, take *operator.Operator) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	pair := [2]*operator.Operator{take, merge} // the target is kept still before the source begins
	var regions [2]*core.RegionInfo
	for i, op := range pair {
		regions[i] = c.regions.Region(op.RegionID())
		if reason := c.refusalLocked(v, op, regions[i], now); reason != "" {
			for _, op := range pair {
				op.Finish(operator.Canceled, reason, now)
			}
			return fmt.Errorf("%w: region %d: %s", ErrNotAdmitted, op.RegionID(), reason)
		}
	}
	for i, op := range pair {
		c.startLocked(v, op, regions[i], now)
	}
	return nil
}

func (c *Controller) startLocked(
	v *view.View, op *operator.Operator, r *core.RegionInfo, now time.Time,
) {
	if old := c.mu.ops[op.RegionID()]; old != nil {
		c.endLocked(old, operator.Replaced, "replaced by "+op.Desc(), now)
	}
	op.Start(now)
	c.mu.ops[op.RegionID()] = op
	c.running.Store(int64(len(c.mu.ops)))
	v.Admitted(op, r)
	if c.onStart != nil {
		c.onStart(op.Record())
	}
	c.advanceLocked(v, op, r, now, true)
}

func (c *Controller) refusalLocked(
	v *view.View, op *operator.Operator, r *core.RegionInfo, now time.Time,
) string {
	if r == nil {
		return "region not found"
	}
	if !r.Confirmed() {
		return "region has no confirmed leader"
	}
	if !op.MatchesEpoch(r) {
		return "region changed since it was planned"
	}
	if old := c.mu.ops[op.RegionID()]; old != nil && old.Priority() >= op.Priority() {
		return "region has an operator: " + old.Desc()
	}
	for _, s := range op.Steps() {
		if reason := c.stepRefusalLocked(v, op, s, now); reason != "" {
			return reason
		}
	}
	return ""
}

func (c *Controller) stepRefusalLocked(
	v *view.View, op *operator.Operator, s operator.Step, now time.Time,
) string {
	target := targetOf(s)
	if target == 0 {
		return ""
	}
	store := v.Store(target)
	if store == nil {
		return fmt.Sprintf("store %d is unknown", target)
	}
	action := filter.RegionTarget
	if _, ok := s.(operator.TransferLeader); ok {
		action = filter.LeaderTarget
	}
	if name, _ := filter.Refusal(store, action, v.Env()); name != "" &&
		op.Kind()&operator.OpAdmin == 0 {
		return fmt.Sprintf("store %d is %s", target, name)
	}
	if f := c.mu.failed[failKey{op.RegionID(), target}]; f.count >= 3 && now.Before(f.until) {
		return fmt.Sprintf("store %d timed out %d times, waiting until %s", target, f.count,
			f.until.Format(time.TimeOnly))
	}
	return ""
}

// targetOf returns the store a step brings something to, 0 if none.
func targetOf(s operator.Step) uint64 {
	switch s := s.(type) {
	case operator.AddPeer:
		return s.ToStore
	case operator.AddLearner:
		return s.ToStore
	case operator.TransferLeader:
		return s.ToStore
	default:
		return 0
	}
}

// destination is targetOf, for steps too that only finish what has come there.
func destination(s operator.Step) uint64 {
	if s, ok := s.(operator.PromoteLearner); ok {
		return s.ToStore
	}
	return targetOf(s)
}

// Dispatch looks at a region's operator after a heartbeat: steps that are done are passed, the
// command under way is sent again. Nearly always there is no operator, which costs one load.
func (c *Controller) Dispatch(v func() *view.View, r *core.RegionInfo) {
	if c.running.Load() == 0 {
		return
	}
	c.mu.Lock()
	op := c.mu.ops[r.ID()]
	c.mu.Unlock()
	if op == nil {
		return
	}
	picture := v() // taken without mu: taking it needs Running
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.ops[r.ID()] != op {
		return
	}
	if cur := c.regions.Region(r.ID()); cur != nil {
		c.advanceLocked(picture, op, cur, c.now(), true)
	}
}

// RegionGone ends the operator of a region that left the map; by is the region that has its range
// now, nil if there is none.
func (c *Controller) RegionGone(regionID uint64, by *core.RegionInfo) {
	if c.running.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	op := c.mu.ops[regionID]
	if op == nil {
		return
	}
	m, merging := op.Current().(operator.MergeRegion)
	if merging && by != nil && by.ID() == m.Target.GetId() && by.Version() > m.Version+1 {
		c.endLocked(op, operator.Success, "", c.now())
		return
	}
	c.endLocked(op, operator.Canceled, "region is gone", c.now())
}

// advanceLocked is the one place where a running operator changes. A record that no leader has
// reported, as that of a half of a split, says nothing of which peers have their data: it moves
// nothing on.
func (c *Controller) advanceLocked(
	v *view.View, op *operator.Operator, r *core.RegionInfo, now time.Time, onHeartbeat bool,
) {
	if !r.Confirmed() {
		if now.After(op.Deadline(c.timeoutsLocked())) {
			c.endLocked(op, operator.Timeout, "region has no confirmed leader", now)
		}
		return
	}
	step := op.Advance(r, now)
	if step == nil {
		c.endLocked(op, operator.Success, "", now)
		return
	}
	if reason := c.overtaken(op, step, r); reason != "" {
		c.endLocked(op, operator.Canceled, reason, now)
		return
	}
	if op.Foreign(r) {
		c.endLocked(op, operator.Canceled, "somebody else changed the region's peers", now)
		return
	}
	if now.After(op.Deadline(c.timeoutsLocked())) {
		c.endLocked(op, operator.Timeout, "step timed out: "+step.String(), now)
		return
	}
	if reason := c.unsafe(v, op, step, r); reason != "" {
		c.endLocked(op, operator.Canceled, reason, now)
		return
	}
	if op.ShouldSend(now, onHeartbeat, r.LeaderStore()) {
		c.sendLocked(v, op, step, r, now)
	}
}

// overtaken says why a merge cannot take place any more: the stores have refused it, or one of the
// two regions is not as it was when the merge was planned. A source that is frozen has one version
// more than then.
func (c *Controller) overtaken(
	op *operator.Operator, step operator.Step, r *core.RegionInfo,
) string {
	m, ok := op.Merge()
	if !ok {
		return ""
	}
	_, ordered := step.(operator.MergeRegion)
	switch target := c.regions.Region(m.Target.GetId()); {
	case m.Refused(r):
		return "the merge was refused: a replica did not answer, or the target has changed"
	case target == nil:
		return fmt.Sprintf("region %d, the target, is gone", m.Target.GetId())
	case target.Version() != m.Target.RegionEpoch.GetVersion() ||
		target.ConfVer() != m.Target.RegionEpoch.GetConfVer():
		if c.regions.Region(op.RegionID()) == nil {
			return "" // that was the merge: the source left the map before the target came into it
		}
		return fmt.Sprintf("region %d, the target, has changed", target.ID())
	case !ordered && r.Version() != m.Version:
		return "the region was split"
	}
	return ""
}

func (c *Controller) timeoutsLocked() operator.Timeouts {
	s := &c.mu.cfg.Schedule
	return operator.Timeouts{
		Leader: s.LeaderStepTimeout.D(), Peer: s.PeerStepTimeout.D(), RateMiB: s.SnapshotRateMiB,
	}
}

// unsafe re-validates the step under way: the cluster may have changed since it was planned. It is
// the quorum guard of every membership change.
func (c *Controller) unsafe(
	v *view.View, op *operator.Operator, step operator.Step, r *core.RegionInfo,
) string {
	switch s := step.(type) {
	case operator.AddPeer, operator.AddLearner, operator.PromoteLearner:
		store := v.Store(destination(step))
		switch {
		case store == nil || !store.IsUp():
			return fmt.Sprintf("store %d is not up any more", destination(step))
		case filter.Down(store, v.Env()):
			return fmt.Sprintf("store %d is down", destination(step))
		}
		if _, listed := r.StorePeer(destination(step)); !listed {
			if _, voter := step.(operator.AddPeer); voter && !checker.SafeToAdd(v, r) {
				return "adding a voter would endanger the quorum"
			}
		}
	case operator.RemovePeer:
		if !checker.SafeToRemove(v, r, s.FromStore) {
			return "removing a voter would endanger the quorum"
		}
	case operator.TransferLeader:
		p, ok := r.StorePeer(s.ToStore)
		if !ok {
			return fmt.Sprintf("no peer on store %d", s.ToStore)
		}
		store := v.Store(s.ToStore)
		if store == nil || !filter.Connected(store, v.Env()) {
			return fmt.Sprintf("store %d is disconnected", s.ToStore)
		}
		if store.EvictLeaders() && op.Kind()&operator.OpAdmin == 0 {
			return fmt.Sprintf("store %d sheds leaders", s.ToStore)
		}
		if p.Learner {
			return fmt.Sprintf("peer on store %d is a learner", s.ToStore)
		}
	case operator.SplitRegion:
		if len(s.Key) > 0 && !r.CutBy(s.Key) {
			return fmt.Sprintf("key %v is not inside the region any more: it was split elsewhere",
				redact.Key(s.Key))
		}
	}
	return ""
}

func (c *Controller) sendLocked(
	v *view.View, op *operator.Operator, step operator.Step, r *core.RegionInfo, now time.Time,
) {
	leader, ok := r.Leader()
	if !ok {
		return
	}
	resp := &schedulerpb.RegionHeartbeatResponse{
		RegionId: r.ID(), RegionEpoch: r.Epoch(), TargetPeer: leader.ToProto(),
	}
	if rm, isRemove := step.(operator.RemovePeer); isRemove && rm.FromStore == leader.StoreID {
		// The leadership moved onto the peer to be removed. A leader is never told to remove
		// itself: it first hands over.
		to, ok := v.NewLeader(r, rm.FromStore)
		if !ok {
			return
		}
		step = operator.TransferLeader{FromStore: rm.FromStore, ToStore: to}
	}
	switch s := step.(type) {
	case operator.TransferLeader:
		if p, ok := r.StorePeer(s.ToStore); ok && r.IsPending(p.ID) {
			return // it could not win the election
		}
	case operator.PromoteLearner:
		if p, ok := r.StorePeer(s.ToStore); !ok || !v.Healthy(r, p) {
			return // its vote would only make the quorum larger
		}
	}
	if step.Command(r, resp) {
		op.Sent(now, leader.StoreID)
		c.send.Send(leader.StoreID, resp)
	}
}

func (c *Controller) endLocked(
	op *operator.Operator, st operator.Status, reason string, now time.Time,
) {
	switch st {
	case operator.Timeout:
		c.noteTimeoutLocked(op, now)
	case operator.Success: // three in a row is what counts
		for _, s := range op.Steps() {
			delete(c.mu.failed, failKey{op.RegionID(), destination(s)})
			if rm, ok := s.(operator.RemovePeer); ok && op.Priority() == operator.Low {
				c.mu.left[failKey{op.RegionID(), rm.FromStore}] = now
			}
		}
	}
	op.Finish(st, reason, now)
	delete(c.mu.ops, op.RegionID())
	c.running.Store(int64(len(c.mu.ops)))
	rec := op.Record()
	c.mu.records[op.RegionID()] = rec
	c.mu.ended[op.Desc()+"/"+st.String()]++
	c.rememberLocked(rec)
	if c.onEnd != nil {
		c.onEnd(rec)
	}
	if other := c.mu.ops[op.Partner()]; other != nil && other.Partner() == op.RegionID() &&
		st != operator.Success {
		c.endLocked(other, operator.Canceled,
			fmt.Sprintf("region %d: %s", op.RegionID(), cmp.Or(reason, st.String())), now)
	}
}

func (c *Controller) rememberLocked(rec operator.Record) {
	if len(c.mu.history) < historySize {
		c.mu.history = append(c.mu.history, rec)
	} else {
		c.mu.history[c.mu.next] = rec
		c.mu.next = (c.mu.next + 1) % historySize
	}
}

// Remember adds an operator that another member has ended to the history.
func (c *Controller) Remember(rec operator.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rememberLocked(rec)
}

// ForgetHistory makes the history empty.
func (c *Controller) ForgetHistory() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.history, c.mu.next = nil, 0
}

// noteTimeoutLocked backs off from a region and target that fail again and again.
func (c *Controller) noteTimeoutLocked(op *operator.Operator, now time.Time) {
	target := destination(op.Current())
	if target == 0 {
		return
	}
	switch s := op.Current().(type) {
	case operator.AddLearner:
		c.mu.givenUp[s.PeerID] = now
	case operator.PromoteLearner:
		c.mu.givenUp[s.PeerID] = now
	}
	key := failKey{op.RegionID(), target}
	f := c.mu.failed[key]
	f.count, f.last = f.count+1, now
	if f.count >= 3 {
		f.until = now.Add(time.Minute << min(f.count-3, 6))
	}
	c.mu.failed[key] = f
}

// Tick ends operators whose deadline passed and sends commands again, without waiting for a
// heartbeat that may never come.
func (c *Controller) Tick(v *view.View) {
	if c.running.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	ids := make([]uint64, 0, len(c.mu.ops))
	for id := range c.mu.ops {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		op := c.mu.ops[id]
		if op == nil {
			continue // the other half of a merge ended it
		}
		if r := c.regions.Region(id); r != nil {
			c.advanceLocked(v, op, r, now, false)
		} else if _, merges := op.Merge(); !merges || now.After(op.Deadline(c.timeoutsLocked())) {
			// That a region went into another one is for RegionGone to say, which is about to.
			c.endLocked(op, operator.Canceled, "region is gone", now)
		}
	}
}

// Prune forgets records and failures that nobody will ask for any more.
func (c *Controller) Prune() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for id, rec := range c.mu.records {
		if now.Sub(rec.Finished) > recordTTL {
			delete(c.mu.records, id)
		}
	}
	for k, f := range c.mu.failed {
		if now.Sub(f.until) > time.Hour && now.Sub(f.last) > time.Hour {
			delete(c.mu.failed, k)
		}
	}
	for k, at := range c.mu.left {
		if now.Sub(at) > leftTTL {
			delete(c.mu.left, k)
		}
	}
	for id, at := range c.mu.givenUp {
		if now.Sub(at) > givenUpTTL {
			delete(c.mu.givenUp, id)
		}
	}
}

// GivenUp tells whether a learner did not catch up in the time that it had: it is to be removed.
func (c *Controller) GivenUp(peerID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.mu.givenUp[peerID]
	return ok
}

// LeftLately tells whether a region's replica was moved away from a store within the hour, by
// balance or to a better location: balance does not bring one back.
func (c *Controller) LeftLately(regionID, storeID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.mu.left[failKey{regionID, storeID}]
	return ok && c.now().Sub(at) <= leftTTL
}

// TimedOut tells whether replicas of a region have lately failed to arrive at a store: another one
// is tried first.
func (c *Controller) TimedOut(regionID, storeID uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.mu.failed[failKey{regionID, storeID}]
	return ok && c.now().Sub(f.last) < timedOutTTL
}

// Cancel ends a region's operator on request.
func (c *Controller) Cancel(regionID uint64, reason string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	op := c.mu.ops[regionID]
	if op == nil {
		return false
	}
	c.endLocked(op, operator.Canceled, reason, c.now())
	return true
}

// CancelAll ends all operators, when this member stops leading.
func (c *Controller) CancelAll(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, op := range c.mu.ops {
		c.endLocked(op, operator.Canceled, reason, c.now())
	}
}

// Find returns the running operator of a region, or the last one that ended in the past ten
// minutes.
func (c *Controller) Find(regionID uint64) (operator.Record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if op := c.mu.ops[regionID]; op != nil {
		return op.Record(), true
	}
	rec, ok := c.mu.records[regionID]
	if !ok || c.now().Sub(rec.Finished) > recordTTL {
		return operator.Record{}, false
	}
	return rec, true
}

// Records returns copies of all running operators, by region.
func (c *Controller) Records() []operator.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]operator.Record, 0, len(c.mu.ops))
	for _, op := range c.mu.ops {
		out = append(out, op.Record())
	}
	slices.SortFunc(out, func(a, b operator.Record) int {
		return int(int64(a.RegionID) - int64(b.RegionID))
	})
	return out
}

// History returns ended operators, the newest first, at most limit.
func (c *Controller) History(limit int) []operator.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.mu.history)
	out := make([]operator.Record, 0, min(limit, n))
	for i := 0; i < n && len(out) < limit; i++ {
		out = append(out, c.mu.history[(c.mu.next+n-1-i+n)%n])
	}
	return out
}

// Ended counts ended operators by "desc/status".
func (c *Controller) Ended() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]uint64, len(c.mu.ended))
	for k, n := range c.mu.ended {
		out[k] = n
	}
	return out
}
