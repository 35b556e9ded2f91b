package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// installBatchBytes bounds the batches in which the data of a raft snapshot goes into the engine.
const installBatchBytes = 1 << 20

// maxBuilds bounds how many raft snapshots are built at the same time.
const maxBuilds = 2

// regionRunner does what is too slow for the workers. Installations, destructions and the clearing of
// ranges are carried out one after the other by one goroutine, in the order in which they were given,
// so that a late deletion can never hit data of a newer peer (G9). Builds run beside.
type regionRunner struct {
	store      *Store
	installing atomic.Int32
	building   sync.WaitGroup
	builds     chan uint64

	mu struct {
		sync.Mutex
		cond   *sync.Cond
		jobs   []func() error
		closed bool
		// canceled marks regions whose installation is pointless: their peer is being destroyed.
		canceled map[uint64]bool
	}
}

func newRegionRunner(s *Store) *regionRunner {
	r := &regionRunner{store: s, builds: make(chan uint64, 1024)}
	r.mu.cond = sync.NewCond(&r.mu)
	r.mu.canceled = map[uint64]bool{}
	return r
}

func (r *regionRunner) run(ctx context.Context) {
	for range maxBuilds {
		r.building.Add(1)
		// Owned by run; ends with ctx.
		go func() {
			defer r.building.Done()
			for {
				select {
				case <-ctx.Done():
					return
				case id := <-r.builds:
					r.doBuild(id)
				}
			}
		}()
	}
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		r.mu.closed = true
		r.mu.Unlock()
		r.mu.cond.Broadcast()
	})
	defer stop()
	defer r.building.Wait()
	for {
		r.mu.Lock()
		for len(r.mu.jobs) == 0 && !r.mu.closed {
			r.mu.cond.Wait()
		}
		if r.mu.closed {
			r.mu.Unlock()
			return
		}
		job := r.mu.jobs[0]
		r.mu.jobs = r.mu.jobs[1:]
		r.mu.Unlock()
		if err := job(); err != nil {
			r.store.fail(fmt.Errorf("region runner: %w", err))
			return
		}
	}
}

func (r *regionRunner) add(job func() error) {
	r.mu.Lock()
	r.mu.jobs = append(r.mu.jobs, job)
	r.mu.Unlock()
	r.mu.cond.Signal()
}

// build queues the building of a raft snapshot; false if too many wait already.
func (r *regionRunner) build(regionID uint64) bool {
	select {
	case r.builds <- regionID:
		return true
	default:
		return false
	}
}

func (r *regionRunner) doBuild(regionID uint64) {
	built, err := r.store.buildSnapshot(regionID)
	switch {
	case err == nil:
	case errors.Is(err, snap.ErrBusy):
		// The disk is full, which the store has said already. Raft asks again.
		r.store.logger.Debug("no raft snapshot is built", log.RegionID(regionID), zap.Error(err))
	case errors.Is(err, errNotNow), errors.Is(err, raftlog.ErrCompacted), errors.Is(err, raftlog.ErrUnavailable),
		errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		// It passes (D7): raft asks again.
		r.store.logger.Warn("building raft snapshot failed", log.RegionID(regionID), zap.Error(err))
	default:
		// Another replica can build it.
		r.store.ReadFailed(regionID, fmt.Errorf("build raft snapshot: %w", err))
	}
	_ = r.store.Send(regionID, &message.SnapshotBuilt{Snapshot: built})
}

// errNotNow: the region is being replaced or destroyed.
var errNotNow = errors.New("raftstore: region is not in a state to be copied")

// buildSnapshot takes region, applied index and data from one engine snapshot (D1).
func (s *Store) buildSnapshot(regionID uint64) (*eraftpb.Snapshot, error) {
	view := s.engine.NewSnapshot()
	defer view.Close()
	st, err := meta.LoadRegionState(view, regionID)
	if err != nil {
		return nil, err
	}
	apply, err := meta.LoadApplyState(view, regionID, s.applierOf(regionID))
	if err != nil {
		return nil, err
	}
	if st == nil || apply == nil || st.State != rspb.PeerState_Normal || !isInitialized(st.Region) {
		return nil, errNotNow
	}
	term, err := s.log.Term(regionID, apply.AppliedIndex)
	if err != nil {
		return nil, fmt.Errorf("term of applied entry %d: %w", apply.AppliedIndex, err)
	}
	files, size, err := s.snaps.Build(view, snap.Key{RegionID: regionID, Term: term, Index: apply.AppliedIndex},
		st.Region.StartKey, st.Region.EndKey)
	if err != nil {
		return nil, err
	}
	data, err := (&rspb.RaftSnapshotData{Region: st.Region, FileSize: size, Meta: files}).Marshal()
	if err != nil {
		return nil, err
	}
	cs := confState(st.Region)
	return &eraftpb.Snapshot{
		Data:     data,
		Metadata: &eraftpb.SnapshotMetadata{ConfState: &cs, Index: apply.AppliedIndex, Term: term},
	}, nil
}

