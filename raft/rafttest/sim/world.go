package sim

import (
	"fmt"
	"io"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

const stateLeader = raft.StateLeader

// Options of a run.
type Options struct {
	// Events is when the faults end and the group has to recover.
	Events int
	// Trace gets a line an event. Nil: none.
	Trace io.Writer
	// Profile, if set, may change the profile the seed has drawn.
	Profile func(*Profile)
	// Cut leaves out a part of the run.
	Cut Cut
}

// Result of a run.
type Result struct {
	Seed      uint64
	Profile   Profile
	Events    int
	VirtualUS int64
	// Commands and Faults are how many there were, those left out not counted.
	Commands, Faults int
	Counts           Counts
	Violation        *Violation
}

type eventKind uint8

const (
	evTick eventKind = iota
	evDeliver
	evPersisted
	evApply
	evRestart
	evClient
	evFault
	evHeal
	evReport
	evUnpause
	evClog
	evUnclog
)

// event is something that happens at a time. Events of the same time happen in the order in which
// they were planned.
type event struct {
	at    int64
	seq   uint64
	kind  eventKind
	epoch uint32
	node  uint64
	from  uint64
	msg   *eraftpb.Message
	hash  uint64
}

// World is a group with its network, disks, clocks, clients and mishaps, all in one goroutine and
// virtual time. One seed gives one run, on any machine. Owner: Run.
type World struct {
	rng    rng
	prof   Profile
	opt    Options
	now    int64
	seq    uint64
	heap   []event
	nodes  []*node // by ID; nodes[0] is nobody
	oracle *oracle
	// cut[from][to]: nothing gets through.
	cut  [maxNodes][maxNodes]bool
	cuts bool
	// clogged nodes are cut off by a swizzle, held is what waits for their return.
	clogged  [maxNodes]bool
	held     []event
	holdBack bool
	// missing counts members that lost their disk and were not replaced, replacement is the ID of
	// who is to come for one.
	missing     int
	replacement uint64

	seed uint64
	// commands and faults number what clients and mishaps do, dropped counts what was left out.
	commands, faults int
	dropped          [2]int

	events    int
	healing   bool
	nextRead  uint64
	violation *Violation
}

// maxNodes bounds the IDs of a run.
const maxNodes = 64

// Run plays one seed.
func Run(seed uint64, opt Options) (res Result) {
	w := &World{rng: rng{state: seed}, opt: opt}
	w.prof = drawProfile(seed, w.rng.fork())
	if opt.Profile != nil {
		opt.Profile(&w.prof)
	}
	opt.Cut.calm(&w.prof)
	w.seed = seed
	defer func() {
		res = Result{
			Seed: seed, Profile: w.prof, Events: w.events, VirtualUS: w.now,
			Commands: w.commands - w.dropped[0], Faults: w.faults - w.dropped[1],
			Counts: w.oracle.counts, Violation: w.violation,
		}
		if p := recover(); p != nil {
			res.Violation = &Violation{Invariant: "panic", Detail: fmt.Sprint(p), Event: w.events}
			if opt.Trace != nil {
				panic(p)
			}
		}
	}()
	w.start()
	for w.violation == nil && w.events < opt.Events && len(w.heap) > 0 {
		w.dispatch()
	}
	if w.violation == nil && w.beyondRepair() {
		w.oracle.counts.BeyondRepair++
		return res
	}
	if w.violation == nil {
		w.heal()
	}
	if w.violation == nil {
		w.checkOutcomes()
	}
	return res
}

func (w *World) start() {
	conf := eraftpb.ConfState{}
	total := w.prof.Voters + w.prof.Learners
	for id := uint64(1); id <= uint64(total); id++ {
		if id <= uint64(w.prof.Voters) {
			conf.Nodes = append(conf.Nodes, id)
		} else {
			conf.Learners = append(conf.Learners, id)
		}
	}
	w.oracle = newOracle(conf)
	w.nodes = append(w.nodes, nil)
	for range total {
		w.addNode(newDisk(conf, false))
	}
	w.plan(event{at: int64(w.prof.ClientUS), kind: evClient})
	if w.prof.FaultUS > 0 {
		w.plan(event{at: int64(w.prof.FaultUS), kind: evFault})
	}
}

func (w *World) addNode(d *disk) *node {
	n := &node{id: uint64(len(w.nodes)), w: w, disk: d}
	n.period = int64(tickUS / w.rng.float(w.prof.RateLo, w.prof.RateHi))
	n.applyUS = w.prof.ApplyUS
	if w.rng.chance(w.prof.SlowApply) {
		n.applyUS = w.prof.SlowApplyUS
	}
	w.nodes = append(w.nodes, n)
	n.boot()
	return n
}

func (w *World) fail(invariant, format string, args ...any) {
	if w.violation == nil {
		w.violation = &Violation{invariant, fmt.Sprintf(format, args...), w.events}
		w.trace("VIOLATION %v", w.violation)
	}
}

func (w *World) trace(format string, args ...any) {
	if w.opt.Trace != nil {
		fmt.Fprintf(w.opt.Trace, "%10d.%03d #%d ", w.now/1000, w.now%1000, w.events)
		fmt.Fprintf(w.opt.Trace, format+"\n", args...)
	}
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// plan puts an event into the heap.
func (w *World) plan(e event) {
	w.seq++
	e.seq = w.seq
	w.heap = append(w.heap, e)
	i := len(w.heap) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(&w.heap[up]) {
			break
		}
		w.heap[i] = w.heap[up]
		i = up
	}
	w.heap[i] = e
}

// pop takes the next event from the heap.
func (w *World) pop() event {
	top := w.heap[0]
	n := len(w.heap) - 1
	last := w.heap[n]
	w.heap[n] = event{}
	w.heap = w.heap[:n]
	if n == 0 {
		return top
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && w.heap[down+1].before(&w.heap[down]) {
			down++
		}
		if !w.heap[down].before(&last) {
			break
		}
		w.heap[i] = w.heap[down]
		i = down
	}
	w.heap[i] = last
	return top
}

// dispatch lets the next event happen.
func (w *World) dispatch() {
	e := w.pop()
	w.now = e.at
	w.events++
	switch e.kind {
	case evClient:
		w.act(false, &w.commands, w.client)
		w.plan(event{at: w.now + w.after(w.prof.ClientUS), kind: evClient})
		return
	case evFault:
		w.act(true, &w.faults, w.fault)
		w.plan(event{at: w.now + w.after(w.prof.FaultUS), kind: evFault})
		return
	case evHeal:
		w.healLinks()
		return
	case evClog:
		w.clogged[e.node] = true
		w.trace("node %d is cut off", e.node)
		return
	case evUnclog:
		w.unclog(e.node)
		return
	}
	n := w.nodes[e.node]
	switch {
	case e.kind == evRestart:
		if !n.alive && !n.destroyed {
			n.boot()
		}
	case !n.alive:
		// A message to nobody, or a step of a life that ended.
	case e.kind == evDeliver:
		n.receive(input{msg: e.msg, hash: e.hash})
	case e.epoch != n.epoch:
	case e.kind == evTick:
		n.receive(input{tick: true})
		w.plan(event{at: w.now + n.period, kind: evTick, node: n.id, epoch: n.epoch})
	case e.kind == evPersisted:
		n.persisted()
		n.run()
	case e.kind == evApply:
		n.applyNext()
	case e.kind == evReport:
		n.receive(input{report: e.hash >> 1, ok: e.hash&1 == 1})
	case e.kind == evUnpause:
		n.paused = false
		n.run()
	}
}

// act does something that has a number, and draws from a source of its own: what one does, or that
// it is left out, does not change what the others want to do.
func (w *World) act(fault bool, number *int, do func()) {
	n, kind := *number, 0
	*number++
	if fault {
		kind = 1
	}
	if w.opt.Cut.drops(fault, n) {
		w.dropped[kind]++
		return
	}
	usual := w.rng
	w.rng = rng{state: mix(w.seed) ^ mix(uint64(2*n+kind)<<1|1)}
	do()
	w.rng = usual
}

// after draws a time around mean.
func (w *World) after(mean int) int64 { return int64(1 + w.rng.Intn(2*mean+1)) }

// send gives a message to the network, which may lose it, double it and let others overtake it.
func (w *World) send(from *node, m *eraftpb.Message) {
	if m.To == 0 || m.To >= uint64(len(w.nodes)) {
		return
	}
	from.sentThisTick++
	w.checkMessage(from, m)
	snap := m.MsgType == eraftpb.MessageType_MsgSnapshot
	through := w.passes(from.id, m.To)
	lost := !w.healing && w.rng.chance(w.prof.Loss)
	if snap {
		lost = lost || !w.healing && w.rng.chance(w.prof.SnapFail)
		w.reportSnapshot(from, m.To, through && !lost)
	}
	if lost {
		return
	}
	e := event{kind: evDeliver, from: from.id, node: m.To, msg: m, hash: hashMessage(m)}
	if !through {
		if w.clogged[from.id] || w.clogged[m.To] {
			w.hold(e)
		}
		return
	}
	e.at = w.now + w.delay(snap)
	w.plan(e)
	if !w.healing && w.rng.chance(w.prof.Dup) {
		e.at = w.now + w.delay(snap)
		w.plan(e)
	}
}

// delay draws how long a message takes: mostly about the usual, seldom up to the longest.
func (w *World) delay(snap bool) int64 {
	d := int64(1 + w.rng.Intn(2*w.prof.DelayUS))
	if w.rng.Intn(20) == 0 && !w.healing {
		d += int64(w.rng.Intn(w.prof.TailUS))
	}
	if snap {
		d += int64(w.rng.Intn(20_000))
	}
	return d
}

func (w *World) reportSnapshot(from *node, to uint64, ok bool) {
	w.oracle.counts.Snapshots++
	if !w.healing && w.rng.chance(w.prof.SnapReportLost) {
		return
	}
	v := to << 1
	if ok {
		v |= 1
	}
	w.plan(event{
		at: w.now + w.delay(true), kind: evReport, node: from.id, epoch: from.epoch, hash: v,
	})
}

// checkMessage looks at what leaves a node: votes (I6) and sizes (I15).
func (w *World) checkMessage(from *node, m *eraftpb.Message) {
	switch m.MsgType {
	case eraftpb.MessageType_MsgRequestVote:
		w.sawVote(from, m.Term, from.id)
	case eraftpb.MessageType_MsgRequestVoteResponse:
		if !m.Reject {
			w.sawVote(from, m.Term, m.To)
		}
	case eraftpb.MessageType_MsgTimeoutNow:
		w.oracle.counts.Transfers++
	case eraftpb.MessageType_MsgAppend:
		if w.prof.MaxSizePerMsg == 0 || len(m.Entries) < 2 {
			return
		}
		var size uint64
		for _, e := range m.Entries {
			size += uint64(e.Size())
		}
		if size > w.prof.MaxSizePerMsg {
			w.fail("I15", "node %d sends %d bytes of entries, limit %d", from.id, size,
				w.prof.MaxSizePerMsg)
		}
	}
}

// hashMessage is compared when a message arrives: nobody may have written to it on its way (I12).
func hashMessage(m *eraftpb.Message) uint64 {
	h := m.Term<<40 ^ m.Index<<20 ^ m.LogTerm<<10 ^ m.Commit ^ uint64(m.MsgType)<<60
	for _, e := range m.Entries {
		h = hashEntry(h, e)
	}
	return h
}
