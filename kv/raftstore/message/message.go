// Package message is the closed set of messages that a region's peer receives through its mailbox,
// and the callback that answers commands.
package message

import (
	"time"

	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// Msg is a message to a peer.
type Msg interface{ msg() }

// Header says whom a command is for; a peer that is not (or no longer) that one refuses it.
type Header struct {
	RegionID uint64
	Peer     *metapb.Peer
	Epoch    *metapb.RegionEpoch
	// Term is the term in which the client believes the leader to be; 0 means any.
	Term uint64
}

// WriteID names a write of a client, over all attempts at it. The zero value names none.
type WriteID struct{ Client, Number uint64 }

// Identity is what makes a write happen once although it is sent again.
type Identity struct {
	ID WriteID
	// Attempt counts the attempts at the write, from 1.
	Attempt uint32
	// Position is an index of the region's log that was committed before this attempt was made.
	Position uint64
	// Origins are where earlier attempts of unknown outcome went; empty if there was none.
	Origins []Origin
}

// Origin is a region to which an attempt was addressed, and an index of its log that was committed
// by then.
type Origin struct{ RegionID, Position uint64 }

// Ancestor is a region from which another one was split, directly or through others.
type Ancestor struct {
	RegionID uint64
	// SplitIndex is the entry of the ancestor's log that ended its part in the range.
	SplitIndex uint64
	// Versions are those of the ancestor up to there.
	Versions []VersionMark
	// Recent is what this store's peer of the ancestor remembered of its log when it was split; nil
	// if it did not.
	Recent *RecentWrites
}

// VersionMark says which version a region has for the entries after an index.
type VersionMark struct{ Index, Version uint64 }

// Write is a client's write: one or more puts and deletes within one region, or one conditional
// request, carried out atomically.
type Write struct {
	Header Header
	// MinKey and MaxKey are the smallest and the largest user key of the payload.
	MinKey, MaxKey []byte
	// Payload is made by AppendWriteID, AppendPut, AppendPutWithLife and AppendDelete, or by
	// AppendSwap, AppendDeleteRange or AppendExpire.
	Payload []byte
	// Identity is zero for a write that may happen again when it is sent again.
	Identity Identity
	// NotedTerm and HeldUntil belong to the peer that has the write: the term in which it took note
	// of this attempt, and the index that has to be applied before it goes on.
	NotedTerm, HeldUntil uint64
	// Deletes only, or what ends something that takes space: allowed when the disk is full.
	DeletesOnly bool
	// Bound: the write may be proposed in the header's term only, and its peer must lead in it. It
	// was decided on a view of the region under that leadership.
	Bound bool
	// Expiring: a put of it has a TTL, which only regions whose keys may expire take.
	Expiring bool
	// Traced: the answer says when the write passed its stages.
	Traced bool
	// came is when the write came to the store, in microseconds of the store's age, modulo 71
	// minutes.
	came uint32
	// Conditional is set if the payload is a conditional request, which is an entry by itself.
	Conditional *Condition
	// Deadline, in the store's clock, after which the write must not be proposed any more; zero
	// means none.
	Deadline time.Time
	Callback *Callback
}

// Came notes when the write came to a store of the given age.
func (w *Write) Came(age time.Duration) { w.came = uint32(age.Microseconds()) }

// Waited is for how long the write has waited, up to 71 minutes, when the store is of the given
// age.
func (w *Write) Waited(age time.Duration) time.Duration {
	return time.Duration(uint32(age.Microseconds())-w.came) * time.Microsecond
}

// Condition is what a peer has to know of a conditional request.
type Condition struct {
	// Needs are the features that it takes.
	Needs feature.Set
	// IfDone answers a retried compare-and-swap whose earlier attempt has swapped; nil for others.
	IfDone *Answer
}

// Read asks for proof of leadership: the callback succeeds once a local engine snapshot taken
// afterwards shows everything that was committed when the message was sent.
type Read struct {
	Header   Header
	Deadline time.Time
	Callback *Callback
	// Term is set before the callback succeeds: the term in which the peer leads then, with
	// everything applied that was written in earlier terms and can still take effect; 0 if it does
	// not.
	Term uint64
}

// Admin is an admin command: split, compact log, change peer, transfer leader.
type Admin struct {
	Header   Header
	Request  *raft_cmdpb.AdminRequest
	Deadline time.Time
	Callback *Callback
}

// Raft is a message from another store.
type Raft struct{ Message *rspb.RaftMessage }

// Start is the first message of every peer.
type Start struct{ Campaign bool }

// Wake wakes a sleeping peer; one that sleeps since the start of its store campaigns.
type Wake struct{}

// StoreLost reports that the connection to a store broke, or that it has long been silent. Heard is
// when the store was last heard.
type StoreLost struct {
	StoreID uint64
	Heard   time.Time
}

// Unreachable reports that messages to a peer were dropped.
type Unreachable struct{ ToPeer uint64 }

// SnapshotSent reports how sending a raft snapshot ended.
type SnapshotSent struct {
	ToPeer uint64
	OK     bool
}

// SnapshotBuilt reports a raft snapshot built for this region; nil when building failed.
type SnapshotBuilt struct{ Snapshot *eraftpb.Snapshot }

// SnapshotInstalled reports the end of an installation.
type SnapshotInstalled struct {
	Index uint64
	Err   error
}

// Applied reports what an apply worker did for this peer.
type Applied struct {
	PeerID  uint64
	Index   uint64
	Term    uint64
	Results []ApplyResult
	// Quiet: there is nothing in it but how far the worker has come, so it need not be worked off
	// at once.
	Quiet bool
	// Mortal: expiry times were written.
	Mortal bool
	// Shrunk: a range was deleted, so the region's size is not known any more.
	Shrunk bool
	// SizeDelta and KeysDelta estimate how much the region grew; Written and WrittenKeys count.
	SizeDelta, Written     int64
	KeysDelta, WrittenKeys int64
}

// ApplyResult is the effect of one admin command on the peer.
type ApplyResult interface{ applyResult() }

// ChangedPeer is an applied conf change. Region is nil when it had no effect.
type ChangedPeer struct {
	Index  uint64
	Change eraftpb.ConfChange
	Peer   *metapb.Peer
	Region *metapb.Region
}

// SplitDone is an applied split. Created is false when this store must not have the new region.
type SplitDone struct {
	Index       uint64
	Left, Right *metapb.Region
	RightPeer   *metapb.Peer
	Created     bool
}

// SplitRefused is a split that was refused when it was applied.
type SplitRefused struct{ Index uint64 }

// CompactedLog is an applied log compaction.
type CompactedLog struct{ Index, Term uint64 }

// NewVersion is an applied entry of a merge that gave the region another version and nothing else:
// it froze it, to go into another region (Merging is set), ended that, or refused another region's
// merge into it.
type NewVersion struct {
	Index   uint64
	Region  *metapb.Region
	Merging *rspb.MergingState
}

// MergeDone is an applied merge at its target: the joined region, and the source that ended with it
// on this store. The source's tombstone is written.
type MergeDone struct {
	Index      uint64
	Region     *metapb.Region
	Source     *metapb.Region
	SourcePeer *metapb.Peer
}

// RaisedFloor is an applied entry that raised the region's expiry floor and changed nothing else of
// the region.
type RaisedFloor struct{ Region *metapb.Region }

func (RaisedFloor) applyResult()  {}
func (ChangedPeer) applyResult()  {}
func (SplitDone) applyResult()    {}
func (SplitRefused) applyResult() {}
func (CompactedLog) applyResult() {}
func (NewVersion) applyResult()   {}
func (MergeDone) applyResult()    {}

// ReadFailed says that reading the region's data failed.
type ReadFailed struct{ Err error }

// LogGC says that the engine is durable up to Index, so that the raft log may drop entries up to
// it.
type LogGC struct{ Index, Term uint64 }

// RegionSize is the bytes of a region's keys and values, and the number of its keys, over all
// column families.
type RegionSize struct{ Size, Keys uint64 }

// Counted is what a region had when it was counted, and with that how many bytes it took on disk,
// and how many the engine had in memory only, of all regions; 0 and 0 from engines that do not
// tell.
type Counted struct {
	RegionSize
	Disk, Memory uint64
}

// SplitChecked is the split checker's finding: the region's size, and a split key if it is too big.
// Counted is zero if the size is an estimate, or of an empty region.
type SplitChecked struct {
	Epoch *metapb.RegionEpoch
	RegionSize
	Counted  Counted
	SplitKey []byte
	Err      error
}

// AskedSplit carries the placement service's ids for a split planned at Epoch.
type AskedSplit struct {
	Epoch    *metapb.RegionEpoch
	SplitKey []byte
	IDs      *schedulerpb.AskSplitResponse
	Err      error
	Callback *Callback
}

// SplitAt asks for a split at a key (tools and tests); empty means at the middle.
type SplitAt struct {
	Header   Header
	Key      []byte
	Callback *Callback
}

// Operator is an order of the placement service.
type Operator struct {
	Response *schedulerpb.RegionHeartbeatResponse
}

// RegionTruth is the placement service's answer to a peer that has long heard nothing: the region
// as it is known there, nil when it is not.
type RegionTruth struct{ Region *metapb.Region }

// BecomeSplit turns an uninitialized peer into the one that a split has created here: a raft
// message had created it first. Campaign is set on the store of the parent's leader.
type BecomeSplit struct {
	Region   *metapb.Region
	Peer     *metapb.Peer
	Campaign bool
	// Ancestors are where the new region's data was written before, the direct one last.
	Ancestors []Ancestor
}

// Absorbed ends a peer whose region went into another one: its tombstone is written, and its data
// are the other's. Into is the joined region.
type Absorbed struct{ Into *metapb.Region }

// HeartbeatNow makes a leader send its region heartbeat at once.
type HeartbeatNow struct{}

// CompareReplicas makes a leader compare the data of its replicas. Done gets the outcome exactly
// once, on a goroutine that it must not hold up.
type CompareReplicas struct {
	Header Header
	Done   func(Comparison, error)
}

// EndComparison makes a leader judge by the answers that have come, if the comparison is still
// under way.
type EndComparison struct{ Comparison *CompareReplicas }

// Hashed is the hash of this replica's data as of an entry, or why there is none.
type Hashed struct {
	PeerID, Index, Term, Hash uint64
	Err                       error
}

// Comparison is what came of CompareReplicas: by peer id, the hash as of the entry at Index of each
// replica that has answered.
type Comparison struct {
	Index  uint64
	Region *metapb.Region
	Hashes map[uint64]uint64
	// Diverged are the peers whose hash is not that of most voters, in rising order.
	Diverged []uint64
	// Undecided: replicas differ, and no hash is that of most voters.
	Undecided bool
}

// Complete tells whether every replica has answered.
func (c Comparison) Complete() bool { return len(c.Hashes) == len(c.Region.GetPeers()) }

// Equal tells whether every replica has answered, and all have the same hash.
func (c Comparison) Equal() bool { return c.Complete() && len(c.Diverged) == 0 && !c.Undecided }

// Inspect runs a function on the worker that holds the peer; the argument is *raftstore.PeerView.
type Inspect struct{ Fn func(view any) }

func (*Write) msg()             {}
func (*Read) msg()              {}
func (*Admin) msg()             {}
func (*Raft) msg()              {}
func (*Start) msg()             {}
func (*Wake) msg()              {}
func (*Unreachable) msg()       {}
func (*StoreLost) msg()         {}
func (*SnapshotSent) msg()      {}
func (*SnapshotBuilt) msg()     {}
func (*SnapshotInstalled) msg() {}
func (*Applied) msg()           {}
func (*LogGC) msg()             {}
func (*SplitChecked) msg()      {}
func (*AskedSplit) msg()        {}
func (*SplitAt) msg()           {}
func (*Operator) msg()          {}
func (*RegionTruth) msg()       {}
func (*BecomeSplit) msg()       {}
func (*Absorbed) msg()          {}
func (*HeartbeatNow) msg()      {}
func (*Inspect) msg()           {}
func (*ReadFailed) msg()        {}
func (*CompareReplicas) msg()   {}
func (*EndComparison) msg()     {}
func (*Hashed) msg()            {}

// CallbackOf returns the callback of a command, nil for other messages.
func CallbackOf(m Msg) *Callback {
	switch m := m.(type) {
	case *Write:
		return m.Callback
	case *Read:
		return m.Callback
	case *Admin:
		return m.Callback
	case *SplitAt:
		return m.Callback
	case *AskedSplit:
		return m.Callback
	}
	return nil
}
