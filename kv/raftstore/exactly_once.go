package raftstore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// A client sends a write again when it does not know what became of the attempt before. The write
// must still happen at most once, and the client must learn what became of it. The entry of a write
// holds its identity, so the region's log is the record of what was done; no state is replicated
// for it (docs/exactly-once.md).
//
// Every attempt carries a position: an index of the region's log that was committed before the
// attempt was made. An entry of an attempt therefore has a larger index than the positions of that
// attempt and of those before it.
//
//   - A retry names the regions and positions of all attempts of unknown outcome (its origins). The
//     leader notes it, waits until everything in its log is applied, its own term's first entry
//     included, and looks for the identity in the log behind the origin. Found: the answer is
//     success. Not found: no attempt before can commit any more, and the retry is proposed. The log
//     does not reach back to the origin: the answer is "undetermined".
//   - An attempt that comes after a newer one of the same write is refused. The leader knows the
//     newer one from its note, if that came in its own term. Else the attempt's position lies below
//     the floor and it is refused for that.
//
// Why "not found" is final: an entry that can still commit is in the log of a leader, or is
// proposed by it later, or by a leader of a later term. In this leader's log it would have been
// found. This leader refuses the attempt from the note on. A later leader either has the retry's
// entry in its log, and the attempt's position lies below its floor; or the retry's entry is lost
// and can not commit, and then one of the two entries commits at most.
//
// Invariant: while peer leads in onceState.term, every retry of the term whose entry has an index
// above floor is in newest. So an attempt whose position is at floor or above is late exactly if
// newest says so.

// onceState is a peer's part in it. Only leaders use more than versions and ancestors.
type onceState struct {
	p *peer
	// term is the term of leadership that floor and newest belong to.
	term  uint64
	floor uint64
	// newest is the newest attempt at each write of which a retry has come, order the same by age.
	newest map[message.WriteID]uint32
	order  []message.WriteID
	held   []heldWrite
	own    *writeIndex
	// versions are the region's since this peer knows it, with the index behind which each holds;
	// never empty.
	versions  []message.VersionMark
	ancestors []message.Ancestor
	marks     logMarks
	// appended are the bytes of entries since this peer began.
	appended uint64
	// recent is nil while the region gets no large entries.
	recent *message.RecentWrites
}

// heldWrite waits until an index is applied.
type heldWrite struct {
	write *message.Write
	term  uint64
}

const (
	// maxNewest bounds the retried writes that a leader keeps in mind. Forgetting one raises the
	// floor.
	maxNewest = 4096
	// maxAncestors bounds the regions whose logs are searched besides the own one.
	maxAncestors = 8
	// maxSearchEntries and maxSearchBytes bound what is read of a log for retries. Beyond, they are
	// undetermined.
	maxSearchEntries = 1 << 17
	maxSearchBytes   = 64 << 20
	// largeEntry is the size from which on an entry has the peer remember what it appends.
	largeEntry = 1 << 20
	// recentFor is how long what is appended is remembered after the last large entry.
	recentFor = 5 * time.Minute
	// backfill bounds the bytes of entries that are read from the log when the memory begins, and
	// backfillEntries their number.
	backfill        = 1 << 20
	backfillEntries = 64
)

// begin begins the history of versions at what is applied.
func (o *onceState) begin() {
	o.versions = []message.VersionMark{
		{Index: o.p.appliedIndex, Version: o.p.region().GetRegionEpoch().GetVersion()},
	}
	o.own, o.recent = nil, nil
}

// noteVersion records a split of this region.
func (o *onceState) noteVersion(index, version uint64) {
	if n := len(o.versions); n >= 64 {
		// entries before the first mark are judged with less certainty
		o.versions = slices.Delete(o.versions, 0, n/2)
	}
	o.versions = append(o.versions, message.VersionMark{Index: index, Version: version})
}

