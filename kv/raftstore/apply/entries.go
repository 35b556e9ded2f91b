package apply

import (
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

func (w *Worker) applyEntries(t *Task) error {
	a := w.regions[t.RegionID]
	if a == nil || a.removed {
		w.endUnknown(t.Proposals, &regionerr.RegionNotFoundError{RegionID: t.RegionID})
		return nil
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Index <= a.applied {
			continue // covered by a raft snapshot (D5)
		}
		if e.Index != a.applied+1 {
			return fmt.Errorf("region %d: entry %d follows applied index %d", a.regionID, e.Index,
				a.applied)
		}
		w.endOverwritten(t, e)
		res, err := w.applyEntry(a, e)
		if errors.Is(err, ErrUndecodable) || errors.Is(err, ErrNoSource) {
			w.giveUp(a, e, err)
			break
		}
		if err != nil {
			return fmt.Errorf("apply entry %d of region %d: %w", e.Index, a.regionID, err)
		}
		res.Index = e.Index
		if props := t.Proposals; len(props) > 0 && props[0].Is(e.Index, e.Term) {
			w.freed += int64(props[0].Size())
			w.answers = append(w.answers, answer{a.regionID, props[0], res})
			t.Proposals = props[1:]
		}
		a.applied, a.term = e.Index, e.Term
		w.entries++
		w.touch(a)
		if w.batch.Size() >= flushBytes || w.sync {
			if err := w.flush(); err != nil {
				return err
			}
		}
		if a.removed {
			break // nothing is written for a region after the removal of its peer (C18)
		}
	}
	w.endUnknown(t.Proposals, errBehind)
	t.Proposals = nil
	return nil
}

// giveUp ends a region's part in the worker at an entry that is not the one that was committed, or
// that takes what is not here: nothing is applied from it on. The peer hands over what it leads and
// is quarantined. Stopping the store instead would stop it at each start, for one replica of which
// others have the truth.
func (w *Worker) giveUp(a *applier, e *eraftpb.Entry, err error) {
	a.removed, a.broken = true, true
	w.host.Damaged(a.regionID, fmt.Errorf("entry %d: %w", e.Index, err))
}

// errBehind is why the outcome of a proposal is not known: what this replica has applied does not
// reach it.
var errBehind = errors.New("apply: the command was not reached")

// endUnknown ends proposals whose outcome this store will not learn.
func (w *Worker) endUnknown(props []message.Proposal, cause error) {
	for i := range props {
		w.host.Release(int64(props[i].Size()))
		props[i].Unknown(cause)
	}
}

// endOverwritten ends the proposals up to an entry that are not the entry.
func (w *Worker) endOverwritten(t *Task, e *eraftpb.Entry) {
	for len(t.Proposals) > 0 {
		prop := &t.Proposals[0]
		if prop.Index() > e.Index || prop.Is(e.Index, e.Term) {
			return
		}
		w.host.Release(int64(prop.Size()))
		prop.Overwritten(e.Index, e.Term)
		t.Proposals = t.Proposals[1:]
	}
}

func (w *Worker) touch(a *applier) {
	if !a.dirty {
		a.dirty = true
		w.touched = append(w.touched, a)
	}
}

// ErrUndecodable: a committed entry does not decode. Leaders propose no such entries, so this
// replica's copy is damaged.
var ErrUndecodable = errors.New("apply: damaged entry")

// applyEntry carries out one entry. A refusal is a result: whatever a sound entry holds, every
// replica comes to the same state (F-13, H8). An error is for this replica alone, from its disk:
// the store must stop before the applied index passes the entry, or this replica would go on
// without its effect.
func (w *Worker) applyEntry(a *applier, e *eraftpb.Entry) (message.Result, error) {
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
		return message.Result{}, fmt.Errorf("%w: %w", ErrUndecodable, err)
	}
	if cmd.Admin != nil {
		return w.applyAdmin(a, e, &cmd)
	}
	if a.merging != nil {
		return message.Result{Err: w.frozen(a)}, nil
	}
	if !regions.EpochMatches(a.region, cmd.Header.RegionEpoch, true, false) {
		return message.Result{Err: w.epochNotMatch(a)}, nil
	}
	if cmd.Conditional != nil {
		return w.applyConditional(a, &cmd)
	}
	return w.applyWrite(a, &cmd), nil
}

// CheckEntry tells whether an entry decodes when it is applied.
func CheckEntry(e *eraftpb.Entry) error {
	switch e.GetEntryType() {
	case eraftpb.EntryType_EntryConfChange:
		_, _, err := decodeConfChange(e.Data)
		return err
	case eraftpb.EntryType_EntryNormal:
	default:
		return fmt.Errorf("%w: entry type %d", ErrUndecodable, e.EntryType)
	}
	cmd, err := message.DecodeEntry(e.Data)
	if err == nil && cmd.Admin != nil {
		err = new(raft_cmdpb.AdminRequest).Unmarshal(cmd.Admin)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUndecodable, err)
	}
	return nil
}

func (w *Worker) epochNotMatch(a *applier) error {
	return &regionerr.EpochNotMatchError{RegionID: a.regionID, Regions: w.host.Neighbours(a.region)}
}

// applyWrite carries out puts and deletes: all of them, or none if one is refused.
func (w *Worker) applyWrite(a *applier, cmd *message.Entry) message.Result {
	var refused error
	cmd.VisitOps(func(op message.Op) bool {
		if _, err := engine.ParseCF(string(op.CF)); err != nil {
			refused = &regionerr.InvalidError{Reason: err.Error()}
		} else {
			refused = regions.CheckKey(a.region, op.Key)
		}
		if refused == nil && op.Life.TTL > 0 && a.region.ExpiryFloor == 0 {
			refused = errNotExpiring
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
		w.live(a, cf, op.Key, op.Life)
		return true
	})
	return message.Result{}
}