// install queues the installation of a raft snapshot whose state Applying is durable.
func (r *regionRunner) install(t *installTask) {
	r.mu.Lock()
	delete(r.mu.canceled, t.region.Id)
	r.mu.Unlock()
	r.installing.Add(1)
	r.add(func() error {
		defer r.installing.Add(-1)
		err := r.doInstall(t)
		if errors.Is(err, errCanceled) {
			return nil
		}
		if err != nil && !errors.Is(err, snap.ErrUnusable) {
			return fmt.Errorf("install raft snapshot of region %d: %w", t.region.Id, err)
		}
		_ = r.store.Send(t.region.Id, &message.SnapshotInstalled{Index: t.index, Err: err})
		return nil
	})
}

var errCanceled = errors.New("raftstore: installation canceled")

// cancel makes a queued or running installation of the region end early.
func (r *regionRunner) cancel(regionID uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.canceled[regionID] = true
}

func (r *regionRunner) isCanceled(regionID uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.canceled[regionID]
}

// doInstall clears the old and the new range, puts the data in, and makes the region Normal in one
// synced batch. A crash before that batch finds Applying and does all of it again.
func (r *regionRunner) doInstall(t *installTask) error {
	s := r.store
	key := snap.Key{RegionID: t.region.Id, Term: t.term, Index: t.index}
	// The files are verified as a whole before anything is deleted.
	if err := s.snaps.Verify(key, t.meta); err != nil {
		return err
	}
	ranges := []*metapb.Region{t.region}
	if isInitialized(t.old) {
		ranges = append(ranges, t.old)
	}
	for _, reg := range ranges {
		if err := s.clearData(reg); err != nil {
			return err
		}
	}
	b := s.engine.NewBatch()
	err := s.snaps.Read(key, t.meta, func(k, v []byte) error {
		if r.isCanceled(t.region.Id) {
			return errCanceled
		}
		if user := engine.UserKey(k); !ContainsKey(t.region, user) {
			return fmt.Errorf("%w: key %x is outside the region", snap.ErrUnusable, user)
		}
		b.Put(k, v)
		if b.Size() < installBatchBytes {
			return nil
		}
		err := s.engine.Write(b, false)
		b.Reset()
		return err
	})
	if err != nil {
		return err
	}
	meta.PutRegionState(b, rspb.PeerState_Normal, t.region, t.peer)
	meta.Put(b, meta.ApplyStateKey(t.region.Id), &rspb.RaftApplyState{
		AppliedIndex: t.index, TruncatedState: &rspb.RaftTruncatedState{Index: t.index, Term: t.term},
	})
	if err := s.engine.Write(b, true); err != nil {
		return err
	}
	s.snaps.DeleteReceived(key)
	return nil
}

// clearData deletes the data of a region's range, but only where no other region of this store lives:
// the old range of a peer may have been taken over in part (I-1, I-2).
func (s *Store) clearData(r *metapb.Region) error {
	if !isInitialized(r) {
		return nil
	}
	for _, free := range s.meta.freeRanges(r) {
		for _, cf := range engine.CFs {
			if err := engine.ClearRange(s.engine, engine.DataKey(cf, free.start), engine.DataEndKey(cf, free.end)); err != nil {
				return err
			}
		}
	}
	return nil
}

// clear queues the clearing of a range that no region of this store has. A newer peer of the region
// itself may take the range meanwhile: then its data stays.
func (r *regionRunner) clear(region *metapb.Region) {
	nobody := *region
	nobody.Id = 0
	r.add(func() error { return r.store.clearData(&nobody) })
}

// destroy removes what is left of a peer whose tombstone is durable.
func (r *regionRunner) destroy(t *destroyTask) {
	r.add(func() error {
		s := r.store
		if err := r.keepTombstone(t); err != nil {
			return err
		}
		var lb logBatch
		lb.Delete(t.region.Id)
		if err := s.log.Write(&lb, true); err != nil {
			return err
		}
		if err := s.clearData(t.data); err != nil {
			return err
		}
		b := s.engine.NewBatch()
		b.Delete(meta.ApplyStateKey(t.region.Id))
		if err := s.engine.Write(b, false); err != nil {
			return err
		}
		s.snaps.DeleteRegion(t.region.Id)
		s.peerGone(t)
		s.logger.Info("destroyed peer", log.RegionID(t.region.Id), log.PeerID(t.peer.Id))
		return nil
	})
}

// keepTombstone makes the tombstone durable again if an installation that could not be canceled in time
// has put the state Normal over it. Without that a later start would find a region without an apply
// state (G8).
func (r *regionRunner) keepTombstone(t *destroyTask) error {
	st, err := meta.LoadRegionState(r.store.engine, t.region.Id)
	if err != nil || st.GetState() == rspb.PeerState_Tombstone {
		return err
	}
	b := r.store.engine.NewBatch()
	meta.PutRegionState(b, rspb.PeerState_Tombstone, t.region, t.peer)
	return r.store.engine.Write(b, true)
}
