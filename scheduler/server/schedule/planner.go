package schedule

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/checker"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

const (
	patrolBatch  = 256  // regions checked per patrol turn
	dirtyBatch   = 4096 // changed regions checked per turn
	planBatch    = 64   // operators one scheduler may plan per turn
	waitingRetry = time.Second
	// between two rounds of the patrol: what changes is checked at once anyway
	patrolRest    = time.Second
	pruneInterval = time.Minute
)

// Planner makes all decisions. One goroutine calls Tick; MarkDirty may be called by anyone.
type Planner struct {
	regions    *core.BasicCluster
	controller *Controller
	newView    func() *view.View
	schedulers []*entry
	// Prepared is false while too little is known to balance. Repair of confirmed regions does not
	// wait for it.
	prepared func() bool

	patrolKey   []byte
	resting     bool        // the patrol has seen all regions
	restless    atomic.Bool // Wake was called
	nextPatrol  time.Time
	nextWaiting time.Time
	nextPrune   time.Time
	waiting     map[uint64]checker.Defect // regions with a defect that cannot be repaired now
	rounds      int

	// merges decides which regions go into a neighbour; nil: none.
	merges *merge.Policy
	// merging is what the patrol found about merges in this round.
	merging struct {
		open   bool // nothing is against merges as a whole, as of this turn
		limits merge.Limits

		small   int
		blocked map[string]int
		last    string
	}

	// repair is what checks found in this round of the patrol, and the last plan that came of one.
	repair struct {
		blocked map[string]int
		last    string
	}

	dirty struct {
		sync.Mutex
		ids   map[uint64]struct{}
		order []uint64
	}
	wake chan struct{}

	explained struct {
		sync.Mutex
		decisions map[string]Decision
		paused    map[string]time.Time
	}
}

type entry struct {
	s        Scheduler
	interval time.Duration
	next     time.Time
}

// Decision is the last one of a scheduler, for explain.
type Decision struct {
	Scheduler string         `json:"scheduler"`
	At        time.Time      `json:"at"`
	Result    string         `json:"result"`
	Lines     []string       `json:"lines"`
	Refusals  map[string]int `json:"refusals,omitempty"`
}

// NewPlanner returns a planner of the given schedulers.
func NewPlanner(regions *core.BasicCluster, c *Controller, newView func() *view.View,
	prepared func() bool, schedulers ...Scheduler,
) *Planner {
	p := &Planner{
		regions: regions, controller: c, newView: newView, prepared: prepared,
		waiting: make(map[uint64]checker.Defect), wake: make(chan struct{}, 1),
	}
	for _, s := range schedulers {
		p.schedulers = append(p.schedulers, &entry{s: s, interval: s.GetMinInterval()})
	}
	p.dirty.ids = make(map[uint64]struct{})
	p.explained.decisions = make(map[string]Decision)
	p.explained.paused = make(map[string]time.Time)
	return p
}

// UseMerges has the patrol merge regions as the policy says. Call it before the first turn.
func (p *Planner) UseMerges(m *merge.Policy) { p.merges = m }

// MarkDirty has a region checked at the next turn. Beyond a limit the patrol will find it.
func (p *Planner) MarkDirty(regionID uint64) {
	p.dirty.Lock()
	if _, ok := p.dirty.ids[regionID]; !ok && len(p.dirty.order) < 1<<20 {
		p.dirty.ids[regionID] = struct{}{}
		p.dirty.order = append(p.dirty.order, regionID)
	}
	p.dirty.Unlock()
	p.stir()
}

// Wake makes Woken fire, and the patrol begin at once if it rests: something changed that may
// concern any region.
func (p *Planner) Wake() {
	p.restless.Store(true)
	p.stir()
}

func (p *Planner) stir() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Woken fires when there is something to check before the next regular turn.
func (p *Planner) Woken() <-chan struct{} { return p.wake }

