// Package pdhttp has the answers of PD's HTTP interface in the form that PD's tools know: the names
// and the order of the fields, sizes and durations as text. It only converts; package server finds
// out what to say.
package pdhttp

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/pingcap/kvproto/pkg/metapb"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/pdface"
)

// Version is the release of PD whose interface this is, as PD writes it.
const Version = "v" + pdface.SpokenVersion

// Size is a number of bytes, written as in 1.5GiB.
type Size uint64

// MarshalJSON writes four digits and a unit.
func (s Size) MarshalJSON() ([]byte, error) {
	n, units := float64(s), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for n >= 1024 && len(units) > 1 {
		n, units = n/1024, units[1:]
	}
	return json.Marshal(fmt.Sprintf("%.4g%s", n, units[0]))
}

// Duration is written as in 1h2m3s.
type Duration time.Duration

// MarshalJSON writes it as Go does.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// Store is a store with its state.
type Store struct {
	Store  MetaStore   `json:"store"`
	Status StoreStatus `json:"status"`
}

// MetaStore is a store's description.
type MetaStore struct {
	*metapb.Store
	StateName string `json:"state_name"`
}

// StoreStatus is what is known of how a store fares.
type StoreStatus struct {
	Capacity           Size       `json:"capacity"`
	Available          Size       `json:"available"`
	UsedSize           Size       `json:"used_size"`
	LeaderCount        int        `json:"leader_count"`
	LeaderWeight       float64    `json:"leader_weight"`
	LeaderScore        float64    `json:"leader_score"`
	LeaderSize         int64      `json:"leader_size"`
	RegionCount        int        `json:"region_count"`
	RegionWeight       float64    `json:"region_weight"`
	RegionScore        float64    `json:"region_score"`
	RegionSize         int64      `json:"region_size"`
	PendingPeerCount   int        `json:"pending_peer_count,omitempty"`
	SendingSnapCount   uint32     `json:"sending_snap_count,omitempty"`
	ReceivingSnapCount uint32     `json:"receiving_snap_count,omitempty"`
	IsBusy             bool       `json:"is_busy,omitempty"`
	StartTS            *time.Time `json:"start_ts,omitempty"`
	LastHeartbeatTS    *time.Time `json:"last_heartbeat_ts,omitempty"`
	Uptime             *Duration  `json:"uptime,omitempty"`
}

// Stores is a list.
type Stores struct {
	Count  int     `json:"count"`
	Stores []Store `json:"stores"`
}

// StateName is PD's word for a state.
func StateName(state string) string {
	if state == "" {
		return ""
	}
	return strings.ToUpper(state[:1]) + state[1:]
}

// StoreOf shows a store. state is up, disconnected, down, offline or tombstone; score is what
// balancing makes equal.
func StoreOf(st *core.StoreInfo, state string, score float64) Store {
	c := st.Counts()
	weight := st.Weight()
	out := Store{
		Store: MetaStore{pdface.Store(st.Meta()), StateName(state)},
		Status: StoreStatus{
			Capacity: Size(st.Capacity()), Available: Size(st.Available()),
			UsedSize:    Size(st.Stats().GetUsedSize()),
			LeaderCount: c.LeaderCount, LeaderWeight: st.LeaderWeight(),
			LeaderScore: float64(c.LeaderCount), LeaderSize: c.LeaderSize,
			RegionCount: c.RegionCount, RegionWeight: weight, RegionScore: score,
			RegionSize:       c.RegionSize,
			PendingPeerCount: c.PendingCount, SendingSnapCount: st.Stats().GetSendingSnapCount(),
			ReceivingSnapCount: st.Stats().GetReceivingSnapCount(), IsBusy: st.IsBusy(),
		},
	}
	if ts := st.Meta().GetStartTimestamp(); ts != 0 {
		began := time.Unix(ts, 0).UTC()
		out.Status.StartTS = &began
	}
	if st.Stats() == nil {
		return out
	}
	last := st.LastHeartbeat().UTC()
	out.Status.LastHeartbeatTS, out.Store.LastHeartbeat = &last, last.UnixNano()
	if began := out.Status.StartTS; began != nil && last.After(*began) {
		up := Duration(last.Sub(*began))
		out.Status.Uptime = &up
	}
	return out
}

// Peer is a replica with its role in words.
type Peer struct {
	*metapb.Peer
	RoleName  string `json:"role_name"`
	IsLearner bool   `json:"is_learner,omitempty"`
}

