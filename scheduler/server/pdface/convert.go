package pdface

import (
	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/pdpb"

	own "github.com/tinykv/tinykv/proto/pkg/metapb"
	native "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// SpokenVersion is the version of TiKV whose raw protocol the stores speak. Clients choose what
// they send by it, and some of them refuse a version that they cannot parse, which a store's own
// may be.
const SpokenVersion = "8.5.0"

func request(h *pdpb.RequestHeader) *native.RequestHeader {
	return &native.RequestHeader{ClusterId: h.GetClusterId()}
}

// header translates a header. The numbers of the error types agree up to REGION_NOT_FOUND; those
// above are for stores.
func header(h *native.ResponseHeader) *pdpb.ResponseHeader {
	out := &pdpb.ResponseHeader{ClusterId: h.GetClusterId()}
	if e := h.GetError(); e != nil {
		out.Error = &pdpb.Error{Type: pdpb.ErrorType_UNKNOWN, Message: e.Message}
		if e.Type <= native.ErrorType_REGION_NOT_FOUND {
			out.Error.Type = pdpb.ErrorType(e.Type)
		}
	}
	return out
}

// Member is a member in PD's form.
func Member(m *native.Member) *pdpb.Member {
	if m == nil {
		return nil
	}
	return &pdpb.Member{
		Name: m.Name, MemberId: m.MemberId, PeerUrls: m.PeerUrls, ClientUrls: m.ClientUrls,
		LeaderPriority: m.LeaderPriority,
	}
}

func peer(p *own.Peer) *metapb.Peer {
	if p == nil {
		return nil
	}
	return &metapb.Peer{Id: p.Id, StoreId: p.StoreId, Role: metapb.PeerRole(p.Role)}
}

func peers(list []*own.Peer) []*metapb.Peer {
	out := make([]*metapb.Peer, 0, len(list))
	for _, p := range list {
		out = append(out, peer(p))
	}
	return out
}

func region(r *own.Region) *metapb.Region {
	if r == nil {
		return nil
	}
	return &metapb.Region{
		Id: r.Id, StartKey: r.StartKey, EndKey: r.EndKey, Peers: peers(r.Peers),
		RegionEpoch: &metapb.RegionEpoch{
			Version: r.GetRegionEpoch().GetVersion(),
			ConfVer: r.GetRegionEpoch().GetConfVer(),
		},
	}
}

func downPeers(list []*native.PeerStats) []*pdpb.PeerStats {
	var out []*pdpb.PeerStats
	for _, d := range list {
		out = append(out, &pdpb.PeerStats{Peer: peer(d.Peer), DownSeconds: d.DownSeconds})
	}
	return out
}

// leader is a region's leader; a message without an id where none is known, because the lists of
// old clients need one.
func leader(r *core.RegionInfo) *metapb.Peer {
	if p := r.LeaderProto(); p != nil {
		return peer(p)
	}
	return &metapb.Peer{}
}

func regionOf(r *core.RegionInfo) *pdpb.Region {
	return &pdpb.Region{
		Region: region(r.Meta()), Leader: leader(r), DownPeers: downPeers(r.DownProto()),
		PendingPeers: peers(r.PendingProto()),
	}
}

// Store is a store in PD's form.
func Store(s *own.Store) *metapb.Store {
	if s == nil {
		return nil
	}
	out := &metapb.Store{
		Id: s.Id, Address: s.Address, State: metapb.StoreState(s.State), Version: SpokenVersion,
		PeerAddress:   s.Address,
		StatusAddress: s.StatusAddress, GitHash: s.Version, StartTimestamp: s.StartTimestamp,
		LastHeartbeat: s.LastHeartbeat,
	}
	switch s.State {
	case own.StoreState_Up:
		out.NodeState = metapb.NodeState_Serving
	case own.StoreState_Offline:
		out.NodeState = metapb.NodeState_Removing
	case own.StoreState_Tombstone:
		out.NodeState = metapb.NodeState_Removed
	}
	for _, l := range s.Labels {
		out.Labels = append(out.Labels, &metapb.StoreLabel{Key: l.Key, Value: l.Value})
	}
	return out
}

func stats(s *native.StoreStats) *pdpb.StoreStats {
	if s == nil {
		return nil
	}
	return &pdpb.StoreStats{
		StoreId: s.StoreId, Capacity: s.Capacity, Available: s.Available,
		RegionCount:      s.RegionCount,
		SendingSnapCount: s.SendingSnapCount, ReceivingSnapCount: s.ReceivingSnapCount,
		StartTime:         s.StartTime,
		ApplyingSnapCount: s.ApplyingSnapCount, IsBusy: s.IsBusy, UsedSize: s.UsedSize,
		BytesWritten: s.BytesWritten,
		KeysWritten:  s.KeysWritten, BytesRead: s.BytesRead, KeysRead: s.KeysRead,
	}
}
