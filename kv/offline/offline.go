// Package offline works on the data directory of a store that does not run: it shows what is in it,
// verifies all of it, and carries out a plan of package recovery.
//
// Opening the directory locks it and does what a start does to the engine and the raft log: a torn
// tail that was never synced is cut. Nothing else is changed, but by Apply.
package offline

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/engines"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Store is an opened directory. Not safe for concurrent use.
type Store struct {
	Marker node.Marker
	Ident  rspb.StoreIdent

	dir    *node.DataDir
	engine engine.Engine
	log    *raftlog.Log
}

// Open opens the directory of a store that has joined a cluster. The caller closes it.
func Open(path string, logger *zap.Logger) (s *Store, err error) {
	if _, err := os.Stat(filepath.Join(path, "tinykv.toml")); err != nil {
		return nil, fmt.Errorf("%s is not the data directory of a store: %w", path, err)
	}
	s = &Store{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	if s.dir, err = node.OpenDataDir(path); err != nil {
		return s, err
	}
	marker, err := s.dir.ReadMarker()
	if err != nil {
		return s, err
	}
	if marker == nil {
		return s, fmt.Errorf("%s is not the data directory of a store", path)
	}
	if err := marker.CheckFeatures(path, feature.Supported); err != nil {
		return s, err
	}
	s.Marker = *marker
	if s.engine, err = engines.Open(marker.Engine,
		engine.Options{Dir: s.dir.Sub("kv"), Logger: logger}); err != nil {
		return s, fmt.Errorf("open engine in %s: %w", s.dir.Sub("kv"), err)
	}
	found, err := meta.Load(s.engine, meta.StoreIdentKey, &s.Ident)
	if err != nil {
		return s, err
	}
	if !found {
		return s, fmt.Errorf("%s has not joined a cluster yet", path)
	}
	if s.log, err = raftlog.Open(s.dir.Sub("raft"),
		raftlog.Options{Manual: true, Logger: logger}); err != nil {
		return s, fmt.Errorf("open raft log in %s: %w", s.dir.Sub("raft"), err)
	}
	return s, nil
}

// Close gives the directory free.
func (s *Store) Close() error {
	var errs []error
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	return errors.Join(errs...)
}

// Replica is what the directory has of a region.
type Replica struct {
	State   rspb.PeerState `json:"-"`
	Status  string         `json:"state"`
	Region  *metapb.Region `json:"region"`
	Peer    *metapb.Peer   `json:"peer"`
	Damaged string         `json:"damaged,omitempty"`
	Applied uint64         `json:"applied_index"`
	// Term, Vote and Commit are the hard state.
	Term       uint64 `json:"term"`
	Vote       uint64 `json:"vote"`
	Commit     uint64 `json:"commit_index"`
	FirstIndex uint64 `json:"first_index"`
	LastIndex  uint64 `json:"last_index"`
	LastTerm   uint64 `json:"last_term"`
	// LogDamage is what is wrong with the region's raft log.
	LogDamage string `json:"log_damage,omitempty"`
}

// Replicas lists all regions that the directory knows, tombstones too, by id.
func (s *Store) Replicas() ([]Replica, error) {
	applied, err := s.applied()
	if err != nil {
		return nil, err
	}
	snap := s.engine.NewSnapshot()
	defer snap.Close()
	var out []Replica
	err = meta.VisitRegionStates(snap, func(st *rspb.RegionLocalState) error {
		r := Replica{
			State: st.State, Status: st.State.String(), Region: st.Region, Peer: st.Peer,
			Damaged: st.Damaged,
		}
		rec, err := meta.LoadApplyRecord(snap, st.Region.Id)
		if err != nil {
			return fmt.Errorf("region %d: %w", st.Region.Id, err)
		}
		r.Applied = max(rec.GetAppliedIndex(), applied[st.Region.Id])
		if ls, ok := s.log.State(st.Region.Id); ok {
			r.Term, r.Vote, r.Commit = ls.HardState.Term, ls.HardState.Vote, ls.HardState.Commit
			r.FirstIndex, r.LastIndex, r.LastTerm = ls.First, ls.Last, ls.LastTerm
		}
		if damage := s.log.Damaged(st.Region.Id); damage != nil {
			r.LogDamage = damage.Error()
		}
		out = append(out, r)
		return nil
	})
	slices.SortFunc(out, func(a, b Replica) int { return int(a.Region.Id) - int(b.Region.Id) })
	return out, err
}

// applied are the applied indexes in the apply workers' tables.
func (s *Store) applied() (map[uint64]uint64, error) {
	snap := s.engine.NewSnapshot()
	defer snap.Close()
	out := map[uint64]uint64{}
	it := snap.NewIterator(meta.AppliedTableMinKey, meta.AppliedTableMaxKey)
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		if err := meta.VisitApplied(it.Value(), func(region, index uint64) error {
			out[region] = max(out[region], index)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return out, it.Err()
}

// Entries returns entries [from, to) of a region's raft log, at most about 16 MiB of them; to = 0
// means up to the end.
func (s *Store) Entries(regionID, from, to uint64) ([]eraftpb.Entry, error) {
	st, ok := s.log.State(regionID)
	if !ok {
		return nil, fmt.Errorf("there is no raft log of region %d", regionID)
	}
	from = max(from, st.First)
	if to == 0 || to > st.Last+1 {
		to = st.Last + 1
	}
	return s.log.Entries(regionID, from, to, 16<<20)
}

// UserKey is a key of users with what its value looks like: its size in bytes and its CRC-32C, by
// which the values of two replicas are compared. Key is valid until visit returns.
type UserKey struct {
	CF    engine.CF
	Key   []byte
	Bytes int
	Sum   uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Keys visits the user keys of [start, end) in key order, one column family after the other.
func (s *Store) Keys(start, end []byte, visit func(UserKey) error) error {
	snap := s.engine.NewSnapshot()
	defer snap.Close()
	for _, cf := range engine.AllCFs {
		if err := visitCF(snap, cf, start, end, visit); err != nil {
			return err
		}
	}
	return nil
}

func visitCF(
	snap engine.Snapshot, cf engine.CF, start, end []byte, visit func(UserKey) error,
) error {
	it := snap.NewIterator(engine.DataKey(cf, start), engine.DataEndKey(cf, end))
	defer it.Close()
	prefix := len(engine.DataKey(cf, nil))
	for it.First(); it.Valid(); it.Next() {
		if err := visit(UserKey{
			cf, it.Key()[prefix:], len(it.Value()), crc32.Checksum(it.Value(), castagnoli),
		}); err != nil {
			return err
		}
	}
	return it.Err()
}