// DownPeer is a replica that does not answer its leader.
type DownPeer struct {
	Peer        Peer   `json:"peer"`
	DownSeconds uint64 `json:"down_seconds"`
}

// Region is a region; its keys are in hexadecimal capitals.
type Region struct {
	ID              uint64              `json:"id"`
	StartKey        string              `json:"start_key"`
	EndKey          string              `json:"end_key"`
	Epoch           *metapb.RegionEpoch `json:"epoch,omitempty"`
	Peers           []Peer              `json:"peers,omitempty"`
	Leader          *Peer               `json:"leader,omitempty"`
	DownPeers       []DownPeer          `json:"down_peers,omitempty"`
	PendingPeers    []Peer              `json:"pending_peers,omitempty"`
	CPUUsage        uint64              `json:"cpu_usage"`
	WrittenBytes    uint64              `json:"written_bytes"`
	ReadBytes       uint64              `json:"read_bytes"`
	WrittenKeys     uint64              `json:"written_keys"`
	ReadKeys        uint64              `json:"read_keys"`
	ApproximateSize int64               `json:"approximate_size"` // MiB
	ApproximateKeys int64               `json:"approximate_keys"`
}

func peerOf(p core.Peer) Peer {
	out := Peer{Peer: &metapb.Peer{Id: p.ID, StoreId: p.StoreID}, RoleName: "Voter"}
	if p.Learner {
		out.Peer.Role, out.RoleName, out.IsLearner = metapb.PeerRole_Learner, "Learner", true
	}
	return out
}

func hexKey(key []byte) string { return strings.ToUpper(hex.EncodeToString(key)) }

// RegionOf shows a region.
func RegionOf(r *core.RegionInfo) Region {
	flow := r.Flow()
	out := Region{
		ID: r.ID(), StartKey: hexKey(r.StartKey()), EndKey: hexKey(r.EndKey()),
		Epoch:        &metapb.RegionEpoch{Version: r.Version(), ConfVer: r.ConfVer()},
		WrittenBytes: flow.BytesWritten, ReadBytes: flow.BytesRead, WrittenKeys: flow.KeysWritten,
		ReadKeys:        flow.KeysRead,
		ApproximateSize: r.Size(), ApproximateKeys: r.Keys(),
	}
	for _, p := range r.Peers() {
		out.Peers = append(out.Peers, peerOf(p))
		if r.IsPending(p.ID) {
			out.PendingPeers = append(out.PendingPeers, peerOf(p))
		}
	}
	for _, d := range r.DownPeers() {
		if p, ok := r.PeerByID(d.PeerID); ok {
			out.DownPeers = append(out.DownPeers, DownPeer{Peer: peerOf(p), DownSeconds: d.Seconds})
		}
	}
	if p, ok := r.Leader(); ok {
		leader := peerOf(p)
		out.Leader = &leader
	}
	return out
}

// Health is whether a member answers.
type Health struct {
	Name       string   `json:"name"`
	MemberID   uint64   `json:"member_id"`
	ClientUrls []string `json:"client_urls"`
	Health     bool     `json:"health"`
}

// Status is what a member says of itself.
type Status struct {
	BuildTS        string `json:"build_ts"`
	Version        string `json:"version"`
	GitHash        string `json:"git_hash"`
	StartTimestamp int64  `json:"start_timestamp"`
}

// ClusterStatus says whether the cluster has begun.
type ClusterStatus struct {
	RaftBootstrapTime time.Time `json:"raft_bootstrap_time,omitzero"`
	IsInitialized     bool      `json:"is_initialized"`
	ReplicationStatus string    `json:"replication_status"`
}

// Replication is PD's section of that name; it writes lists and truths as text.
type Replication struct {
	MaxReplicas          uint64 `json:"max-replicas"`
	LocationLabels       string `json:"location-labels"`
	StrictlyMatchLabel   string `json:"strictly-match-label"`
	EnablePlacementRules string `json:"enable-placement-rules"`
	IsolationLevel       string `json:"isolation-level"`
}

// Config is the part of PD's configuration that there is here. Schedule has the names of this
// program; most are PD's.
type Config struct {
	ClientUrls          string      `json:"client-urls"`
	PeerUrls            string      `json:"peer-urls"`
	AdvertiseClientUrls string      `json:"advertise-client-urls"`
	AdvertisePeerUrls   string      `json:"advertise-peer-urls"`
	Name                string      `json:"name"`
	Lease               int64       `json:"lease"`
	Schedule            any         `json:"schedule"`
	Replication         Replication `json:"replication"`
	ClusterVersion      string      `json:"cluster-version"`
}
