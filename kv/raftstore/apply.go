package raftstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// applyFlushBytes is the size at which an apply worker writes its batch, also in mid-task.
const applyFlushBytes = 1 << 20

type applyKind uint8

const (
	applyEntries  applyKind = iota
	applyRegister           // a peer begins: entries will follow
	applyInstall            // a raft snapshot replaces the region's state
	applyDestroy            // the peer ends
	applyRetire             // the peer ends, and everything stays where it is
)

// applyTask is work for the apply worker of a region; tasks of a region are carried out in order.
type applyTask struct {
	kind      applyKind
	regionID  uint64
	entries   []eraftpb.Entry
	proposals []message.Proposal
	register  *applier
	install   *installTask
	destroy   *destroyTask
	retire    *mailbox
	why       string // it is retired
}

// applier is the state machine side of a region: it owns the applied state. Owned by the region's apply
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
	// removed: the conf change that removes this peer is applied; nothing after it is.
	removed bool
	// broken: nothing is applied any more because the next entry is damaged here. removed is set as well.
	broken bool
	// report gathers what the peer must be told after the next write; dirty: there is something.
	report message.Applied
	dirty  bool
	// reportedTerm is the term of the last report.
	reportedTerm uint64
}

func registerTask(p *peer) applyTask {
	a := &applier{
		regionID: p.regionID, peer: p.meta, region: p.region(),
		applied: p.appliedIndex, term: p.appliedTerm, truncated: p.ps.truncated, recorded: p.ps.truncated,
	}
	return applyTask{kind: applyRegister, regionID: p.regionID, register: a}
}

// applyWorker carries out committed entries of the regions that are sticky to it. One engine batch
// covers all regions of a round; it is not synced, because the synced raft log replays it, except where
// the raft log or another region's existence will depend on it (conf change, split).
type applyWorker struct {
	store *Store
	queue struct {
		sync.Mutex
		cond   *sync.Cond
		tasks  []applyTask
		closed bool
	}
	regions map[uint64]*applier
	table   appliedTable
	batch   engine.Batch
	sync    bool
	touched []*applier
	woken   []*mailbox // by the reports of a flush
	answers []answer
	entries uint64 // in batch
	freed   int64
	keyBuf  []byte
	state   rspb.RaftApplyState // scratch of flush
}

// answer is what to tell of a proposal once its effect is in the engine.
type answer struct {
	prop message.Proposal
	res  message.Result
}

func newApplyWorker(s *Store, id int) *applyWorker {
	w := &applyWorker{store: s, table: appliedTable{worker: id}, regions: map[uint64]*applier{}, batch: s.engine.NewBatch()}
	w.queue.cond = sync.NewCond(&w.queue)
	return w
}

// push hands over tasks; the slice is copied. It never blocks: what may be queued is bounded by the
// limits on proposals in flight.
func (w *applyWorker) push(tasks []applyTask) {
	w.queue.Lock()
	w.queue.tasks = append(w.queue.tasks, tasks...)
	w.queue.Unlock()
	w.queue.cond.Signal()
}

func (w *applyWorker) close() {
	w.queue.Lock()
	w.queue.closed = true
	w.queue.Unlock()
	w.queue.cond.Broadcast()
}

func (w *applyWorker) run() {
	var tasks []applyTask
	for {
		w.queue.Lock()
		for len(w.queue.tasks) == 0 && !w.queue.closed {
			w.queue.cond.Wait()
		}
		if w.queue.closed && len(w.queue.tasks) == 0 {
			w.queue.Unlock()
			return
		}
		tasks, w.queue.tasks = w.queue.tasks, tasks[:0]
		w.queue.Unlock()
		if err := w.round(tasks); err != nil {
			w.store.fail(err)
			return
		}
		clear(tasks)
	}
}

// round carries out tasks and writes what they came to.
func (w *applyWorker) round(tasks []applyTask) error {
	for i := range tasks {
		if err := w.handle(&tasks[i]); err != nil {
			w.abandon(tasks[i:])
			return err
		}
	}
	return w.flush()
}

// abandon answers what can not be carried out any more. The entries are committed: a restart, or the other stores,
// apply them.
func (w *applyWorker) abandon(tasks []applyTask) {
	w.store.inflight.Add(-w.freed)
	w.freed = 0
	for i := range w.answers {
		w.answers[i].prop.Unknown(ErrStopping)
	}
	w.answers = nil
	for i := range tasks {
		w.store.endUnknown(tasks[i].proposals, ErrStopping)
		tasks[i].proposals = nil
	}
}

