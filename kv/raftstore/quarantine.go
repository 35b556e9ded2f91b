package raftstore

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// A replica in quarantine is on disk and takes no part: it does not vote, does not count as having its entries, and
// serves nothing. Its data may be the last copy, so it is not deleted. It got there because a start or a read found damage,
// because its log ends before what it had acknowledged, or because the store runs on an older copy of its data.
//
// The store reports its damaged peers with each heartbeat, and the placement service replaces them. What is left here
// goes once the region's members say that the peer is none any more: by a message of a newer peer, or by what the
// placement service knows of the region.
type quarantine struct {
	mu struct {
		sync.Mutex
		regions map[uint64]damagedReplica
	}
}

type damagedReplica struct {
	peer   *metapb.Peer
	region *metapb.Region
	reason error
}

// maxTruthQuestions bounds how many regions the placement service is asked about after one store heartbeat.
const maxTruthQuestions = 64

// errOldCopy: the whole store runs on data that is older than what it had promised.
var errOldCopy = errors.New("raftstore: the data of this store is an older copy than what the store had promised")

func (q *quarantine) add(region *metapb.Region, peer *metapb.Peer, reason error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.regions == nil {
		q.mu.regions = map[uint64]damagedReplica{}
	}
	q.mu.regions[region.Id] = damagedReplica{peer, region, reason}
}

func (q *quarantine) remove(regionID uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.mu.regions, regionID)
}

// peers are the ids of the damaged peers, in rising order.
func (q *quarantine) peers() []uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	var ids []uint64
	for _, d := range q.mu.regions {
		ids = append(ids, d.peer.Id)
	}
	slices.Sort(ids)
	return ids
}

// ids are the regions of the damaged replicas, in rising order.
func (q *quarantine) ids() []uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Sorted(maps.Keys(q.mu.regions))
}

// some are at most n of the damaged replicas.
func (q *quarantine) some(n int) []damagedReplica {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]damagedReplica, 0, min(n, len(q.mu.regions)))
	for _, d := range q.mu.regions {
		if len(out) == n {
			break
		}
		out = append(out, d)
	}
	return out
}

// Quarantined lists damaged replicas that are not served, with the reason.
func (s *Store) Quarantined() map[uint64]string {
	s.quarantine.mu.Lock()
	defer s.quarantine.mu.Unlock()
	if len(s.quarantine.mu.regions) == 0 {
		return nil
	}
	out := map[uint64]string{}
	for id, d := range s.quarantine.mu.regions {
		out[id] = d.reason.Error()
	}
	return out
}

// reportQuarantine adds the damaged peers to a store heartbeat.
func (s *Store) reportQuarantine(stats *schedulerpb.StoreStats) {
	stats.DamagedPeerIds = s.quarantine.peers()
}

// releaseQuarantine asks the placement service whether damaged replicas still belong to their regions. One that does not
// is destroyed as if a member of its region had told so.
func (s *Store) releaseQuarantine(ctx context.Context) {
	for _, d := range s.quarantine.some(maxTruthQuestions) {
		truth, err := s.placement.RegionByID(ctx, d.region.Id)
		if err != nil {
			if ctx.Err() == nil {
				s.logger.Debug("asking for the region of a damaged replica failed", log.RegionID(d.region.Id), zap.Error(err))
			}
			return
		}
		if truth.GetRegionEpoch().GetConfVer() <= d.region.GetRegionEpoch().GetConfVer() ||
			peerByID(truth, d.peer.Id) != nil || len(truth.GetPeers()) == 0 {
			continue
		}
		_ = s.sendStore(storeRaft{gcMessage(s.clusterID, truth.Id, truth.RegionEpoch, truth.Peers[0], d.peer)}) // or again after the next heartbeat
	}
}
