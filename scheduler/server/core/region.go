package core

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// Peer is one replica of a region, as a value.
type Peer struct {
	ID, StoreID uint64
	Learner     bool
}

// ToProto returns the wire form.
func (p Peer) ToProto() *metapb.Peer {
	m := &metapb.Peer{Id: p.ID, StoreId: p.StoreID}
	if p.Learner {
		m.Role = metapb.PeerRole_Learner
	}
	return m
}

func peerFromProto(p *metapb.Peer) Peer {
	return Peer{
		ID: p.GetId(), StoreID: p.GetStoreId(), Learner: p.GetRole() == metapb.PeerRole_Learner,
	}
}

// DownPeer is a peer that does not answer its leader.
type DownPeer struct {
	PeerID  uint64
	Seconds uint64
}

// Source says where a record came from. Only a heartbeat confirms a region: records of the other
// sources serve routing, but nothing is moved on their word.
type Source uint8

// The sources of a region record.
const (
	SourceHeartbeat Source = iota
	SourceSync             // copied from the placement leader
	SourceFile             // read from the snapshot file
	SourceReport           // bootstrap or split report
)

// Flow is what a region read and wrote in its last heartbeat interval.
type Flow struct {
	BytesWritten, BytesRead, KeysWritten, KeysRead uint64
}

// RegionInfo is what is known about one region.
//
// Immutable once published. Invariant: leader is -1 or an index into peers; bit i of pending is
// about peers[i]; what fits lies in peerBuf and keyBuf, so that a look at any of a million regions
// waits for one place in memory instead of three.
type RegionInfo struct {
	id, version, confVer uint64
	start, end           []byte
	peers                []Peer
	term                 uint64
	extra                *extra // nil for most regions
	pending              uint32
	keys                 uint32 // saturates
	size                 int32  // MiB, at least 1
	leader               int8
	source               Source
	measured             bool // size and keys are no guess
	peerBuf              [3]Peer
	keyBuf               [56]byte
}

// extra is what few regions have. Kept apart, it costs the others nothing: a record is 256 bytes.
type extra struct {
	down []DownPeer
	flow Flow
}

// down returns the peers that do not answer.
func (r *RegionInfo) down() []DownPeer {
	if r.extra == nil {
		return nil
	}
	return r.extra.down
}

// setExtra replaces the rare part.
func (r *RegionInfo) setExtra(down []DownPeer, flow Flow) {
	r.extra = nil
	if len(down) > 0 || flow != (Flow{}) {
		r.extra = &extra{down, flow}
	}
}

// RegionOption changes a copy of a region.
type RegionOption func(*RegionInfo)

// NewRegion makes a region of a meta, with the leader (nil if unknown).
func NewRegion(meta *metapb.Region, leader *metapb.Peer, opts ...RegionOption) *RegionInfo {
	r := &RegionInfo{
		id:      meta.GetId(),
		version: meta.GetRegionEpoch().GetVersion(),
		confVer: meta.GetRegionEpoch().GetConfVer(),
		size:    1,
	}
	r.start, r.end = meta.GetStartKey(), meta.GetEndKey()
	r.peers = r.peerBuf[:0]
	for _, p := range meta.GetPeers() {
		if p != nil {
			r.peers = append(r.peers, peerFromProto(p))
		}
	}
	r.leader = r.indexOf(leader)
	for _, o := range opts {
		o(r)
	}
	if len(r.start)+len(r.end) > len(r.keyBuf) {
		both := slices.Concat(r.start, r.end) // the message they came in need not be kept
		n := len(r.start)
		r.start, r.end = both[:n:n], both[n:]
	}
	r.pack()
	return r
}

// pack brings peers and keys that are another record's or a message's into the record itself, if
// they fit.
func (r *RegionInfo) pack() {
	if n := len(r.peers); n <= len(r.peerBuf) {
		copy(r.peerBuf[:], r.peers)
		r.peers = r.peerBuf[:n:n]
	}
	if n, all := len(r.start), len(r.start)+len(r.end); all <= len(r.keyBuf) {
		copy(r.keyBuf[:], r.start)
		copy(r.keyBuf[n:], r.end)
		r.start, r.end = r.keyBuf[:n:n], r.keyBuf[n:all:all]
	}
}

// RegionFromHeartbeat converts a heartbeat. Sizes are kept in MiB, at least one, so that empty
// regions still count in balancing.
func RegionFromHeartbeat(hb *schedulerpb.RegionHeartbeatRequest) *RegionInfo {
	r := NewRegion(hb.GetRegion(), hb.GetLeader())
	r.size = sizeMiB(hb.GetApproximateSize())
	r.keys = saturate(hb.GetApproximateKeys())
	r.measured = hb.GetSizeMeasured()
	r.term = hb.GetTerm()
	for _, p := range hb.GetPendingPeers() {
		if i := r.indexOf(p); i >= 0 {
			r.pending |= 1 << uint(i)
		}
	}
	var down []DownPeer
	for _, d := range hb.GetDownPeers() {
		if r.indexOf(d.GetPeer()) >= 0 {
			down = append(down, DownPeer{PeerID: d.GetPeer().GetId(), Seconds: d.GetDownSeconds()})
		}
	}
	r.setExtra(down, Flow{
		BytesWritten: hb.BytesWritten, BytesRead: hb.BytesRead, KeysWritten: hb.KeysWritten,
		KeysRead: hb.KeysRead,
	})
	return r
}