func (w *applyWorker) handle(t *applyTask) error {
	switch t.kind {
	case applyRegister:
		w.forget(t.regionID)
		w.regions[t.regionID] = t.register
	case applyEntries:
		return w.applyEntries(t)
	case applyInstall:
		// Everything of the old state is written before the region runner replaces it.
		w.forget(t.regionID)
		if err := w.flush(); err != nil {
			return err
		}
		w.store.regionRunner.install(t.install)
	case applyDestroy:
		return w.destroy(t.destroy)
	case applyRetire:
		w.markDamaged(t)
		w.forget(t.regionID)
		if err := w.flush(); err != nil {
			return err
		}
		w.store.peerRetired(t.retire)
	}
	return nil
}

// markDamaged writes that a retired replica must not be served after a restart either, if its damage is one that a restart
// does not mend: what it has promised is not what it has. After a read that failed it is. The region is the one that this
// worker has come to; it is not read, because reading may be what fails.
func (w *applyWorker) markDamaged(t *applyTask) {
	a := w.regions[t.regionID]
	if t.why == "" || a == nil || a.removed && !a.broken {
		return // it is being destroyed, has been removed, or never had data
	}
	meta.Put(w.batch, meta.RegionStateKey(t.regionID), &rspb.RegionLocalState{
		State: rspb.PeerState_Normal, Region: a.region, Peer: a.peer, Damaged: t.why,
	})
	w.sync = true
}

func (w *applyWorker) destroy(t *destroyTask) error {
	w.forget(t.region.Id)
	meta.PutRegionState(w.batch, rspb.PeerState_Tombstone, t.region, t.peer)
	w.sync = true
	if err := w.flush(); err != nil {
		return err
	}
	w.store.regionRunner.destroy(t)
	return nil
}

func (w *applyWorker) applyEntries(t *applyTask) error {
	a := w.regions[t.regionID]
	if a == nil || a.removed {
		w.store.endUnknown(t.proposals, &RegionNotFoundError{RegionID: t.regionID})
		return nil
	}
	for i := range t.entries {
		e := &t.entries[i]
		if e.Index <= a.applied {
			continue // covered by a raft snapshot (D5)
		}
		if e.Index != a.applied+1 {
			return fmt.Errorf("region %d: entry %d follows applied index %d", a.regionID, e.Index, a.applied)
		}
		w.endOverwritten(t, e)
		res, err := w.applyEntry(a, e)
		if errors.Is(err, errUndecodable) {
			w.giveUp(a, e, err)
			break
		}
		if err != nil {
			return fmt.Errorf("apply entry %d of region %d: %w", e.Index, a.regionID, err)
		}
		res.Index = e.Index
		if props := t.proposals; len(props) > 0 && props[0].Is(e.Index, e.Term) {
			w.freed += int64(props[0].Size())
			w.answers = append(w.answers, answer{props[0], res})
			t.proposals = props[1:]
		}
		a.applied, a.term = e.Index, e.Term
		w.entries++
		w.touch(a)
		if w.batch.Size() >= applyFlushBytes || w.sync {
			if err := w.flush(); err != nil {
				return err
			}
		}
		if a.removed {
			break // nothing is written for a region after the removal of its peer (C18)
		}
	}
	w.store.endUnknown(t.proposals, errBehind)
	t.proposals = nil
	return nil
}

// giveUp ends a region's part in the worker at an entry that is not the one that was committed: nothing is applied from it
// on. The peer hands over what it leads and is quarantined. Stopping the store instead would stop it at each start, for
// one replica of which others have the truth.
func (w *applyWorker) giveUp(a *applier, e *eraftpb.Entry, err error) {
	a.removed, a.broken = true, true
	w.store.work.corruptEntries.Add(1)
	w.store.ReadFailed(a.regionID, fmt.Errorf("entry %d: %w", e.Index, err))
}

// errBehind is why the outcome of a proposal is not known: what this replica has applied does not reach it.
var errBehind = errors.New("raftstore: the command was not reached")

// endOverwritten ends the proposals up to an entry that are not the entry.
func (w *applyWorker) endOverwritten(t *applyTask, e *eraftpb.Entry) {
	for len(t.proposals) > 0 {
		prop := &t.proposals[0]
		if prop.Index() > e.Index || prop.Is(e.Index, e.Term) {
			return
		}
		w.store.inflight.Add(-int64(prop.Size()))
		prop.Overwritten(e.Index, e.Term)
		t.proposals = t.proposals[1:]
	}
}

func (w *applyWorker) touch(a *applier) {
	if !a.dirty {
		a.dirty = true
		w.touched = append(w.touched, a)
	}
}

// errUndecodable: a committed entry does not decode. Leaders propose no such entries, so this replica's copy is damaged.
var errUndecodable = errors.New("raftstore: damaged entry")

