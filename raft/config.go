package raft

import (
	"errors"
	"fmt"
)

// None is the ID of no node: no leader known, no vote given.
const None uint64 = 0

// ErrProposalDropped is returned when a proposal was not appended: this node is not the leader, is
// handing the leadership over, has left the group, or has a conf change still waiting. Nothing was
// written; the caller answers its client and may try again, here or elsewhere.
var ErrProposalDropped = errors.New("raft: proposal dropped")

// ErrUncommittedFull is a dropped proposal too: Config.MaxUncommittedBytes are waiting for a
// quorum. The caller reports "busy" and tries again later.
var ErrUncommittedFull = fmt.Errorf("raft: uncommitted log is full: %w", ErrProposalDropped)

// ErrNotLeader is returned by ReadIndex on a node that does not lead. The caller redirects.
var ErrNotLeader = errors.New("raft: not the leader")

// ErrStepLocalMsg is returned by RawNode.Step for a message that may not come over a network.
var ErrStepLocalMsg = errors.New("raft: local message from the network")

// ErrStepPeerNotFound is returned by RawNode.Step for a response of a node that is no member.
var ErrStepPeerNotFound = errors.New("raft: response from an unknown node")

// RandSource draws the election timeouts. *math/rand/v2's users wrap it; a simulator gives its own
// so that one seed gives one run. Owner: the raft node it is given to.
type RandSource interface {
	// Intn returns a number in [0, n); n > 0.
	Intn(n int) int
}

// Logger receives what helps a person who debugs a group. It may be nil.
type Logger interface {
	Debugf(format string, args ...any)
	Infof(format string, args ...any)
	Warnf(format string, args ...any)
	Errorf(format string, args ...any)
}

// Config starts a node. Only the fields of the first group are needed; in the others the zero value
// means "off" or "unlimited" and the node behaves as the TinyKV course describes it.
type Config struct {
	// ID of this node, not None, never used again once the node was removed from the group: a node
	// that comes back empty under its old ID has forgotten its promises.
	ID uint64

	// peers are the voters of a new group. They count only where the storage's ConfState is empty.
	// Only tests set it; a store writes the ConfState into the storage instead.
	peers []uint64

	// ElectionTick ticks without a word from a leader start an election: the timeout is drawn from
	// [ElectionTick, 2*ElectionTick). HeartbeatTick ticks lie between two heartbeats. An election
	// timeout of ten heartbeats keeps lost messages from becoming lost leaders.
	ElectionTick  int
	HeartbeatTick int

	// Storage holds the persisted log and state, and is read at the start and whenever an entry is
	// not in memory.
	Storage Storage

	// Applied is the last index that the state machine has durably applied. Entries up to it are
	// not handed out again.
	Applied uint64

	// Rand draws election timeouts. Nil: a small generator seeded with the ID.
	Rand RandSource

	// PreVote asks for votes without raising the term first (thesis 9.6), so that a node that comes
	// back from a partition does not depose a working leader. Use together with CheckQuorum.
	PreVote bool

	// CheckQuorum makes a leader step down that has not heard from a quorum for an election
	// timeout (thesis 6.2), and makes nodes refuse votes while they hear a leader (thesis 4.2.3).
	// Leader leases stand on the second half.
	CheckQuorum bool

	// VoteGraceTicks refuses votes for that many ticks after the start, as if a leader had just
	// been heard: before a restart this node may have answered a heartbeat that a lease rests on.
	VoteGraceTicks int

	// MaxSizePerMsg bounds the entry bytes of a MsgAppend; one entry is always sent.
	MaxSizePerMsg uint64

	// MaxInflightMsgs and MaxInflightBytes bound what is on its way to one follower, unanswered.
	MaxInflightMsgs  int
	MaxInflightBytes uint64

	// MaxUncommittedBytes bounds the payload that waits for a quorum. One proposal is always taken.
	MaxUncommittedBytes uint64

	// MaxCommittedBytesPerReady bounds the entries one Ready hands out for applying; at least one.
	MaxCommittedBytesPerReady uint64

	// AckOnPersist makes the leader count itself for an entry only when Advance says that it is on
	// disk (thesis 10.2.1); appends may then leave before the leader's own write. Off: the leader
	// counts itself when it appends, and no message may leave before the Ready is persisted.
	AckOnPersist bool

	// AsyncApply says that entries are applied elsewhere: they are handed out once, Advance does
	// not move the applied index, the owner reports it with RawNode.AppliedTo.
	AsyncApply bool

	// UnstableOnly keeps in memory the entries that are not persisted yet, and of the others the
	// most recent ones up to LogCacheBytes; the rest is read from the Storage. Off: every entry of
	// the storage is kept in memory.
	UnstableOnly bool
	// LazyCommit lets a moved commit index wait for the next append, or the next tick, instead of
	// sending it in messages of its own: fewer messages under load, and followers apply up to a
	// tick later. The commit of a conf change is sent at once.
	LazyCommit    bool
	LogCacheBytes uint64

	// SnapshotTimeoutTicks is how long a follower may stay silent about a snapshot before another
	// one is tried. Zero: four election timeouts.
	SnapshotTimeoutTicks int

	// Logger may be nil.
	Logger Logger
}

// validate says what makes the config unusable.
func (c *Config) validate() error {
	switch {
	case c == nil:
		return errors.New("raft: no config")
	case c.ID == None:
		return errors.New("raft: config without an ID")
	case c.HeartbeatTick <= 0:
		return fmt.Errorf("raft: heartbeat tick %d must be above 0", c.HeartbeatTick)
	case c.ElectionTick <= c.HeartbeatTick:
		return fmt.Errorf("raft: election tick %d must be above heartbeat tick %d",
			c.ElectionTick, c.HeartbeatTick)
	case c.Storage == nil:
		return errors.New("raft: config without a storage")
	case c.VoteGraceTicks < 0 || c.MaxInflightMsgs < 0 || c.SnapshotTimeoutTicks < 0:
		return errors.New("raft: negative limit in config")
	}
	return nil
}

// splitMix is the default RandSource: Vigna's splitmix64, good enough to spread timeouts, and with
// no state outside of the node. IDs next to each other give unrelated sequences.
type splitMix struct{ state uint64 }

// Intn is part of RandSource. The modulo bias is below 2^-50 for the few values asked for.
func (s *splitMix) Intn(n int) int {
	s.state += 0x9e3779b97f4a7c15
	z := s.state
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return int((z ^ (z >> 31)) % uint64(n))
}