func saturate(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }

func sizeMiB(bytes uint64) int32 {
	return int32(max(1, min(bytes>>20, 1<<30)))
}

// Clone returns a changed copy.
func (r *RegionInfo) Clone(opts ...RegionOption) *RegionInfo {
	c := *r
	for _, o := range opts {
		o(&c)
	}
	c.pack()
	return &c
}

// WithSource marks where the record came from.
func WithSource(s Source) RegionOption { return func(r *RegionInfo) { r.source = s } }

// WithSize sets the approximate size in MiB.
func WithSize(mib int64) RegionOption { return func(r *RegionInfo) { r.size = int32(max(1, mib)) } }

// WithMeasured sets keys and says that they and the size are no guess.
func WithMeasured(keys uint64) RegionOption {
	return func(r *RegionInfo) { r.keys, r.measured = saturate(keys), true }
}

// WithTerm sets the raft term of the report.
func WithTerm(t uint64) RegionOption { return func(r *RegionInfo) { r.term = t } }

// WithPending marks peers as still catching up.
func WithPending(peerIDs ...uint64) RegionOption {
	return func(r *RegionInfo) {
		r.pending = 0
		for i, p := range r.peers {
			for _, id := range peerIDs {
				if p.ID == id {
					r.pending |= 1 << uint(i)
				}
			}
		}
	}
}

// WithDown sets the peers that do not answer.
func WithDown(down ...DownPeer) RegionOption {
	return func(r *RegionInfo) { r.setExtra(down, r.Flow()) }
}

// WithLeaderStore makes the peer on that store the leader; 0 means none is known.
func WithLeaderStore(storeID uint64) RegionOption {
	return func(r *RegionInfo) {
		r.leader = -1
		for i, p := range r.peers {
			if p.StoreID == storeID {
				r.leader = int8(i)
			}
		}
	}
}

// WithPeers replaces the peers, keeping the leader if it is still one of them.
func WithPeers(peers ...Peer) RegionOption {
	return func(r *RegionInfo) {
		leader, ok := r.Leader()
		r.peers, r.pending, r.leader = peers, 0, -1
		if ok {
			r.leader = r.indexOf(leader.ToProto())
		}
	}
}

// WithEpoch sets the epoch.
func WithEpoch(version, confVer uint64) RegionOption {
	return func(r *RegionInfo) { r.version, r.confVer = version, confVer }
}

// WithRange sets the key range [start, end).
func WithRange(start, end []byte) RegionOption {
	return func(r *RegionInfo) { r.start, r.end = start, end }
}

// indexOf finds a peer by id, or by store if the id is not given.
func (r *RegionInfo) indexOf(p *metapb.Peer) int8 {
	if p == nil {
		return -1
	}
	for i := range r.peers {
		if r.peers[i].ID == p.Id && (p.Id != 0 || r.peers[i].StoreID == p.StoreId) {
			return int8(i)
		}
	}
	return -1
}

// ID returns the region's id.
func (r *RegionInfo) ID() uint64 { return r.id }

// Version grows by splits.
func (r *RegionInfo) Version() uint64 { return r.version }

// ConfVer grows by membership changes.
func (r *RegionInfo) ConfVer() uint64 { return r.confVer }

// Term is the raft term of the last report, 0 if unknown.
func (r *RegionInfo) Term() uint64 { return r.term }

// StartKey is the inclusive start of the range.
func (r *RegionInfo) StartKey() []byte { return r.start }

// EndKey is the exclusive end of the range; empty means +inf.
func (r *RegionInfo) EndKey() []byte { return r.end }

// Peers returns all peers. Callers must not change the slice.
func (r *RegionInfo) Peers() []Peer { return r.peers }

// Size is the approximate size in MiB, at least 1.
func (r *RegionInfo) Size() int64 { return int64(r.size) }

// Keys is the approximate number of keys.
func (r *RegionInfo) Keys() int64 { return int64(r.keys) }

// Measured tells whether the leader has measured size and keys. A leader that has just begun, or
// whose range has just changed, reports what may be far too little.
func (r *RegionInfo) Measured() bool { return r.measured }

// DownPeers returns the peers that do not answer their leader.
func (r *RegionInfo) DownPeers() []DownPeer { return r.down() }

// Flow returns reads and writes of the last interval.
func (r *RegionInfo) Flow() Flow {
	if r.extra == nil {
		return Flow{}
	}
	return r.extra.flow
}

// Source says who reported this record.
func (r *RegionInfo) Source() Source { return r.source }

// Confirmed is true if a leader told us itself.
func (r *RegionInfo) Confirmed() bool { return r.source == SourceHeartbeat && r.leader >= 0 }

