package operator

import (
	"fmt"
	"strings"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Kind says what an operator is for, as a set of bits.
type Kind uint16

// The kinds.
const (
	OpLeader  Kind = 1 << iota // moves a leader
	OpRegion                   // moves a replica
	OpReplica                  // repairs
	OpBalance                  // balances
	OpAdmin                    // asked for by a person
	OpScatter
	OpSplit
	OpSlow // leaves a slow store
	OpMerge
)

var kindNames = []string{
	"leader", "region", "replica", "balance", "admin", "scatter", "split", "slow", "merge",
}

func (k Kind) String() string {
	var parts []string
	for i, n := range kindNames {
		if k&(1<<i) != 0 {
			parts = append(parts, n)
		}
	}
	if len(parts) == 0 {
		return "unknown"
	}
	return strings.Join(parts, ",")
}

// Priority orders operators for one region: a higher one replaces a lower one.
type Priority uint8

// The priorities.
const (
	Low    Priority = iota // balance
	Medium                 // admin
	High                   // repair
	Urgent                 // one more failure stops the region
)

func (p Priority) String() string {
	return [...]string{"low", "medium", "high", "urgent"}[min(p, Urgent)]
}

// Status is where an operator is in its life.
type Status uint8

// The statuses. All but Created and Running are final.
const (
	Created Status = iota
	Running
	Success
	Timeout
	Canceled
	Replaced
	Expired
)

func (s Status) String() string {
	return [...]string{
		"created", "running", "success", "timeout", "canceled", "replaced", "expired",
	}[min(s, Expired)]
}

// Final is true once nothing more will happen.
func (s Status) Final() bool { return s > Running }

// Operator is a plan for one region. It is owned by the controller from admission on; what others
// get is a Record.
//
// Invariant: 0 <= current <= len(steps); steps before current were done once.
type Operator struct {
	desc     string
	regionID uint64
	version  uint64
	confVer  uint64
	kind     Kind
	priority Priority
	steps    []Step
	why      string
	size     int64
	// partner is the other region of a merge, whose operator ends with this one; 0 in other
	// operators.
	partner uint64

	status    Status
	reason    string
	current   int
	created   time.Time
	started   time.Time
	stepStart time.Time
	stepTimes []time.Duration
	lastSent  time.Time
	sentTo    uint64
	finished  time.Time
}

// New plans steps for a region as it is now.
func New(desc string, r *core.RegionInfo, kind Kind, prio Priority, steps ...Step) *Operator {
	return &Operator{
		desc: desc, regionID: r.ID(), version: r.Version(), confVer: r.ConfVer(),
		kind: kind, priority: prio, steps: steps, size: r.Size(),
	}
}

// Partner returns the other region of a merge, 0 for other operators.
func (o *Operator) Partner() uint64 { return o.partner }

// Merge returns the step that lets the region go into another one: the last one, if there is any.
func (o *Operator) Merge() (MergeRegion, bool) {
	if len(o.steps) == 0 {
		return MergeRegion{}, false
	}
	m, ok := o.steps[len(o.steps)-1].(MergeRegion)
	return m, ok
}

// Because keeps why the operator was made (scores before and after, or the defect).
func (o *Operator) Because(format string, args ...any) *Operator {
	o.why = fmt.Sprintf(format, args...)
	return o
}

// RegionID returns the region.
func (o *Operator) RegionID() uint64 { return o.regionID }

// Desc returns the short name of the plan.
func (o *Operator) Desc() string { return o.desc }

// Why returns the reason it was made.
func (o *Operator) Why() string { return o.why }

// Kind returns what it is for.
func (o *Operator) Kind() Kind { return o.kind }

// Priority returns its priority.
func (o *Operator) Priority() Priority { return o.priority }

// Steps returns all steps.
func (o *Operator) Steps() []Step { return o.steps }

// Status returns where it is.
func (o *Operator) Status() Status { return o.status }

// Reason tells why it ended.
func (o *Operator) Reason() string { return o.reason }

// MatchesEpoch tells whether the region is still as it was when the plan was made.
func (o *Operator) MatchesEpoch(r *core.RegionInfo) bool {
	return o.version == r.Version() && o.confVer == r.ConfVer()
}

// Start begins the first step.
func (o *Operator) Start(now time.Time) {
	o.status, o.created, o.started, o.stepStart = Running, now, now, now
}

// Current returns the step under way, nil if all are done.
func (o *Operator) Current() Step {
	if o.current >= len(o.steps) {
		return nil
	}
	return o.steps[o.current]
}

// Advance passes over steps that the region shows as done and returns the one under way.
func (o *Operator) Advance(r *core.RegionInfo, now time.Time) Step {
	for o.current < len(o.steps) {
		s := o.steps[o.current]
		if !s.Done(r) {
			return s
		}
		o.stepTimes = append(o.stepTimes, now.Sub(o.stepStart))
		o.current++
		o.stepStart, o.lastSent = now, time.Time{}
	}
	return nil
}

// Foreign tells whether somebody else changed the region's membership: the conf version grew by
// more than the steps so far account for.
func (o *Operator) Foreign(r *core.RegionInfo) bool {
	if r.ConfVer() < o.confVer {
		return true
	}
	own := 0
	for i := 0; i <= o.current && i < len(o.steps); i++ {
		own += o.steps[i].ConfChanges(r)
	}
	return r.ConfVer()-o.confVer > uint64(own)
}

// Timeouts are how long steps may take.
type Timeouts struct {
	Leader, Peer time.Duration
	RateMiB      int64 // MiB per second assumed for snapshots
}

// Deadline is when the step under way has failed. It grows with the region's size: a fixed one
// would cancel every move of a big region for ever.
func (o *Operator) Deadline(t Timeouts) time.Time {
	s := o.Current()
	switch s := s.(type) {
	case MergeRegion:
		return o.stepStart.Add(t.Peer) // it may be refused, which takes the stores seconds
	case TakeRegion: // it ends with the other one; this is for one that has none any more
		return o.stepStart.Add(t.Peer + time.Duration(3*s.Moves)*t.move(s.Size) +
			time.Duration(s.Moves)*t.Leader)
	}
	if s == nil || !s.conf() {
		return o.stepStart.Add(t.Leader)
	}
	return o.stepStart.Add(t.move(o.size))
}

// move is how long a membership change of a region of so many MiB may take.
func (t Timeouts) move(size int64) time.Duration {
	return t.Peer + time.Duration(size/max(1, t.RateMiB))*time.Second
}

// Finish ends the operator.
func (o *Operator) Finish(st Status, reason string, now time.Time) {
	o.status, o.reason, o.finished = st, reason, now
}

// ShouldSend limits how often the command under way is sent again: membership changes every 5 s,
// leader transfers every 2 s; a heartbeat may ask for it earlier.
func (o *Operator) ShouldSend(now time.Time, onHeartbeat bool, leader uint64) bool {
	if o.lastSent.IsZero() || leader != o.sentTo {
		return true // a new leader has not heard of it
	}
	wait := 2 * time.Second
	if s := o.Current(); s != nil && s.conf() {
		wait = 5 * time.Second
	}
	if onHeartbeat {
		wait = 200 * time.Millisecond
	}
	return now.Sub(o.lastSent) >= wait
}

// Sent notes that the command was sent to the store that led then.
func (o *Operator) Sent(now time.Time, leader uint64) { o.lastSent, o.sentTo = now, leader }

// Record is a copy of an operator for history and for people.
type Record struct {
	RegionID uint64
	Desc     string
	Why      string
	Kind     Kind
	Priority Priority
	Status   Status
	Reason   string
	Steps    []string
	Current  int
	// Into is the region that this one was to go into, 0 in other operators.
	Into      uint64
	Size      int64
	Started   time.Time
	Finished  time.Time
	StepTimes []time.Duration
}

// Record copies the operator.
func (o *Operator) Record() Record {
	rec := Record{
		RegionID: o.regionID, Desc: o.desc, Why: o.why, Kind: o.kind, Priority: o.priority,
		Status: o.status, Reason: o.reason, Current: o.current, Size: o.size,
		Started: o.started, Finished: o.finished,
		StepTimes: append([]time.Duration(nil), o.stepTimes...),
	}
	for _, s := range o.steps {
		rec.Steps = append(rec.Steps, s.String())
	}
	if m, ok := o.Merge(); ok {
		rec.Into = m.Target.GetId()
	}
	return rec
}

// String is stable: transcripts depend on it.
func (o *Operator) String() string {
	parts := make([]string, len(o.steps))
	for i, s := range o.steps {
		parts[i] = s.String()
	}
	return fmt.Sprintf("%s r%d (%s, %s): %s", o.desc, o.regionID, o.kind, o.priority,
		strings.Join(parts, "; "))
}