// heirs are the ancestors of a region that the split at index creates.
func (o *onceState) heirs(regionID, index uint64) []message.Ancestor {
	all := append(slices.Clone(o.ancestors), message.Ancestor{
		RegionID: regionID, SplitIndex: index, Versions: slices.Clone(o.versions),
		Recent: o.recent.Clone(),
	})
	return all[max(0, len(all)-maxAncestors):]
}

// beginTerm starts a term of leadership. Retries of earlier terms are in the log up to the floor,
// not in newest.
func (o *onceState) beginTerm() {
	if o.term == o.p.rn.Term() {
		return
	}
	o.term, o.floor = o.p.rn.Term(), o.p.rn.LastIndex()
	clear(o.newest)
	o.order, o.own = nil, nil
}

// raiseFloor has first attempts from before an index come again with a newer position. A replica
// that is added has no log from before its raft snapshot: if it leads later, it could not tell what
// became of them.
func (o *onceState) raiseFloor(index uint64) { o.floor = max(o.floor, index) }

// admit decides whether a write that its leader could propose now may be proposed with regard to
// its identity. False: it is held or answered.
func (o *onceState) admit(w *message.Write) bool {
	id := &w.Identity
	if id.ID == (message.WriteID{}) {
		return true
	}
	o.beginTerm()
	noted := w.NotedTerm == o.term
	if newest, known := o.newest[id.ID]; known &&
		(id.Attempt < newest || id.Attempt == newest && !noted) {
		o.p.refuseWrite(w, &regionerr.BusyError{Reason: "a later attempt at this write has come"})
		return false
	}
	switch {
	case len(id.Origins) > 0:
		if !noted {
			o.p.flushWrites() // what has come before is in the log
			o.noteRetry(w)
			w.HeldUntil = o.p.rn.LastIndex()
		}
		return o.hold(w)
	case id.Position >= o.floor:
		return true
	case o.p.appliedIndex >= o.floor:
		o.p.refuseWrite(w,
			&regionerr.StalePositionError{RegionID: o.p.regionID, Position: o.p.appliedIndex})
		return false
	}
	w.HeldUntil = o.floor // no position that is new enough is committed yet
	return o.hold(w)
}

// noteRetry remembers that earlier attempts at a write come too late from now on.
func (o *onceState) noteRetry(w *message.Write) {
	id := &w.Identity
	if o.newest == nil {
		o.newest = map[message.WriteID]uint32{}
	}
	if _, known := o.newest[id.ID]; !known {
		o.order = append(o.order, id.ID)
	}
	o.newest[id.ID], w.NotedTerm = id.Attempt, o.term
	if len(o.order) > maxNewest {
		// An attempt at a forgotten write was made at a position below what is in the log now.
		n := len(o.order) / 4
		for _, old := range o.order[:n] {
			delete(o.newest, old)
		}
		o.order = slices.Delete(o.order, 0, n)
		o.floor = o.p.rn.LastIndex()
	}
}

// hold keeps a write until HeldUntil is applied. True: it is, and the write may be proposed.
func (o *onceState) hold(w *message.Write) bool {
	if o.p.appliedIndex >= w.HeldUntil {
		return o.settle(w)
	}
	if len(o.held) >= o.p.store.cfg.Raftstore.MaxPendingPerRegion {
		o.p.refuseWrite(w,
			&regionerr.BusyError{Reason: "too many retried writes wait for this region"})
		return false
	}
	o.held = append(o.held, heldWrite{write: w, term: o.term})
	return false
}

// resume goes on with the writes whose wait has ended: because what they wait for is applied,
// because this peer does not lead any more, or because their time is up.
func (o *onceState) resume() {
	if len(o.held) == 0 {
		return
	}
	held := o.held
	o.held = nil
	now := o.p.store.clock.Now()
	for _, h := range held {
		late := !h.write.Deadline.IsZero() && now.After(h.write.Deadline)
		if !late && o.p.isLeader() && h.term == o.p.rn.Term() &&
			o.p.appliedIndex < h.write.HeldUntil {
			o.held = append(o.held, h)
			continue
		}
		o.p.onWrite(h.write)
	}
}