// applyEntry carries out one entry. A refusal is a result: whatever a sound entry holds, every replica comes to the
// same state (F-13, H8). An error is for this replica alone, from its disk: the store must stop before the applied
// index passes the entry, or this replica would go on without its effect.
func (w *applyWorker) applyEntry(a *applier, e *eraftpb.Entry) (message.Result, error) {
	if e.EntryType == eraftpb.EntryType_EntryConfChange {
		cc, req, err := decodeConfChange(e.Data)
		if err != nil {
			return message.Result{}, err
		}
		return w.applyConfChange(a, e.Index, cc, req), nil
	}
	if len(e.Data) == 0 {
		return message.Result{}, nil // the no-op of a new leader
	}
	cmd, err := message.DecodeEntry(e.Data)
	if err != nil {
		return message.Result{}, fmt.Errorf("%w: %w", errUndecodable, err)
	}
	if cmd.Admin != nil {
		return w.applyAdmin(a, e, &cmd)
	}
	if !epochMatches(a.region, cmd.Header.RegionEpoch, true, false) {
		return message.Result{Err: w.epochNotMatch(a)}, nil
	}
	if cmd.Conditional != nil {
		return w.applyConditional(a, &cmd)
	}
	return w.applyWrite(a, &cmd), nil
}

func (w *applyWorker) epochNotMatch(a *applier) error {
	return &EpochNotMatchError{RegionID: a.regionID, Regions: w.store.meta.withNeighbours(a.region)}
}

// applyWrite carries out puts and deletes: all of them, or none if one is refused.
func (w *applyWorker) applyWrite(a *applier, cmd *message.Entry) message.Result {
	var refused error
	cmd.VisitOps(func(op message.Op) bool {
		if _, err := engine.ParseCF(string(op.CF)); err != nil {
			refused = &InvalidError{Reason: err.Error()}
		} else {
			refused = checkKey(a.region, op.Key)
		}
		return refused == nil
	})
	if refused != nil {
		return message.Result{Err: refused}
	}
	cmd.VisitOps(func(op message.Op) bool {
		cf, _ := engine.ParseCF(string(op.CF))
		w.keyBuf = engine.AppendDataKey(w.keyBuf[:0], cf, op.Key)
		n := int64(len(op.Key) + len(op.Value))
		a.report.WrittenKeys++
		a.report.Written += n
		if op.Delete {
			w.batch.Delete(w.keyBuf)
			a.report.KeysDelta--
			a.report.SizeDelta -= n
		} else {
			w.batch.Put(w.keyBuf, op.Value)
			a.report.KeysDelta++
			a.report.SizeDelta += n
		}
		return true
	})
	return message.Result{}
}

// flush writes the batch and then answers: a callback never speaks of what is not in the engine, and a
// peer learns of an applied index only when a read would see it.
func (w *applyWorker) flush() error {
	for _, a := range w.touched {
		if a.truncated != a.recorded || !w.table.admit(a) {
			w.record(a)
		}
	}
	for _, a := range w.table.turn() {
		w.record(a)
	}
	w.table.put(w.batch)
	if w.batch.Len() > 0 {
		if err := w.store.engine.Write(w.batch, w.sync); err != nil {
			return fmt.Errorf("apply: %w", err)
		}
		w.store.work.applyBatches.Add(1)
		w.store.work.appliedEntries.Add(w.entries)
		w.entries = 0
	}
	w.batch.Reset()
	w.sync = false
	for _, a := range w.touched {
		report := a.report
		report.PeerID, report.Index, report.Term = a.peer.Id, a.applied, a.term
		// The first entry of a term lets the leader serve reads by its lease.
		report.Quiet = len(report.Results) == 0 && a.term == a.reportedTerm
		a.report, a.dirty, a.reportedTerm = message.Applied{}, false, a.term
		w.report(a.regionID, &report)
	}
	w.store.router.ready.push(w.woken...)
	clear(w.woken)
	w.woken = w.woken[:0]
	clear(w.touched)
	w.touched = w.touched[:0]
	w.store.inflight.Add(-w.freed)
	w.freed = 0
	for i := range w.answers {
		w.answers[i].prop.Applied(w.answers[i].res)
	}
	clear(w.answers)
	w.answers = w.answers[:0]
	return nil
}

// record writes a region's own apply state.
func (w *applyWorker) record(a *applier) {
	w.state.AppliedIndex, w.state.TruncatedState = a.applied, &a.truncated
	w.keyBuf = meta.PutApplyState(w.batch, a.regionID, &w.state, w.keyBuf)
	a.recorded = a.truncated
}

// forget ends the worker's part in a region, whose apply state says from the next flush on what the table said.
func (w *applyWorker) forget(regionID uint64) {
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

// report lays a report into the peer's mailbox.
func (w *applyWorker) report(regionID uint64, m *message.Applied) {
	b := w.store.router.get(regionID)
	if b == nil {
		return // the peer is gone
	}
	if wake, _ := w.store.router.put(b, m); wake { // refused only when the peer is going
		w.woken = append(w.woken, b)
	}
}
