package cluster

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// CheckConsistency waits until the healed cluster has come to rest and verifies what must then
// hold: the newest regions tile the key space; every region has a leader and all its replicas at
// one applied index with the same data; no store has data outside its regions, or a peer that its
// region does not know.
func (c *Cluster) CheckConsistency() {
	c.t.Helper()
	c.Eventually(30*time.Second, c.findFault)
}

func (c *Cluster) findFault() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	replicas := map[uint64]map[uint64]raftstore.PeerInfo{} // region -> store -> peer
	leaders := map[uint64]raftstore.PeerInfo{}
	for _, n := range c.Nodes() {
		s := n.Store()
		if s == nil {
			continue
		}
		infos, err := s.Peers(ctx)
		if err != nil {
			return fmt.Sprintf("store %d: %v", n.ID, err)
		}
		for _, info := range infos {
			id := info.Region.Id
			if replicas[id] == nil {
				replicas[id] = map[uint64]raftstore.PeerInfo{}
			}
			replicas[id][n.ID] = info
			if l, ok := leaders[id]; info.IsLeader && (!ok || info.Term > l.Term) {
				leaders[id] = info
			}
		}
	}
	var regions []*metapb.Region
	for id := range replicas {
		l, ok := leaders[id]
		if !ok {
			return fmt.Sprintf("region %d has no leader: %v", id, replicas[id])
		}
		regions = append(regions, l.Region)
	}
	if f := checkTiling(regions); f != "" {
		return f
	}
	for id, l := range leaders {
		if f := c.checkReplicas(id, l, replicas[id]); f != "" {
			return f
		}
	}
	for _, n := range c.Nodes() {
		if n.Store() != nil {
			if f := checkForeign(n); f != "" {
				return f
			}
		}
	}
	return ""
}

func checkTiling(regions []*metapb.Region) string {
	byStart := map[string]*metapb.Region{}
	for _, r := range regions {
		if o := byStart[string(r.StartKey)]; o != nil {
			return fmt.Sprintf("regions %d and %d both begin at %q", o.Id, r.Id, r.StartKey)
		}
		byStart[string(r.StartKey)] = r
	}
	at := ""
	for seen := 0; ; {
		r := byStart[at]
		if r == nil {
			return fmt.Sprintf("no region begins at %q", at)
		}
		if seen++; len(r.EndKey) == 0 {
			if seen != len(regions) {
				return fmt.Sprintf("%d of %d regions tile the key space", seen, len(regions))
			}
			return ""
		}
		at = string(r.EndKey)
	}
}

func (c *Cluster) checkReplicas(
	id uint64, leader raftstore.PeerInfo, have map[uint64]raftstore.PeerInfo,
) string {
	var hash uint64
	for i, p := range leader.Region.Peers {
		info, ok := have[p.StoreId]
		switch {
		case !ok:
			n := c.node(p.StoreId)
			st, _ := meta.LoadRegionState(n.Engine(), id)
			damage := ""
			if s := n.Store(); s != nil {
				damage = s.Quarantined()[id]
			}
			return fmt.Sprintf(
				"region %d: no peer on store %d (damage: %q); leader %+v; the store has %v", id,
				p.StoreId, damage, leader, st)
		case info.Peer.Id != p.Id:
			return fmt.Sprintf("region %d: store %d has peer %d, not %d", id, p.StoreId,
				info.Peer.Id, p.Id)
		case info.Installing || info.AppliedIndex != leader.AppliedIndex ||
			info.CommitIndex != leader.CommitIndex:
			return fmt.Sprintf("region %d: store %d has applied %d, the leader %d", id, p.StoreId,
				info.AppliedIndex, leader.AppliedIndex)
		case *info.Region.RegionEpoch != *leader.Region.RegionEpoch:
			return fmt.Sprintf("region %d: store %d is at epoch %v, the leader at %v", id,
				p.StoreId, info.Region.RegionEpoch, leader.Region.RegionEpoch)
		}
		h := hashRange(c.node(p.StoreId).Engine(), leader.Region)
		if i > 0 && h != hash {
			return fmt.Sprintf("region %d: store %d has other data than store %d at index %d", id,
				p.StoreId, leader.Region.Peers[0].StoreId, info.AppliedIndex)
		}
		hash = h
	}
	for store, info := range have {
		if regions.PeerOnStore(leader.Region, store) == nil {
			return fmt.Sprintf("region %d: zombie peer %d on store %d", id, info.Peer.Id, store)
		}
	}
	return ""
}

// hashRange hashes a region's pairs of all column families.
func hashRange(e engine.Engine, r *metapb.Region) uint64 {
	h := fnv.New64a()
	snap := e.NewSnapshot()
	defer snap.Close()
	for _, cf := range engine.AllCFs {
		it := snap.NewIterator(engine.DataKey(cf, r.StartKey), engine.DataEndKey(cf, r.EndKey))
		for it.First(); it.Valid(); it.Next() {
			fmt.Fprintf(h, "%d:%s%d:%s", len(it.Key()), it.Key(), len(it.Value()), it.Value())
		}
		it.Close()
	}
	return h.Sum64()
}