// settle answers a retry whose earlier attempt is in the log. True: there is none, and the retry
// may be proposed.
func (o *onceState) settle(w *message.Write) bool {
	if len(w.Identity.Origins) == 0 {
		o.p.refuseWrite(w,
			&regionerr.StalePositionError{RegionID: o.p.regionID, Position: o.p.appliedIndex})
		return false
	}
	found, err := o.search(&w.Identity)
	switch {
	case err != nil:
		o.p.store.work.retriesUndetermined.Add(1)
		o.p.refuseWrite(w,
			&regionerr.UndeterminedError{RegionID: o.p.regionID, Reason: err.Error()})
		return false
	case found:
		o.p.store.work.retriesFound.Add(1)
		o.p.store.inflight.Add(-int64(len(w.Payload)))
		res := message.Result{Index: o.p.appliedIndex}
		if w.Conditional != nil {
			res.Answer = w.Conditional.IfDone
		}
		w.Callback.Done(res)
		return false
	}
	o.p.store.work.retriesProposed.Add(1)
	return true
}

// search tells whether an attempt at a write was carried out. An error says that it can not be
// known.
func (o *onceState) search(id *message.Identity) (bool, error) {
	for _, origin := range id.Origins {
		f, err := o.fateSince(origin, id.ID)
		if err != nil {
			return false, err
		}
		//exhaustive:enforce
		switch f {
		case fateDone:
			return true, nil
		case fateForgotten:
			return false,
				errors.New(
					"whether it swapped is not known: it was applied before the store started, or too long ago")
		case fateUncertain:
			return false,
				errors.New(
					"it was made under an earlier version of the region, and the store has restarted since")
		case fateNone:
		}
	}
	return false, nil
}

// fateSince is what became of a write since an origin.
func (o *onceState) fateSince(origin message.Origin, id message.WriteID) (fate, error) {
	if origin.RegionID == o.p.regionID && o.recent.Covers(origin.Position, o.p.appliedIndex) {
		return fateIn(o.recent, id, origin.Position, o.p.appliedIndex, o.versions,
			&o.p.store.swaps), nil
	}
	for _, a := range o.ancestors {
		if a.RegionID == origin.RegionID && a.Recent.Covers(origin.Position, a.SplitIndex) {
			return fateIn(a.Recent, id, origin.Position, a.SplitIndex, a.Versions,
				&o.p.store.swaps), nil
		}
	}
	x, upTo, err := o.indexFor(origin)
	if err != nil {
		return fateNone, err
	}
	if err := x.extend(o.p.store.log, upTo); err != nil {
		o.p.logger.Warn("cannot search the log for a write", log.RegionID(x.regionID),
			zap.Error(err))
		return fateNone, err
	}
	x.used = o.p.store.clock.Now()
	return x.fates[id], nil
}

// indexFor finds the index of the writes behind an origin, and up to where it has to reach.
func (o *onceState) indexFor(origin message.Origin) (x *writeIndex, upTo uint64, err error) {
	if origin.RegionID == o.p.regionID {
		if o.own == nil || origin.Position < o.own.from {
			o.own = newWriteIndex(o.p.regionID, origin.Position, nil, &o.p.store.swaps)
		}
		o.own.versions = o.versions
		return o.own, o.p.appliedIndex, nil
	}
	for _, a := range o.ancestors {
		if a.RegionID == origin.RegionID {
			return newWriteIndex(a.RegionID, origin.Position, a.Versions, &o.p.store.swaps),
				a.SplitIndex, nil
		}
	}
	return nil, 0,
		fmt.Errorf("it went to region %d, of which this replica has no log", origin.RegionID)
}

// drop gives up the writes that are held: they are not proposed.
func (o *onceState) drop(err error) {
	for _, h := range o.held {
		o.p.refuseWrite(h.write, err)
	}
	o.held = nil
}

