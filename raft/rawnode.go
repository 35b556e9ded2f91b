package raft

import (
	"fmt"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// SoftState is what changes without having to be persisted.
type SoftState struct {
	Lead      uint64
	RaftState StateType
}

func (s *SoftState) equal(o SoftState) bool {
	return s.Lead == o.Lead && s.RaftState == o.RaftState
}

// Ready is what the owner has to do next, in the order that doc.go gives. It is only to be read; it
// stays as it is whatever raft does afterwards.
type Ready struct {
	// SoftState is nil if it did not change.
	SoftState *SoftState
	// HardState is empty if it did not change; else it is to be persisted before anything is sent.
	HardState eraftpb.HardState
	// Entries are to be persisted before anything is sent. They replace what the storage has from
	// their first index on, all of it.
	Entries []eraftpb.Entry
	// Snapshot, if it has an index, is to be persisted first and replaces log and state.
	Snapshot eraftpb.Snapshot
	// CommittedEntries are to be applied, after the snapshot. They may be among Entries.
	CommittedEntries []eraftpb.Entry
	// Messages are to be sent after the rest is persisted; SplitMessages says which may go earlier.
	Messages []eraftpb.Message
	// ReadStates answer ReadIndex.
	ReadStates []ReadState
	// MustSync says that what is persisted has to be synced before Advance. A commit index alone
	// need not be: it is learned again; except a leader's that covers a conf change.
	MustSync bool

	// earlyTerm is the term whose appends may leave before this Ready is persisted, 0 for none.
	earlyTerm uint64
}

// SplitMessages parts the messages: early ones may leave before this Ready is persisted, late ones
// only afterwards. Early are what a leader sends in a term that is durable: followers may write in
// parallel with the leader, who does not count itself before its own write (thesis 10.2.1). All
// answers are late, they promise that something is on disk (traps A1, F-1).
func (rd *Ready) SplitMessages() (early, late []eraftpb.Message) {
	if rd.earlyTerm == 0 {
		return nil, rd.Messages
	}
	isEarly := func(m *eraftpb.Message) bool {
		return isFromLeader(m.MsgType) && m.Term == rd.earlyTerm
	}
	n := 0
	for i := range rd.Messages {
		if isEarly(&rd.Messages[i]) {
			n++
		}
	}
	if n == len(rd.Messages) {
		return rd.Messages, nil
	}
	for i := range rd.Messages {
		m := &rd.Messages[i]
		if isEarly(m) {
			early = append(early, *m)
		} else {
			late = append(late, *m)
		}
	}
	return early, late
}

// RawNode is a Raft with the loop around it: messages and ticks in, Ready out, Advance when it is
// done. Not safe for concurrent use; the owner is the peer's worker.
type RawNode struct {
	Raft *Raft

	prevSoft SoftState
	// prevHard is the hard state of the last Ready that was advanced: what is durable.
	prevHard eraftpb.HardState
}

// NewRawNode returns a node with the state of the config's storage.
func NewRawNode(config *Config) (*RawNode, error) {
	r, err := openRaft(config)
	if err != nil {
		return nil, err
	}
	return &RawNode{
		Raft:     r,
		prevSoft: SoftState{Lead: r.Lead, RaftState: r.State},
		prevHard: r.hardState(),
	}, nil
}

// Tick is one step of the clock.
func (rn *RawNode) Tick() { rn.Raft.tick() }

// ExpectElection tells a follower that its leader is probably gone: it campaigns delay ticks after
// the smallest election timeout instead of at a random time after it. The delays of a group's
// members should differ. Safety and the leader's lease do not depend on the guess being right.
func (rn *RawNode) ExpectElection(delay int) { rn.Raft.expectElection(delay) }

// Campaign starts an election now, unless this node may not or is in contact with a leader.
func (rn *RawNode) Campaign() error {
	return rn.Raft.Step(eraftpb.Message{MsgType: eraftpb.MessageType_MsgHup, From: rn.Raft.id})
}

// Propose appends data to the leader's log, and keeps it: it must not be written to any more. Nil
// does not mean that it will be committed.
func (rn *RawNode) Propose(data []byte) error {
	return rn.proposeEntry(eraftpb.Entry{Data: data})
}

// ProposeConfChange appends a conf change; ErrProposalDropped as long as another one waits.
func (rn *RawNode) ProposeConfChange(cc eraftpb.ConfChange) error {
	data, err := cc.Marshal()
	if err != nil {
		return fmt.Errorf("raft: conf change: %w", err)
	}
	return rn.proposeEntry(eraftpb.Entry{EntryType: eraftpb.EntryType_EntryConfChange, Data: data})
}

func (rn *RawNode) proposeEntry(e eraftpb.Entry) error {
	if rn.Raft.State != StateLeader {
		return ErrProposalDropped
	}
	ents := [1]eraftpb.Entry{e}
	return rn.Raft.propose(ents[:])
}

// ApplyConfChange puts a committed conf change into effect, when the owner applies it, and returns
// the members after it, to be persisted together with the applied index. NodeId 0 stands for a
// change that was refused and changes nothing.
func (rn *RawNode) ApplyConfChange(cc eraftpb.ConfChange) *eraftpb.ConfState {
	rn.Raft.applyConfChange(cc)
	return rn.Raft.confState()
}

// Step takes in a message from another node. Local messages are refused: a term gate cannot stop
// what has no term; and so are those of nobody and of this node itself.
func (rn *RawNode) Step(m eraftpb.Message) error {
	if isLocal(m.MsgType) || m.Term == 0 && !mayLackTerm(&m) {
		return ErrStepLocalMsg
	}
	if (m.From == None || m.From == rn.Raft.id) &&
		m.MsgType != eraftpb.MessageType_MsgTransferLeader {
		return ErrStepLocalMsg
	}
	if isResponse(m.MsgType) && rn.Raft.Prs[m.From] == nil {
		return ErrStepPeerNotFound
	}
	return rn.Raft.Step(m)
}

func isLocal(t eraftpb.MessageType) bool {
	switch t {
	case eraftpb.MessageType_MsgHup, eraftpb.MessageType_MsgBeat, eraftpb.MessageType_MsgPropose,
		eraftpb.MessageType_MsgUnreachable, eraftpb.MessageType_MsgSnapStatus,
		eraftpb.MessageType_MsgCheckQuorum, eraftpb.MessageType_MsgReadIndex,
		eraftpb.MessageType_MsgReadIndexResponse:
		return true
	}
	return false
}

// mayLackTerm: a request handed on belongs to no term, and a node that has never heard of one
// refuses a pre-vote in term 0.
func mayLackTerm(m *eraftpb.Message) bool {
	return m.MsgType == eraftpb.MessageType_MsgTransferLeader ||
		m.MsgType == eraftpb.MessageType_MsgPreVoteResponse && m.Reject
}

func isResponse(t eraftpb.MessageType) bool {
	switch t {
	case eraftpb.MessageType_MsgAppendResponse, eraftpb.MessageType_MsgRequestVoteResponse,
		eraftpb.MessageType_MsgHeartbeatResponse, eraftpb.MessageType_MsgPreVoteResponse:
		return true
	}
	return false
}

// Ready returns what has to be done. Its messages and read states are given out once; the rest is
// done when Advance says so.
func (rn *RawNode) Ready() Ready {
	r := rn.Raft
	r.flushAppends()
	r.flushReads()
	rd := Ready{
		Entries:          r.RaftLog.unstableEntries(),
		CommittedEntries: r.RaftLog.nextEnts(),
		Messages:         r.msgs,
		ReadStates:       r.reads.done,
	}
	r.outbox = min(len(r.msgs), maxOutbox)
	r.msgs, r.shared, r.reads.done = nil, nil, nil
	if !rn.prevSoft.equal(SoftState{Lead: r.Lead, RaftState: r.State}) {
		rd.SoftState = &SoftState{Lead: r.Lead, RaftState: r.State}
	}
	hard := r.hardState()
	if hard != rn.prevHard {
		rd.HardState = hard
	}
	if r.RaftLog.pendingSnapshot != nil {
		rd.Snapshot = *cloneSnapshot(r.RaftLog.pendingSnapshot)
	}
	votes := hard.Term != rn.prevHard.Term || hard.Vote != rn.prevHard.Vote
	confs := r.commitsConfChange(rn.prevHard.Commit)
	rd.MustSync = len(rd.Entries) > 0 || votes || rd.Snapshot.Metadata != nil || confs
	if r.State == StateLeader && r.ackOnPersist && !votes && !confs {
		rd.earlyTerm = r.Term
	}
	return rd
}

// HasReady says whether Ready would return anything.
func (rn *RawNode) HasReady() bool {
	r := rn.Raft
	return len(r.msgs) > 0 ||
		!rn.prevSoft.equal(SoftState{Lead: r.Lead, RaftState: r.State}) ||
		r.hardState() != rn.prevHard ||
		r.RaftLog.stabled < r.RaftLog.LastIndex() ||
		r.RaftLog.pendingSnapshot != nil ||
		r.RaftLog.hasNextEnts() ||
		len(r.reads.done) > 0 || r.hasReadsToFlush()
}

// Advance says that the last Ready is done: persisted, sent, and applied or handed to who applies.
func (rn *RawNode) Advance(rd Ready) {
	r := rn.Raft
	if rd.SoftState != nil {
		rn.prevSoft = *rd.SoftState
	}
	if !IsEmptyHardState(rd.HardState) {
		rn.prevHard = rd.HardState
	}
	if rd.Snapshot.Metadata != nil {
		r.RaftLog.stableSnapTo(rd.Snapshot.Metadata.Index)
	}
	if n := len(rd.Entries); n > 0 {
		r.RaftLog.stableTo(rd.Entries[n-1].Index, rd.Entries[n-1].Term)
	}
	if n := len(rd.CommittedEntries); n > 0 {
		if index := rd.CommittedEntries[n-1].Index; r.RaftLog.asyncApply {
			r.RaftLog.handed = max(r.RaftLog.handed, index)
		} else {
			r.RaftLog.appliedTo(index)
		}
	}
	if !r.RaftLog.unstableOnly {
		r.RaftLog.maybeCompact()
	}
	r.persisted()
}

// AppliedTo tells, with Config.AsyncApply, how far the state machine has come.
func (rn *RawNode) AppliedTo(index uint64) { rn.Raft.RaftLog.appliedTo(index) }

// CompactTo drops from memory the entries up to and including index, after the storage dropped
// them. It goes no further than what is applied and persisted.
func (rn *RawNode) CompactTo(index uint64) { rn.Raft.RaftLog.compactTo(index) }

// ReadIndex asks for a ReadState under an ID that was not used before: a retry takes a new one. The
// answer comes in a Ready, aborted if this node stops leading first.
func (rn *RawNode) ReadIndex(id uint64) error { return rn.Raft.readIndex(id) }

// ReportUnreachable tells that messages to a member do not get through.
func (rn *RawNode) ReportUnreachable(id uint64) {
	_ = rn.Raft.Step(eraftpb.Message{MsgType: eraftpb.MessageType_MsgUnreachable, From: id})
}

// ReportSnapshot tells how the sending of a snapshot to a member ended.
func (rn *RawNode) ReportSnapshot(id uint64, ok bool) {
	_ = rn.Raft.Step(eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgSnapStatus, From: id, Reject: !ok,
	})
}