// checkForeign finds data outside the ranges of a store's regions.
func checkForeign(n *Node) string {
	s := n.Store()
	if s == nil {
		return ""
	}
	own := s.Regions()
	snap := n.Engine().NewSnapshot()
	defer snap.Close()
	for _, cf := range engine.AllCFs {
		it := snap.NewIterator(engine.DataKey(cf, nil), engine.DataEndKey(cf, nil))
		defer it.Close()
		for it.First(); it.Valid(); it.Next() {
			user, owned := engine.UserKey(it.Key()), false
			for _, r := range own {
				owned = owned || regions.Contains(r, user)
			}
			if !owned {
				return fmt.Sprintf("store %d has key %q, which is in none of its regions", n.ID,
					bytes.Clone(user))
			}
			if cf.HoldsExpiry() && !hasValue(snap, cf, user) {
				return fmt.Sprintf("store %d has an expiry time of %q, which has no value", n.ID,
					bytes.Clone(user))
			}
		}
	}
	return ""
}

// hasValue tells whether the key of an expiry time exists.
func hasValue(snap engine.Snapshot, times engine.CF, key []byte) bool {
	for _, cf := range engine.CFs {
		if cf.Expiry() == times {
			_, found, err := snap.Get(engine.DataKey(cf, key))
			return found && err == nil
		}
	}
	return false
}

// OnStore returns the region's peer on a store; nil if there is none or no region.
func OnStore(r *metapb.Region, store uint64) *metapb.Peer { return regions.PeerOnStore(r, store) }

// PeerOf returns a store's peer of a region, nil if it has none.
func PeerOf(c *Cluster, store, region uint64) *raftstore.PeerInfo {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s := c.node(store).Store()
	if s == nil {
		return nil
	}
	info, err := s.Peer(ctx, region)
	if err != nil {
		return nil
	}
	return &info
}

// RawPutWith sends a put made for a given version of a region to that region's leader.
func RawPutWith(c *Cluster, r *metapb.Region, key, value []byte) *errorpb.Error {
	c.t.Helper()
	return RawPutOn(c, c.WaitLeader(r.Id).ID, r, key, value)
}

// RawPutOn is RawPutWith, sent to a store of which nothing is asked before.
func RawPutOn(c *Cluster, store uint64, r *metapb.Region, key, value []byte) *errorpb.Error {
	s := &stub{c: c, id: store}
	resp, err := s.RawPut(context.Background(), &kvrpcpb.RawPutRequest{
		Context: &kvrpcpb.Context{
			RegionId: r.Id, RegionEpoch: r.RegionEpoch, Peer: regions.PeerOnStore(r, store),
		},
		Key: key, Value: value,
	})
	if err != nil {
		c.t.Errorf("put: %v", err)
		return nil
	}
	return resp.RegionError
}

// Requests sends one request of each kind with a given context to a store and returns the region
// errors. A message without a region error is returned as one.
func Requests(
	ctx context.Context, t testing.TB, c *Cluster, store uint64, kctx *kvrpcpb.Context, key []byte,
) (get, put, del, scan *errorpb.Error) {
	t.Helper()
	s := &stub{c: c, id: store}
	fold := func(e *errorpb.Error, msg string, err error) *errorpb.Error {
		require.NoError(t, err)
		if e == nil && msg != "" {
			e = &errorpb.Error{Message: msg}
		}
		return e
	}
	g, err := s.RawGet(ctx, &kvrpcpb.RawGetRequest{Context: kctx, Key: key})
	get = fold(g.GetRegionError(), g.GetError(), err)
	p, err := s.RawPut(ctx, &kvrpcpb.RawPutRequest{Context: kctx, Key: key, Value: []byte("wrong")})
	put = fold(p.GetRegionError(), p.GetError(), err)
	d, err := s.RawDelete(ctx, &kvrpcpb.RawDeleteRequest{Context: kctx, Key: key})
	del = fold(d.GetRegionError(), d.GetError(), err)
	sc, err := s.RawScan(ctx, &kvrpcpb.RawScanRequest{Context: kctx, StartKey: key, Limit: 1})
	scan = fold(sc.GetRegionError(), sc.GetError(), err)
	return get, put, del, scan
}

// GetFrom asks one store.
func GetFrom(
	ctx context.Context, c *Cluster, store uint64, kctx *kvrpcpb.Context, key []byte,
) ([]byte, *errorpb.Error, error) {
	resp, err := (&stub{c: c, id: store}).RawGet(ctx,
		&kvrpcpb.RawGetRequest{Context: kctx, Key: key})
	if err != nil {
		return nil, nil, err
	}
	return resp.Value, resp.RegionError, nil
}