// tick marks the growth of the log and lets an index that nobody asks for go.
func (o *onceState) tick(now time.Time) {
	cfg := &o.p.store.cfg.Raftstore
	o.marks.note(now, o.p.appliedIndex, o.appended)
	o.floor = max(o.floor,
		o.marks.recent(now, o.appended, cfg.LogGCKeep.Duration/2, uint64(cfg.LogGCSizeLimit)/4))
	if o.own != nil && now.Sub(o.own.used) > 2*time.Second {
		o.own = nil
	}
	for i := range o.ancestors {
		if a := &o.ancestors[i]; a.Recent != nil && now.Sub(a.Recent.Large) > recentFor {
			a.Recent = nil
		}
	}
}

// noteAppended records the entries that are appended to the region's log, at leaders and followers.
func (o *onceState) noteAppended(ents []eraftpb.Entry) {
	large := false
	for i := range ents {
		o.appended += uint64(len(ents[i].Data)) + 32
		large = large || len(ents[i].Data) >= largeEntry
	}
	if o.recent == nil && !large {
		return
	}
	now := o.p.store.clock.Now()
	switch {
	case o.recent == nil:
		o.recent = o.beginRecent(ents[0].Index)
	case !large && now.Sub(o.recent.Large) > recentFor:
		o.recent = nil
		return
	}
	if large {
		o.recent.Large = now
	}
	for i := range ents {
		if !o.recent.Add(&ents[i]) {
			o.recent = nil
			return
		}
	}
}

// beginRecent begins the memory before an entry, with what can cheaply be read of the log before
// that.
func (o *onceState) beginRecent(next uint64) *message.RecentWrites {
	r := message.NewRecentWrites(next - 1)
	st, ok := o.p.store.log.State(o.p.regionID)
	if !ok || st.First >= next {
		return r
	}
	lo := max(st.First, next-min(next, backfillEntries))
	ents, err := o.p.store.log.Entries(o.p.regionID, lo, next, backfill)
	if err != nil || len(ents) == 0 || ents[len(ents)-1].Index != next-1 {
		return r // shorter, and complete all the same
	}
	filled := message.NewRecentWrites(lo - 1)
	for i := range ents {
		if !filled.Add(&ents[i]) {
			return r
		}
	}
	return filled
}

// fateIn is what became of a write in (from, to], which r covers.
func fateIn(
	r *message.RecentWrites, id message.WriteID, from, to uint64, versions []message.VersionMark, swaps *apply.Swaps,
) fate {
	out := fateNone
	r.Visit(id, from, to, func(index, version uint64, decided bool) {
		if f := fateOf(versions, index, version); f != fateNone {
			out = max(out, outcome(decided, swaps, id, f))
		}
	})
	return out
}

// fate is what became of a write whose identity is in a log.
type fate uint8

const (
	fateNone      fate = iota
	fateForgotten      // it was applied, and whether it swapped is not known
	fateUncertain      // whether it was refused when it was applied is not known
	fateDone
)

// writeIndex holds the identities of the writes in (from, to] of a region's log that were carried
// out.
type writeIndex struct {
	regionID uint64
	from, to uint64
	bytes    uint64
	fates    map[message.WriteID]fate
	versions []message.VersionMark
	swaps    *apply.Swaps
	used     time.Time
}

func newWriteIndex(
	regionID, from uint64, versions []message.VersionMark, swaps *apply.Swaps,
) *writeIndex {
	return &writeIndex{
		regionID: regionID, from: from, to: from, fates: map[message.WriteID]fate{},
		versions: versions, swaps: swaps,
	}
}

