package offline

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Report is what a verification came to.
type Report struct {
	Regions  int      `json:"regions"`
	Entries  uint64   `json:"entries"`
	Keys     uint64   `json:"keys"`
	Bytes    uint64   `json:"bytes"`
	Problems []string `json:"problems"`
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// Verify reads everything: each block of the engine and each entry of the raft log with its
// checksums, and compares what the parts say of each other. Problems are in the report; an error
// means that the verification itself could not go on.
func (s *Store) Verify() (*Report, error) {
	rep := &Report{Problems: []string{}}
	replicas, err := s.Replicas()
	if err != nil {
		return nil, err
	}
	if s.Marker.ClusterID != s.Ident.ClusterId || s.Marker.StoreID != s.Ident.StoreId {
		rep.problem("the marker names store %d of cluster %d, the engine store %d of cluster %d",
			s.Marker.StoreID, s.Marker.ClusterID, s.Ident.StoreId, s.Ident.ClusterId)
	}
	var ranges []Replica
	for _, r := range replicas {
		if r.State == rspb.PeerState_Tombstone {
			continue
		}
		rep.Regions++
		s.verifyReplica(rep, &r)
		if len(r.Region.Peers) > 0 {
			ranges = append(ranges, r)
		}
	}
	slices.SortFunc(ranges, func(a, b Replica) int {
		return bytes.Compare(a.Region.StartKey, b.Region.StartKey)
	})
	for i := 1; i < len(ranges); i++ {
		a, b := ranges[i-1].Region, ranges[i].Region
		if len(a.EndKey) == 0 || bytes.Compare(a.EndKey, b.StartKey) > 0 {
			rep.problem("regions %d and %d overlap", a.Id, b.Id)
		}
	}
	if err := s.Keys(nil, nil, func(k UserKey) error {
		if !k.CF.HoldsExpiry() {
			rep.Keys++
		}
		rep.Bytes += uint64(len(k.Key) + k.Bytes)
		if !covered(ranges, k.Key) && len(rep.Problems) < maxProblems {
			rep.problem("key %v of column family %s lies in no region of this store",
				redact.Key(k.Key), k.CF)
		}
		return nil
	}); err != nil {
		rep.problem("reading the engine: %v", err)
	}
	return rep, nil
}

// maxProblems bounds a report.
const maxProblems = 100

// covered tells whether a key lies in one of the regions, which are sorted by their start.
func covered(ranges []Replica, key []byte) bool {
	i, found := slices.BinarySearchFunc(ranges, key, func(r Replica, key []byte) int {
		return bytes.Compare(r.Region.StartKey, key)
	})
	if !found {
		i--
	}
	return i >= 0 &&
		(len(ranges[i].Region.EndKey) == 0 || bytes.Compare(key, ranges[i].Region.EndKey) < 0)
}

func (s *Store) verifyReplica(rep *Report, r *Replica) {
	id := r.Region.Id
	if r.Damaged != "" {
		rep.problem("region %d is quarantined: %s", id, r.Damaged)
	}
	if r.LogDamage != "" {
		rep.problem("region %d: raft log: %s", id, r.LogDamage)
	}
	if len(r.Region.Peers) > 0 && r.State == rspb.PeerState_Normal {
		switch {
		case r.LastIndex < r.Applied:
			rep.problem("region %d: applied index %d, but the raft log ends at %d", id, r.Applied,
				r.LastIndex)
		case r.FirstIndex > r.Applied+1:
			rep.problem("region %d: applied index %d, but the raft log begins at %d", id, r.Applied,
				r.FirstIndex)
		}
	}
	for at := r.FirstIndex; at > 0 && at <= r.LastIndex; {
		ents, err := s.log.Entries(id, at, r.LastIndex+1, 4<<20)
		if err != nil {
			rep.problem("region %d: entry %d: %v", id, at, err)
			return
		}
		for i := range ents {
			if err := verifyEntry(&ents[i]); err != nil {
				rep.problem("region %d: entry %d: %v", id, ents[i].Index, err)
			}
		}
		rep.Entries += uint64(len(ents))
		at += uint64(len(ents))
	}
}

func verifyEntry(e *eraftpb.Entry) error {
	if len(e.Data) == 0 {
		return nil
	}
	if e.EntryType == eraftpb.EntryType_EntryConfChange {
		_, _, err := message.DecodeConfChange(e.Data)
		return err
	}
	_, err := message.DecodeEntry(e.Data)
	return err
}