func (p *Planner) takeDirty() []uint64 {
	p.dirty.Lock()
	defer p.dirty.Unlock()
	n := min(len(p.dirty.order), dirtyBatch)
	out := slices.Clone(p.dirty.order[:n])
	p.dirty.order = p.dirty.order[n:]
	if len(p.dirty.order) == 0 {
		p.dirty.order = nil
	}
	for _, id := range out {
		delete(p.dirty.ids, id)
	}
	return out
}

// Tick takes one turn and returns when the next one is due.
func (p *Planner) Tick() time.Time {
	v := p.newView()
	p.merging.open = p.merges != nil && p.MayMerge(v).None()
	if p.merging.open {
		p.merging.limits = merge.LimitsOf(v)
	}
	p.controller.Tick(v)
	p.check(v)
	prepared := p.prepared()
	if prepared {
		p.plan(v)
	}
	if v.Now.After(p.nextPrune) {
		p.nextPrune = v.Now.Add(pruneInterval)
		p.controller.Prune()
		if p.merges != nil {
			p.merges.Prune(v.Now, v.Settings.Schedule.SplitMergeInterval.D())
		}
	}
	next := p.nextPatrol
	for _, e := range p.schedulers {
		if prepared && e.next.Before(next) {
			next = e.next
		}
	}
	return next
}