// TransferLeader hands the leadership to a voter, if it catches up within an election timeout.
func (rn *RawNode) TransferLeader(transferee uint64) {
	_ = rn.Raft.Step(eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgTransferLeader, From: transferee,
	})
}

// BroadcastHeartbeat starts a heartbeat round now, if this node leads.
func (rn *RawNode) BroadcastHeartbeat() {
	if rn.Raft.State == StateLeader {
		rn.Raft.numberRounds = true
		rn.Raft.broadcastHeartbeat()
	}
}

// TellCommit sends the others now, if this node leads, what LazyCommit keeps for the next append or
// tick: that an index is committed. True: nothing is left to do for that index. False: it is not
// committed, or a member is not known to have the log up to it; call again when more is known.
func (rn *RawNode) TellCommit(index uint64) bool {
	r := rn.Raft
	if r.State != StateLeader {
		return true
	}
	if r.RaftLog.committed < index {
		return false
	}
	all := true
	for _, id := range r.sortedIDs() {
		if pr := r.Prs[id]; id != r.id && pr.toldCommit < index {
			if pr.Match >= index {
				r.sendAppend(id)
			}
			all = all && pr.toldCommit >= index
		}
	}
	return all
}

// HeartbeatRound is the round that was broadcast last in this term, 0 for none.
func (rn *RawNode) HeartbeatRound() uint64 { return rn.Raft.reads.round }

// QuorumRound is the last round that a quorum answered, this node included; 0 for none. A lease may
// start when that round was sent.
func (rn *RawNode) QuorumRound() uint64 { return rn.Raft.reads.confirmed }

// IsEmptyHardState says whether nothing is in it.
func IsEmptyHardState(st eraftpb.HardState) bool { return st == eraftpb.HardState{} }

// IsEmptySnap says whether there is no snapshot in it.
func IsEmptySnap(snap *eraftpb.Snapshot) bool {
	return snap == nil || snap.Metadata == nil || snap.Metadata.Index == 0
}
