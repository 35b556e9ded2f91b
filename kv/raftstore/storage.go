package raftstore

import (
	"errors"
	"math"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// peerStorage is what raft reads of a region: its log, its membership, and raft snapshots, which
// are built off the worker. Owned by the worker that holds the peer.
type peerStorage struct {
	store    *Store
	regionID uint64
	region   *metapb.Region
	// truncated is the last entry that the replicated log compaction removed. The raft log may
	// still hold it; raft must not depend on that.
	truncated rspb.RaftTruncatedState

	// readErr is an error that raft met here, which tries again; the peer takes it (sickness.tend).
	readErr error

	building bool
	// built is a raft snapshot ready to be sent, once.
	built *eraftpb.Snapshot
}

var _ raft.Storage = (*peerStorage)(nil)

// InitialState implements raft.Storage.
func (ps *peerStorage) InitialState() (eraftpb.HardState, eraftpb.ConfState, error) {
	st, _ := ps.store.log.State(ps.regionID)
	return st.HardState, confState(ps.region), nil
}

func confState(r *metapb.Region) eraftpb.ConfState {
	var cs eraftpb.ConfState
	for _, p := range r.GetPeers() {
		if regions.IsLearner(p) {
			cs.Learners = append(cs.Learners, p.Id)
		} else {
			cs.Nodes = append(cs.Nodes, p.Id)
		}
	}
	return cs
}

func mapLogError(err error) error {
	switch {
	case errors.Is(err, raftlog.ErrCompacted):
		return raft.ErrCompacted
	case errors.Is(err, raftlog.ErrUnavailable):
		return raft.ErrUnavailable
	}
	return err
}

// Entries implements raft.Storage.
func (ps *peerStorage) Entries(lo, hi uint64) ([]eraftpb.Entry, error) {
	return ps.EntriesLimited(lo, hi, math.MaxUint64)
}

// EntriesLimited returns entries of [lo, hi) up to about maxBytes, at least one.
func (ps *peerStorage) EntriesLimited(lo, hi, maxBytes uint64) ([]eraftpb.Entry, error) {
	ents, err := ps.store.log.Entries(ps.regionID, lo, hi, maxBytes)
	if err == nil {
		return ents, nil
	}
	if err = mapLogError(err); !errors.Is(err, raft.ErrCompacted) &&
		!errors.Is(err, raft.ErrUnavailable) {
		ps.readErr = err
	}
	return nil, err
}

// Term implements raft.Storage.
func (ps *peerStorage) Term(i uint64) (uint64, error) {
	if i == 0 {
		return 0, nil
	}
	t, err := ps.store.log.Term(ps.regionID, i)
	return t, mapLogError(err)
}

// LastIndex implements raft.Storage.
func (ps *peerStorage) LastIndex() (uint64, error) {
	st, _ := ps.store.log.State(ps.regionID)
	return st.Last, nil
}

// FirstIndex implements raft.Storage.
func (ps *peerStorage) FirstIndex() (uint64, error) {
	st, ok := ps.store.log.State(ps.regionID)
	if !ok {
		return 1, nil
	}
	return max(st.First, 1), nil
}