func (p *Planner) check(v *view.View) {
	for _, id := range p.takeDirty() {
		p.checkRegion(v, p.regions.Region(id), id)
	}
	if !v.Now.Before(p.nextWaiting) {
		p.nextWaiting = v.Now.Add(waitingRetry)
		ids := make([]uint64, 0, len(p.waiting))
		for id := range p.waiting {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		for _, id := range ids {
			p.checkRegion(v, p.regions.Region(id), id)
		}
	}
	woken := p.restless.Swap(false) && p.resting
	if woken || !v.Now.Before(p.nextPatrol) {
		pause := v.Settings.Schedule.PatrolRegionInterval.D()
		p.patrol(v)
		if p.resting = len(p.patrolKey) == 0; p.resting {
			pause = max(pause, patrolRest)
		}
		p.nextPatrol = v.Now.Add(pause)
	}
}

// patrol checks the next slice of regions in key order, so that nothing is missed for ever.
func (p *Planner) patrol(v *view.View) {
	batch := p.regions.ScanRegions(p.patrolKey, nil, patrolBatch)
	for _, r := range batch {
		p.checkRegion(v, r, r.ID())
	}
	p.merge(v, batch)
	p.patrolKey = nil
	if len(batch) == patrolBatch {
		p.patrolKey = batch[len(batch)-1].EndKey()
	}
	if len(p.patrolKey) == 0 {
		p.rounds++
		p.publishRepair(v)
		p.publishMerges(v)
	}
}

// MayMerge says what keeps the cluster as a whole from merging regions now.
func (p *Planner) MayMerge(v *view.View) merge.Refusal {
	switch {
	case p.merges == nil || !v.Settings.Schedule.Enabled(merge.Name):
		return merge.Refusal{Rule: "switched-off", Detail: "the policy is disabled"}
	case p.isPaused(merge.Name, v.Now):
		return merge.Refusal{
			Rule: "paused", Detail: "until " + p.PausedUntil(merge.Name).UTC().Format(time.RFC3339),
		}
	case !p.prepared():
		return merge.Refusal{
			Rule: "not-prepared", Detail: "the stores have not reported all their regions",
		}
	}
	return p.merges.Cluster(v)
}

// merge lets small regions of the batch go into their neighbours, as far as nothing better is to be
// done with them.
func (p *Planner) merge(v *view.View, batch []*core.RegionInfo) {
	if !p.merging.open {
		return
	}
	room := v.Settings.Schedule.MergeScheduleLimit - (p.controller.Count(operator.OpMerge)+1)/2
	for _, r := range batch {
		if room <= 0 {
			p.noteMerge(merge.Refusal{Rule: "limit"})
			return
		}
		res := p.merges.Plan(v, r, p.merging.limits)
		if res.Merge == nil {
			p.noteMerge(res.Refusal)
			continue
		}
		if err := p.controller.AddPair(v, res.Merge, res.Take); err != nil {
			p.noteMerge(merge.Refusal{Rule: "not-admitted"})
			continue
		}
		room--
		p.merging.small++
		p.merging.last = res.Merge.String() + " because " + res.Merge.Why()
	}
}

// WillMerge tells whether a region is to go into a neighbour soon. Only the goroutine that calls
// Tick may call it.
func (p *Planner) WillMerge(v *view.View, r *core.RegionInfo) bool {
	return p.merging.open && p.merges.Wants(v, r, p.merging.limits)
}

// noteMerge counts what keeps a small region from being merged, for explain.
func (p *Planner) noteMerge(f merge.Refusal) {
	if f.None() {
		return
	}
	if p.merging.blocked == nil {
		p.merging.blocked = map[string]int{}
	}
	p.merging.small++
	p.merging.blocked[f.Rule]++
}

// publishMerges makes what the last round over all regions has found the decision of the policy
// "merge".
func (p *Planner) publishMerges(v *view.View) {
	if p.merges == nil {
		return
	}
	d := Decision{
		Scheduler: merge.Name, At: v.Now, Result: "nothing to do", Refusals: p.merging.blocked,
	}
	switch f := p.MayMerge(v); {
	case !f.None():
		d.Result = f.String()
	case p.merging.small > 0:
		d.Result = fmt.Sprintf("%d regions are small", p.merging.small)
	}
	if p.merging.last != "" {
		d.Lines = append(d.Lines, "last plan: "+p.merging.last)
	}
	p.merging.small, p.merging.blocked = 0, nil
	p.explained.Lock()
	p.explained.decisions[d.Scheduler] = d
	p.explained.Unlock()
}

// note counts what a check found, for explain.
func (p *Planner) note(res checker.Result) {
	switch {
	case res.Defect == checker.None:
	case res.Op != nil:
		p.repair.last = res.Op.String() + " because " + res.Op.Why()
	default:
		if p.repair.blocked == nil {
			p.repair.blocked = map[string]int{}
		}
		p.repair.blocked[string(res.Defect)+" waits: "+res.Blocked]++
	}
}

// publishRepair makes what the last round over all regions has found the decision of the policy
// "repair".
func (p *Planner) publishRepair(v *view.View) {
	d := Decision{
		Scheduler: "repair", At: v.Now, Result: "nothing to do", Refusals: p.repair.blocked,
	}
	if len(p.waiting) > 0 || len(p.repair.blocked) > 0 {
		d.Result = fmt.Sprintf("%d regions wait", len(p.waiting))
	}
	if p.repair.last != "" {
		d.Lines = append(d.Lines, "last plan: "+p.repair.last)
	}
	if id := v.Unlabeled(); id != 0 {
		d.Lines = append(d.Lines,
			fmt.Sprintf("store %d lacks a location label: nothing is moved for them", id))
	}
	p.repair.blocked = nil
	p.explained.Lock()
	p.explained.decisions[d.Scheduler] = d
	p.explained.Unlock()
}

func (p *Planner) checkRegion(v *view.View, r *core.RegionInfo, id uint64) {
	if r == nil {
		delete(p.waiting, id)
		return
	}
	res := checker.Result{}
	if busy := v.Busy(id); !busy || p.mayReplace(id) {
		res = checker.Check(v, r)
		// A move has one replica too many on its way: that is no defect. Nor is where it takes it
		// from.
		if busy &&
			(res.Defect == checker.Extra || res.Defect == checker.Learner ||
				res.Defect == checker.Misplaced) {
			res = checker.Result{}
		}
	}
	p.note(res)
	if res.Defect == checker.None {
		delete(p.waiting, id)
		return
	}
	if res.Op == nil {
		// Misplaced regions may be all there are; the patrol comes to them again.
		if delete(p.waiting, id); res.Defect != checker.Misplaced {
			p.waiting[id] = res.Defect
		}
		return
	}
	if p.controller.Count(operator.OpReplica) >= v.Settings.Schedule.ReplicaScheduleLimit {
		p.waiting[id] = res.Defect
		return
	}
	if err := p.controller.Add(v, res.Op); err != nil {
		p.waiting[id] = res.Defect
		return
	}
	delete(p.waiting, id)
}

// mayReplace: repair pre-empts balance, but does not restart itself.
func (p *Planner) mayReplace(id uint64) bool {
	rec, ok := p.controller.Find(id)
	return ok && !rec.Status.Final() && rec.Priority == operator.Low
}

func (p *Planner) plan(v *view.View) {
	for _, e := range p.schedulers {
		if v.Now.Before(e.next) {
			continue
		}
		planned := 0
		if v.Settings.Schedule.Enabled(e.s.Name()) && !p.isPaused(e.s.Name(), v.Now) {
			planned = p.planOne(v, e.s)
		}
		if planned > 0 {
			e.interval = e.s.GetMinInterval()
		} else {
			e.interval = e.s.GetNextInterval(e.interval)
		}
		e.next = v.Now.Add(e.interval)
	}
}

func (p *Planner) planOne(v *view.View, s Scheduler) int {
	planned := 0
	v.Trace = &view.Trace{}
	defer func() { v.Trace = nil }()
	result := "nothing to do"
	for planned < planBatch {
		if !s.IsScheduleAllowed(v, p.controller.Count) {
			result = "limit reached"
			break
		}
		op := s.Schedule(v)
		if op == nil {
			break
		}
		if err := p.controller.Add(v, op); err != nil {
			result = err.Error()
			break
		}
		planned++
		result = op.String()
	}
	p.explained.Lock()
	p.explained.decisions[s.Name()] = Decision{
		Scheduler: s.Name(), At: v.Now, Result: result, Lines: v.Trace.Lines,
		Refusals: v.Trace.Refusals,
	}
	p.explained.Unlock()
	return planned
}

// Decisions returns the last decision of each scheduler.
func (p *Planner) Decisions() []Decision {
	p.explained.Lock()
	defer p.explained.Unlock()
	out := make([]Decision, 0, len(p.explained.decisions))
	for _, name := range []string{"repair", merge.Name} {
		if d, ok := p.explained.decisions[name]; ok {
			out = append(out, d)
		}
	}
	for _, e := range p.schedulers {
		if d, ok := p.explained.decisions[e.s.Name()]; ok {
			out = append(out, d)
		}
	}
	return out
}

// Refusals are those of the last decision of a policy, by rule.
func (p *Planner) Refusals(policy string) map[string]int {
	p.explained.Lock()
	defer p.explained.Unlock()
	return p.explained.decisions[policy].Refusals // never changed once it is there
}

// Schedulers returns the names of all schedulers.
func (p *Planner) Schedulers() []string {
	var out []string
	for _, e := range p.schedulers {
		out = append(out, e.s.Name())
	}
	if p.merges != nil {
		out = append(out, merge.Name)
	}
	return out
}

// Pause stops a scheduler until the given time; a time in the past resumes it.
func (p *Planner) Pause(name string, until time.Time) {
	p.explained.Lock()
	defer p.explained.Unlock()
	p.explained.paused[name] = until
}

func (p *Planner) isPaused(name string, now time.Time) bool {
	p.explained.Lock()
	defer p.explained.Unlock()
	return now.Before(p.explained.paused[name])
}

// Paused returns until when schedulers are paused.
func (p *Planner) Paused() map[string]time.Time {
	p.explained.Lock()
	defer p.explained.Unlock()
	return maps.Clone(p.explained.paused)
}

// SetPaused replaces all pauses.
func (p *Planner) SetPaused(until map[string]time.Time) {
	p.explained.Lock()
	defer p.explained.Unlock()
	p.explained.paused = maps.Clone(until)
}

// PausedUntil returns until when a scheduler is paused.
func (p *Planner) PausedUntil(name string) time.Time {
	p.explained.Lock()
	defer p.explained.Unlock()
	return p.explained.paused[name]
}
