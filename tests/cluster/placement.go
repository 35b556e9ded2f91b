package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// Placement is a placement service in memory: ids, a region map fed by heartbeats under the epoch
// rules, and orders given by the test instead of by a planner. It is only reachable while On.
type Placement struct {
	mu      sync.Mutex
	nextID  uint64
	off     bool
	refused int
	regions map[uint64]*heard
	orders  map[uint64]*order
	nodes   func(storeID uint64) *Node
	stats   map[uint64]*schedulerpb.StoreStats // the last store heartbeat of each store
	Splits  int
	tso     struct {
		sync.Mutex
		physical, logical int64
	}
	safe struct {
		sync.Mutex
		txn, gc uint64
	}
}

type heard struct {
	meta    *metapb.Region
	leader  *metapb.Peer
	pending []*metapb.Peer
	term    uint64
}

// order is the answer to each of the region's heartbeats until done returns true.
type order struct {
	resp schedulerpb.RegionHeartbeatResponse
	done func(*heard) bool
}

var errPlacementOff = errors.New("placement service is off")

func newPlacement(nodes func(uint64) *Node) *Placement {
	return &Placement{
		nextID: 1000, regions: map[uint64]*heard{}, orders: map[uint64]*order{}, nodes: nodes,
		stats: map[uint64]*schedulerpb.StoreStats{},
	}
}

// SetOff makes every call fail, as if the service were unreachable.
func (p *Placement) SetOff(off bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = off
}

// RefusedSplits is how many requests for a split came while every call failed.
func (p *Placement) RefusedSplits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// AllocID returns a fresh id.
func (p *Placement) AllocID() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nextID++
	return p.nextID
}

// AskSplit implements raftstore.Placement.
func (p *Placement) AskSplit(
	_ context.Context, region *metapb.Region,
) (*schedulerpb.AskSplitResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		p.refused++
		return nil, errPlacementOff
	}
	p.nextID++
	resp := &schedulerpb.AskSplitResponse{NewRegionId: p.nextID}
	for range region.Peers {
		p.nextID++
		resp.NewPeerIds = append(resp.NewPeerIds, p.nextID)
	}
	return resp, nil
}

// ReportSplit implements raftstore.Placement.
func (p *Placement) ReportSplit(_ context.Context, left, right *metapb.Region) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Splits++
	return nil
}

// StoreHeartbeat implements raftstore.Placement.
func (p *Placement) StoreHeartbeat(_ context.Context, stats *schedulerpb.StoreStats) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return errPlacementOff
	}
	p.stats[stats.StoreId] = stats
	return nil
}

// Stats is the last store heartbeat of a store, nil before the first one.
func (p *Placement) Stats(storeID uint64) *schedulerpb.StoreStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats[storeID]
}

// RegionByID implements raftstore.Placement.
func (p *Placement) RegionByID(_ context.Context, id uint64) (*metapb.Region, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return nil, errPlacementOff
	}
	if h := p.regions[id]; h != nil {
		return h.meta, nil
	}
	return nil, nil
}

func overlap(a, b *metapb.Region) bool {
	return (len(b.EndKey) == 0 || bytes.Compare(a.StartKey, b.EndKey) < 0) &&
		(len(a.EndKey) == 0 || bytes.Compare(b.StartKey, a.EndKey) < 0)
}

// RegionHeartbeat implements raftstore.Placement.
func (p *Placement) RegionHeartbeat(req *schedulerpb.RegionHeartbeatRequest) {
	p.mu.Lock()
	if p.off {
		p.mu.Unlock()
		return
	}
	resp := p.process(req)
	p.mu.Unlock()
	if resp != nil {
		if n := p.nodes(req.Leader.StoreId); n != nil {
			n.handleOperator(resp)
		}
	}
}

