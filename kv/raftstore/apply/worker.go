package apply

import (
	"fmt"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// flushBytes is the size at which a worker writes its batch, also in mid-task.
const flushBytes = 1 << 20

// Host is the store, as a worker knows it. No method blocks.
type Host interface {
	// Neighbours are a region and those beside it on this store, in key order.
	Neighbours(r *metapb.Region) []*metapb.Region
	// ReserveSplit tells whether a split may create the peer of its right half here, and keeps
	// others from doing so.
	ReserveSplit(right *metapb.Region, peerID uint64) bool
	// Report lays a report into the mailbox of a region's peer, if there is one.
	Report(regionID uint64, m *message.Applied)
	// Flushed follows each batch that is in the engine, after its reports. entries is how many
	// entries were in it.
	Flushed(entries uint64)
	// Age is the time since the store was made.
	Age() time.Duration
	// Applied says that the engine has the entry of a proposal, which is answered then.
	Applied(regionID uint64, p *message.Proposal)
	// Release gives back the bytes of writes that have an answer.
	Release(bytes int64)
	// Damaged says that the next entry of a region is not the one that was committed.
	Damaged(regionID uint64, err error)
}

// Options are what a Worker is made of.
type Options struct {
	// ID is the worker's place among those of the store; StoreID the store's.
	ID      int
	StoreID uint64
	Host    Host
	Engine  engine.Engine
	Hasher  *runner.Hasher
	// Swaps is shared by all workers of a store.
	Swaps *Swaps
}

// Task is work for the worker of a region; tasks of a region are carried out in order. One of
// Begin, Entries and End is set.
type Task struct {
	RegionID uint64
	// Entries are committed; Proposals are those that wait for them here, and for nothing behind
	// the last of them.
	Entries   []eraftpb.Entry
	Proposals []message.Proposal
	Begin     *Begin
	End       *End
}

// Begin is the state of a peer whose entries will follow.
type Begin struct {
	Peer          *metapb.Peer
	Region        *metapb.Region
	Applied, Term uint64
	Truncated     rspb.RaftTruncatedState
	// Merging is set if the region is frozen, to go into another one.
	Merging *rspb.MergingState
}

// End ends the worker's part in a region: behind all earlier entries, whose effects are in the
// engine when Then is called.
type End struct {
	// Tombstone is the region as the peer's tombstone keeps it, which is written then, synced; nil
	// if the peer is not destroyed.
	Tombstone *metapb.Region
	Peer      *metapb.Peer
	// Damaged is why the replica must not be served after a restart either; empty if it may. It is
	// written, synced.
	Damaged string
	// Then is called on the worker, which it must not hold up.
	Then func()
}

// applier is the state machine side of a region: it owns the applied state. Owned by the region's
// worker.
//
// Invariant: in the engine, applied index, region state and data change in one batch.
type applier struct {
	regionID  uint64
	peer      *metapb.Peer
	region    *metapb.Region
	applied   uint64
	term      uint64
	truncated rspb.RaftTruncatedState
	// recorded is what the apply state in the engine says of truncated.
	recorded rspb.RaftTruncatedState
	// place in the worker's table, from 1; 0: not in it; noPlace: nor will it be.
	place int
	// merging: the region is frozen, and only an entry that ends it takes effect.
	merging *rspb.MergingState
	// removed: the conf change that removes this peer is applied; nothing after it is.
	removed bool
	// broken: nothing is applied any more because the next entry is damaged here. removed is set as
	// well.
	broken bool
	// report gathers what the peer must be told after the next write; dirty: there is something.
	report message.Applied
	dirty  bool
	// reportedTerm is the term of the last report.
	reportedTerm uint64
}

// Worker carries out committed entries of the regions that are sticky to it. One engine batch
// covers all regions of a round; it is not synced, because the synced raft log replays it, except
// where the raft log or another region's existence will depend on it (conf change, split).
type Worker struct {
	storeID uint64
	host    Host
	engine  engine.Engine
	hasher  *runner.Hasher
	swaps   *Swaps

	queue struct {
		sync.Mutex
		cond   *sync.Cond
		tasks  []Task
		closed bool
	}
	// The rest belongs to the goroutine of Run.
	taken   []Task
	regions map[uint64]*applier
	table   appliedTable
	batch   engine.Batch
	sync    bool
	touched []*applier
	answers []answer
	entries uint64        // in batch
	begun   time.Duration // when the batch was, as the store's age
	// mortal are the keys of expiry times in batch, which reads of the engine do not see.
	mortal map[string]struct{}
	freed  int64
	keyBuf []byte
	state  rspb.RaftApplyState // scratch of flush
}

// answer is what to tell of a proposal once its effect is in the engine.
type answer struct {
	regionID uint64
	prop     message.Proposal
	res      message.Result
}

// New makes a worker. It does no IO and starts nothing.
func New(o Options) *Worker {
	w := &Worker{
		storeID: o.StoreID, host: o.Host, engine: o.Engine, hasher: o.Hasher, swaps: o.Swaps,
		table: appliedTable{worker: o.ID}, regions: map[uint64]*applier{},
		batch:  o.Engine.NewBatch(),
		mortal: map[string]struct{}{},
	}
	w.queue.cond = sync.NewCond(&w.queue)
	return w
}

// Push hands over tasks; the slice is copied. It never blocks: what may be queued is bounded by the
// limits on proposals in flight.
func (w *Worker) Push(tasks ...Task) {
	w.queue.Lock()
	w.queue.tasks = append(w.queue.tasks, tasks...)
	w.queue.Unlock()
	w.queue.cond.Signal()
}

// Close lets Run return once the queue is empty.
func (w *Worker) Close() {
	w.queue.Lock()
	w.queue.closed = true
	w.queue.Unlock()
	w.queue.cond.Broadcast()
}

// Run carries out tasks until Close, or until an error from which the store must not go on. It is
// called once.
func (w *Worker) Run() error {
	for w.take(true) {
		if err := w.runTaken(); err != nil {
			return err
		}
	}
	return nil
}

// RunQueued carries out what is queued and does not wait for more; ran is false if nothing was. Not
// to be called beside Run.
func (w *Worker) RunQueued() (ran bool, err error) {
	if !w.take(false) {
		return false, nil
	}
	return true, w.runTaken()
}

// take takes what is queued. False: nothing is, and if it was to wait for something, nothing will
// be.
func (w *Worker) take(wait bool) bool {
	w.queue.Lock()
	defer w.queue.Unlock()
	for wait && len(w.queue.tasks) == 0 && !w.queue.closed {
		w.queue.cond.Wait()
	}
	w.taken, w.queue.tasks = w.queue.tasks, w.taken[:0]
	return len(w.taken) > 0
}

func (w *Worker) runTaken() error {
	err := w.round(w.taken)
	clear(w.taken)
	return err
}

// Abandon ends the proposals of tasks that are still queued. Only after Run has returned.
func (w *Worker) Abandon() {
	w.abandon(w.queue.tasks)
	w.queue.tasks = nil
}

// round carries out tasks and writes what they came to.
func (w *Worker) round(tasks []Task) error {
	w.begun = w.host.Age()
	for i := range tasks {
		if err := w.handle(&tasks[i]); err != nil {
			w.abandon(tasks[i:])
			return err
		}
	}
	return w.flush()
}

// abandon answers what can not be carried out any more. The entries are committed: a restart, or
// the other stores, apply them.
func (w *Worker) abandon(tasks []Task) {
	w.host.Release(w.freed)
	w.freed = 0
	for i := range w.answers {
		w.answers[i].prop.Unknown(regionerr.ErrStopping)
	}
	w.answers = nil
	for i := range tasks {
		w.endUnknown(tasks[i].Proposals, regionerr.ErrStopping)
		tasks[i].Proposals = nil
	}
}

func (w *Worker) handle(t *Task) error {
	switch {
	case t.Begin != nil:
		w.begin(t.RegionID, t.Begin)
	case t.End != nil:
		return w.end(t.RegionID, t.End)
	default:
		return w.applyEntries(t)
	}
	return nil
}

// begin starts a region anew at what is durable.
func (w *Worker) begin(regionID uint64, b *Begin) {
	w.forget(regionID)
	w.regions[regionID] = &applier{
		regionID: regionID, peer: b.Peer, region: b.Region,
		applied: b.Applied, term: b.Term, truncated: b.Truncated, recorded: b.Truncated,
		merging: b.Merging,
	}
}

// end writes everything of a region's state, and what is to be found of it from then on.
func (w *Worker) end(regionID uint64, end *End) error {
	if end.Damaged != "" {
		w.markDamaged(regionID, end.Damaged)
	}
	w.forget(regionID)
	if end.Tombstone != nil {
		meta.PutRegionState(w.batch, rspb.PeerState_Tombstone, end.Tombstone, end.Peer)
		w.sync = true
	}
	if err := w.flush(); err != nil {
		return err
	}
	end.Then()
	return nil
}

// markDamaged writes that a replica must not be served after a restart either, if its damage is one
// that a restart does not mend: what it has promised is not what it has. After a read that failed
// it is. The region is the one that this worker has come to; it is not read, because reading may be
// what fails.
func (w *Worker) markDamaged(regionID uint64, why string) {
	a := w.regions[regionID]
	if a == nil || a.removed && !a.broken {
		return // it is being destroyed, has been removed, or never had data
	}
	st := &rspb.RegionLocalState{
		State: rspb.PeerState_Normal, Region: a.region, Peer: a.peer, Damaged: why,
	}
	if a.merging != nil {
		st.State, st.Merging = rspb.PeerState_Merging, a.merging // the target relies on it
	}
	meta.Put(w.batch, meta.RegionStateKey(regionID), st)
	w.sync = true
}

// flush writes the batch and then answers: a callback never speaks of what is not in the engine,
// and a peer learns of an applied index only when a read would see it.
func (w *Worker) flush() error {
	for _, a := range w.touched {
		if a.truncated != a.recorded || !w.table.admit(a) {
			w.record(a)
		}
	}
	for _, a := range w.table.countBatch() {
		w.record(a)
	}
	w.table.put(w.batch)
	wrote := w.batch.Len() > 0
	if wrote {
		if err := w.engine.Write(w.batch, w.sync); err != nil {
			return fmt.Errorf("apply: %w", err)
		}
	}
	w.batch.Reset()
	w.sync = false
	clear(w.mortal)
	for _, a := range w.touched {
		report := a.report
		report.PeerID, report.Index, report.Term = a.peer.Id, a.applied, a.term
		// The first entry of a term lets the leader serve reads by its lease.
		report.Quiet = len(report.Results) == 0 && a.term == a.reportedTerm
		a.report, a.dirty, a.reportedTerm = message.Applied{}, false, a.term
		w.host.Report(a.regionID, &report)
	}
	if wrote {
		w.host.Flushed(w.entries)
		w.entries = 0
	}
	clear(w.touched)
	w.touched = w.touched[:0]
	w.host.Release(w.freed)
	w.freed = 0
	w.answer()
	return nil
}

// answer answers the proposals of a batch that the engine has.
func (w *Worker) answer() {
	if len(w.answers) == 0 {
		return
	}
	now := w.host.Age()
	for i := range w.answers {
		a := &w.answers[i]
		a.prop.Stages.Begun, a.prop.Stages.Applied = w.begun, now
		w.host.Applied(a.regionID, &a.prop)
		a.prop.Applied(a.res)
	}
	w.begun = now // of what is left of the round
	clear(w.answers)
	w.answers = w.answers[:0]
}

// record writes a region's own apply state.
func (w *Worker) record(a *applier) {
	w.state.AppliedIndex, w.state.TruncatedState = a.applied, &a.truncated
	w.keyBuf = meta.PutApplyState(w.batch, a.regionID, &w.state, w.keyBuf)
	a.recorded = a.truncated
}

// forget ends the worker's part in a region, whose apply state says from the next flush on what the
// table said.
func (w *Worker) forget(regionID uint64) {
	a := w.regions[regionID]
	if a == nil {
		return
	}
	if w.table.remove(a) {
		w.record(a)
	}
	a.place = noPlace
	delete(w.regions, regionID)
}