// extend reads the log up to an index, all of which is applied.
func (x *writeIndex) extend(l *raftlog.Log, upTo uint64) error {
	st, ok := l.State(x.regionID)
	switch damage := l.Damaged(x.regionID); {
	case !ok:
		return fmt.Errorf("there is no log of region %d", x.regionID)
	case damage != nil:
		return fmt.Errorf("the log of region %d is damaged: %w", x.regionID, damage)
	case x.to < st.TruncatedIndex:
		return fmt.Errorf("the log of region %d begins at %d, the write was sent at %d", x.regionID,
			st.First, x.from)
	case upTo > x.from+maxSearchEntries:
		return fmt.Errorf("%d entries came since then", upTo-x.from)
	}
	for x.to < upTo {
		ents, err := l.Entries(x.regionID, x.to+1, upTo+1, 1<<20)
		if err != nil {
			return fmt.Errorf("read the log of region %d: %w", x.regionID, err)
		}
		for i := range ents {
			x.bytes += uint64(len(ents[i].Data))
			if err := x.add(&ents[i]); err != nil {
				return err
			}
		}
		if x.bytes > maxSearchBytes {
			return fmt.Errorf("%d bytes came since then", x.bytes)
		}
	}
	return nil
}

func (x *writeIndex) add(e *eraftpb.Entry) error {
	x.to = e.Index
	if e.EntryType != eraftpb.EntryType_EntryNormal || len(e.Data) == 0 {
		return nil
	}
	cmd, err := message.DecodeEntry(e.Data)
	if err != nil {
		return fmt.Errorf("entry %d of region %d: %w", e.Index, x.regionID, err)
	}
	fate := fateOf(x.versions, e.Index, cmd.Header.GetRegionEpoch().GetVersion())
	if cmd.Admin == nil && fate != fateNone {
		cmd.VisitIDs(func(id message.WriteID) {
			x.fates[id] = max(x.fates[id], outcome(cmd.IsSwap(), x.swaps, id, fate))
		})
	}
	return nil
}

// outcome is the fate of a write whose entry had a fate. A compare-and-swap that was applied and
// found another value has changed nothing: the retry may be decided anew.
func outcome(swap bool, swaps *apply.Swaps, id message.WriteID, f fate) fate {
	if !swap || f != fateDone {
		return f
	}
	switch swapped, known := swaps.Of(id); {
	case swapped:
		return fateDone
	case known:
		return fateNone
	}
	return fateForgotten
}

// fateOf tells whether an entry that was proposed under a version was carried out. A region's
// version only grows, and the leader that proposed the entry had applied that version. So an entry
// from before the first mark was carried out if its version is the one of the mark.
func fateOf(versions []message.VersionMark, index, version uint64) fate {
	at := len(versions) - 1
	for at > 0 && versions[at].Index >= index {
		at--
	}
	switch mark := versions[at]; {
	case version == mark.Version:
		return fateDone
	case mark.Index >= index && version < mark.Version:
		return fateUncertain
	}
	return fateNone
}

// logMarks remember how a region's log has grown, for about the time that log GC leaves.
type logMarks struct{ marks []logMark }

type logMark struct {
	at       time.Time
	index    uint64
	appended uint64
}

const (
	maxLogMarks     = 64
	logMarkInterval = 250 * time.Millisecond
)

// note adds a mark if the last one is old enough.
func (m *logMarks) note(now time.Time, index, appended uint64) {
	if n := len(m.marks); n > 0 &&
		(now.Sub(m.marks[n-1].at) < logMarkInterval || m.marks[n-1].index >= index) {
		return
	}
	if len(m.marks) >= maxLogMarks {
		m.marks = slices.Delete(m.marks, 0, maxLogMarks/4)
	}
	m.marks = append(m.marks, logMark{now, index, appended})
}

// recent is the index behind which the log is younger than age and smaller than size; 0 if all that
// is known is.
func (m *logMarks) recent(now time.Time, appended uint64, age time.Duration, size uint64) uint64 {
	index := uint64(0)
	for _, k := range m.marks {
		if now.Sub(k.at) < age && appended-k.appended <= size {
			break
		}
		index = k.index
	}
	return index
}