// Leader returns the leader, if one is known.
func (r *RegionInfo) Leader() (Peer, bool) {
	if r.leader < 0 {
		return Peer{}, false
	}
	return r.peers[r.leader], true
}

// LeaderStore returns the leader's store, 0 if unknown.
func (r *RegionInfo) LeaderStore() uint64 {
	if r.leader < 0 {
		return 0
	}
	return r.peers[r.leader].StoreID
}

// StorePeer returns the peer on a store.
func (r *RegionInfo) StorePeer(storeID uint64) (Peer, bool) {
	for _, p := range r.peers {
		if p.StoreID == storeID {
			return p, true
		}
	}
	return Peer{}, false
}

// PeerByID returns the peer with that id.
func (r *RegionInfo) PeerByID(id uint64) (Peer, bool) {
	for _, p := range r.peers {
		if p.ID == id {
			return p, true
		}
	}
	return Peer{}, false
}

// IsPending is true while the peer of that id is still catching up.
func (r *RegionInfo) IsPending(peerID uint64) bool {
	for i, p := range r.peers {
		if p.ID == peerID {
			return r.pending&(1<<uint(i)) != 0
		}
	}
	return false
}

// HasPending is true while any peer is catching up.
func (r *RegionInfo) HasPending() bool { return r.pending != 0 }

// IsDown tells whether the leader reports the peer as not answering.
func (r *RegionInfo) IsDown(peerID uint64) bool {
	for _, d := range r.down() {
		if d.PeerID == peerID {
			return true
		}
	}
	return false
}

// Followers returns the voters that do not lead.
func (r *RegionInfo) Followers() []Peer {
	out := make([]Peer, 0, len(r.peers))
	for i, p := range r.peers {
		if int8(i) != r.leader && !p.Learner {
			out = append(out, p)
		}
	}
	return out
}

// Voters returns the number of peers that vote.
func (r *RegionInfo) Voters() int {
	n := 0
	for _, p := range r.peers {
		if !p.Learner {
			n++
		}
	}
	return n
}

// Contains tells whether the key lies in [start, end).
func (r *RegionInfo) Contains(key []byte) bool {
	return bytes.Compare(r.start, key) <= 0 && (len(r.end) == 0 || bytes.Compare(key, r.end) < 0)
}

// CutBy tells whether a split at the key would leave two parts: it lies inside, and not at the
// start.
func (r *RegionInfo) CutBy(key []byte) bool { return r.Contains(key) && !bytes.Equal(r.start, key) }

// Epoch returns the wire form of the epoch.
func (r *RegionInfo) Epoch() *metapb.RegionEpoch {
	return &metapb.RegionEpoch{Version: r.version, ConfVer: r.confVer}
}

// wire is a region's wire form in one piece: lookups are answered by the ten thousand, and six
// small allocations each would be most of their cost.
type wire struct {
	region metapb.Region
	epoch  metapb.RegionEpoch
	peers  [3]metapb.Peer
	list   [3]*metapb.Peer
}

// Meta returns the wire form of the region.
func (r *RegionInfo) Meta() *metapb.Region {
	w := &wire{epoch: metapb.RegionEpoch{Version: r.version, ConfVer: r.confVer}}
	w.region = metapb.Region{
		Id: r.id, StartKey: r.start, EndKey: r.end, RegionEpoch: &w.epoch, Peers: w.list[:0],
	}
	for i, p := range r.peers {
		if i >= len(w.peers) {
			w.region.Peers = append(w.region.Peers, p.ToProto())
			continue
		}
		w.peers[i] = *p.ToProto()
		w.region.Peers = append(w.region.Peers, &w.peers[i])
	}
	return &w.region
}

// LeaderProto returns the leader in wire form, nil if unknown.
func (r *RegionInfo) LeaderProto() *metapb.Peer {
	if p, ok := r.Leader(); ok {
		return p.ToProto()
	}
	return nil
}

// PendingProto returns the pending peers in wire form.
func (r *RegionInfo) PendingProto() []*metapb.Peer {
	var out []*metapb.Peer
	for i, p := range r.peers {
		if r.pending&(1<<uint(i)) != 0 {
			out = append(out, p.ToProto())
		}
	}
	return out
}

// DownProto returns the down peers in wire form.
func (r *RegionInfo) DownProto() []*schedulerpb.PeerStats {
	var out []*schedulerpb.PeerStats
	for _, d := range r.down() {
		if p, ok := r.PeerByID(d.PeerID); ok {
			out = append(out, &schedulerpb.PeerStats{Peer: p.ToProto(), DownSeconds: d.Seconds})
		}
	}
	return out
}

// String is stable: transcripts depend on it.
func (r *RegionInfo) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "r%d [%q,%q) v%d/c%d %dMiB", r.id, r.start, r.end, r.version, r.confVer, r.size)
	for i, p := range r.peers {
		mark := ""
		if int8(i) == r.leader {
			mark += "*"
		}
		if r.pending&(1<<uint(i)) != 0 {
			mark += "~"
		}
		if p.Learner {
			mark += "L"
		}
		fmt.Fprintf(&b, " %d@s%d%s", p.ID, p.StoreID, mark)
	}
	return b.String()
}