func (p *Placement) process(
	req *schedulerpb.RegionHeartbeatRequest,
) *schedulerpb.RegionHeartbeatResponse {
	r := req.Region
	e := r.RegionEpoch
	if old := p.regions[r.Id]; old != nil {
		oe := old.meta.RegionEpoch
		if e.Version < oe.Version || e.ConfVer < oe.ConfVer || (*e == *oe && req.Term < old.term) {
			return nil
		}
	}
	for id, o := range p.regions {
		if id != r.Id && overlap(o.meta, r) && e.Version < o.meta.RegionEpoch.Version {
			return nil
		}
	}
	for id, o := range p.regions {
		if id != r.Id && overlap(o.meta, r) {
			delete(p.regions, id)
		}
	}
	h := &heard{meta: r, leader: req.Leader, pending: req.PendingPeers, term: req.Term}
	p.regions[r.Id] = h
	o := p.orders[r.Id]
	if o == nil {
		return nil
	}
	if o.done(h) {
		delete(p.orders, r.Id)
		return nil
	}
	resp := o.resp
	resp.RegionId, resp.RegionEpoch, resp.TargetPeer = r.Id, r.RegionEpoch, req.Leader
	return &resp
}

// Region returns what is known of a region; nil if nothing.
func (p *Placement) Region(id uint64) *metapb.Region {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.regions[id]; h != nil {
		return h.meta
	}
	return nil
}

// Leader returns the leader of a region as last heard.
func (p *Placement) Leader(id uint64) *metapb.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.regions[id]; h != nil {
		return h.leader
	}
	return nil
}

// All returns all known regions in key order.
func (p *Placement) All() []*metapb.Region {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*metapb.Region
	for _, h := range p.regions {
		out = append(out, h.meta)
	}
	sort.Slice(out, func(i, j int) bool {
		return bytes.Compare(out[i].StartKey, out[j].StartKey) < 0
	})
	return out
}

// Order makes the region's leader change a peer until that is so. A newer order replaces an older
// one.
func (p *Placement) orderChange(regionID uint64, kind eraftpb.ConfChangeType, peer *metapb.Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := kind != eraftpb.ConfChangeType_RemoveNode
	p.orders[regionID] = &order{
		resp: schedulerpb.RegionHeartbeatResponse{
			ChangePeer: &schedulerpb.ChangePeer{Peer: peer, ChangeType: kind},
		},
		done: func(h *heard) bool {
			if want {
				for _, q := range h.pending {
					if q.Id == peer.Id {
						return false
					}
				}
			}
			return hasPeer(h.meta, peer.Id) == want
		},
	}
}

// orderTransfer makes the region's leader hand over to a peer.
func (p *Placement) orderTransfer(regionID uint64, peer *metapb.Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.orders[regionID] = &order{
		resp: schedulerpb.RegionHeartbeatResponse{
			TransferLeader: &schedulerpb.TransferLeader{Peer: peer},
		},
		done: func(h *heard) bool { return h.leader.Id == peer.Id || !hasPeer(h.meta, peer.Id) },
	}
}

// pendingOrder tells whether an order for the region is still being carried out.
func (p *Placement) pendingOrder(regionID uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.orders[regionID] != nil
}

func hasPeer(r *metapb.Region, id uint64) bool {
	for _, q := range r.Peers {
		if q.Id == id {
			return true
		}
	}
	return false
}

// GetRegion implements kv/client.Placement.
func (p *Placement) GetRegion(_ context.Context, key []byte) (*client.Region, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return nil, errPlacementOff
	}
	for _, h := range p.regions {
		if bytes.Compare(key, h.meta.StartKey) >= 0 &&
			(len(h.meta.EndKey) == 0 || bytes.Compare(key, h.meta.EndKey) < 0) {
			return &client.Region{Meta: h.meta, Leader: h.leader}, nil
		}
	}
	return nil, nil
}

// GetStore implements kv/client.Placement.
func (p *Placement) GetStore(_ context.Context, id uint64) (*metapb.Store, error) {
	return &metapb.Store{Id: id, Address: fmt.Sprintf("store-%d", id)}, nil
}

// ScanRegions implements kv/client.Placement.
func (p *Placement) ScanRegions(context.Context, []byte, []byte, int) ([]*client.Region, error) {
	return nil, errors.New("not needed")
}
