package raft

import (
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// lastTerm is never entered.
const lastTerm = ^uint64(0)

// StateType is the role of a node.
type StateType uint64

// The roles. The arrows between them are the become* functions, and are drawn in doc.go.
const (
	StateFollower StateType = iota
	StateCandidate
	StateLeader
	// StatePreCandidate asks whether an election could be won, before it raises the term.
	StatePreCandidate
)

func (s StateType) String() string {
	switch s {
	case StateFollower:
		return "follower"
	case StateCandidate:
		return "candidate"
	case StateLeader:
		return "leader"
	case StatePreCandidate:
		return "pre-candidate"
	}
	return fmt.Sprintf("StateType(%d)", uint64(s))
}

// Raft is one member of one group: the algorithm, with no clock, disk or network. Messages and
// ticks go in, messages and state to persist come out, through RawNode. Owner: the RawNode that
// holds it.
//
// Invariant: Term and the log's committed index never go back; Vote changes only with Term or from
// None.
type Raft struct {
	id uint64

	// Term, Vote and the log's committed index are the hard state.
	Term uint64
	Vote uint64

	RaftLog *RaftLog

	// Prs are the members as of the applied index (and of a snapshot being installed), this node
	// among them unless it was removed.
	Prs   map[uint64]*Progress
	State StateType
	// votes are the answers to this node's candidacy.
	votes map[uint64]bool
	// msgs wait for the next Ready.
	msgs []eraftpb.Message
	// outbox is how many messages the last Ready had: room for as many is made at once.
	outbox int
	// shared are the entries of the last append since the last Ready, as messages have them.
	shared []*eraftpb.Entry
	// Lead is the leader of Term as far as known.
	Lead uint64

	heartbeatTimeout          int
	electionTimeout           int
	randomizedElectionTimeout int
	heartbeatElapsed          int
	// electionElapsed counts ticks since the last word of a leader or the last candidacy; at a
	// leader since the last check-quorum.
	electionElapsed int
	// contactElapsed counts ticks since the last word of a leader, whatever happened since: vote
	// refusals rest on it. graceTicks are left of Config.VoteGraceTicks.
	contactElapsed int
	graceTicks     int

	// leadTransferee is who the leadership is being handed to, transferElapsed for how long.
	leadTransferee  uint64
	transferElapsed int
	// timeoutNowSent: the target may be campaigning already.
	timeoutNowSent bool
	// heardRound is the last heartbeat round heard, from the leader of heardTerm.
	heardTerm, heardRound uint64

	// PendingConfIndex: the index of the last conf change in the log, or a bound above it. The next
	// one may be proposed once it is applied.
	PendingConfIndex uint64

	reads       readState
	uncommitted uncommitted
	// ids is a sorted copy of the keys of Prs, checked at each use.
	ids     []uint64
	scratch []uint64

	rand         RandSource
	logger       Logger
	preVote      bool
	checkQuorum  bool
	ackOnPersist bool
	numberRounds bool
	// batchAppends: proposals are sent when a Ready is made, all of them in as few messages as
	// their size allows; appendsDue says that there are some.
	batchAppends bool
	appendsDue   bool
	lazyCommit   bool
	// lost is the largest index that was acknowledged and is beyond the log; 0 if there is none.
	lost                 uint64
	maxSizePerMsg        uint64
	maxInflightMsgs      int
	maxInflightBytes     uint64
	snapshotTimeoutTicks int
}

// newRaft returns a follower with the state of the storage. It panics on a config or storage that
// cannot be used; NewRawNode returns the error instead.
func newRaft(c *Config) *Raft {
	r, err := openRaft(c)
	if err != nil {
		panic(err)
	}
	return r
}

func openRaft(c *Config) (*Raft, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	hs, cs, err := c.Storage.InitialState()
	if err != nil {
		return nil, fmt.Errorf("raft: initial state: %w", err)
	}
	log, err := openLog(c.Storage, c.UnstableOnly)
	if err != nil {
		return nil, err
	}
	if err := log.recover(hs.Commit, c); err != nil {
		return nil, err
	}
	r := &Raft{
		id: c.ID, RaftLog: log, Prs: map[uint64]*Progress{}, votes: map[uint64]bool{},
		heartbeatTimeout: c.HeartbeatTick, electionTimeout: c.ElectionTick,
		contactElapsed: c.ElectionTick, graceTicks: c.VoteGraceTicks,
		rand: c.Rand, logger: c.Logger,
		preVote: c.PreVote, checkQuorum: c.CheckQuorum, ackOnPersist: c.AckOnPersist,
		// Heartbeats of the course carry no round; see nextRound.
		numberRounds: c.PreVote || c.CheckQuorum || c.AckOnPersist || c.AsyncApply ||
			c.UnstableOnly,
		batchAppends:  c.AckOnPersist || c.AsyncApply || c.UnstableOnly,
		lazyCommit:    c.LazyCommit,
		maxSizePerMsg: c.MaxSizePerMsg, maxInflightMsgs: c.MaxInflightMsgs,
		maxInflightBytes: c.MaxInflightBytes, snapshotTimeoutTicks: c.SnapshotTimeoutTicks,
		uncommitted: uncommitted{limit: c.MaxUncommittedBytes},
	}
	if r.rand == nil {
		r.rand = &splitMix{state: c.ID * 0x2545f4914f6cdd1d}
	}
	if r.snapshotTimeoutTicks == 0 {
		r.snapshotTimeoutTicks = 4 * c.ElectionTick
	}
	if len(cs.Nodes) == 0 && len(cs.Learners) == 0 {
		cs.Nodes = c.peers
	}
	r.setMembers(cs)
	r.becomeFollower(hs.Term, None)
	r.Vote = hs.Vote
	return r, nil
}

// recover raises committed and applied to what was known before the restart.
func (l *RaftLog) recover(commit uint64, c *Config) error {
	last := l.LastIndex()
	if c.Applied > last {
		return fmt.Errorf("raft: applied index %d is above the last index %d", c.Applied, last)
	}
	if commit > last {
		return fmt.Errorf("raft: commit index %d is above the last index %d", commit, last)
	}
	// What was applied was committed, even if the write of the commit index got lost.
	l.committed = max(l.committed, commit, c.Applied)
	l.applied = max(l.applied, c.Applied)
	l.handed = l.applied
	l.asyncApply = c.AsyncApply
	l.cacheBytes = c.LogCacheBytes
	l.maxReadyBytes = c.MaxCommittedBytesPerReady
	return nil
}

// nodes returns the members' IDs in order, never nil.
func nodes(r *Raft) []uint64 {
	ids := make([]uint64, 0, len(r.Prs))
	for id := range r.Prs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// sortedIDs is nodes without an allocation, for the loops over all members: everything goes in the
// order of the IDs, so that one seed gives one run (trap Q2). The result lives until the members
// change.
func (r *Raft) sortedIDs() []uint64 {
	fresh := len(r.ids) == len(r.Prs)
	for i := 0; fresh && i < len(r.ids); i++ {
		fresh = r.Prs[r.ids[i]] != nil
	}
	if !fresh {
		r.ids = nodes(r)
	}
	return r.ids
}

// isVoter says whether id has a vote.
func (r *Raft) isVoter(id uint64) bool {
	pr := r.Prs[id]
	return pr != nil && !pr.IsLearner
}

func (r *Raft) voterCount() int {
	n := 0
	for _, pr := range r.Prs {
		if !pr.IsLearner {
			n++
		}
	}
	return n
}

func (r *Raft) hardState() eraftpb.HardState {
	return eraftpb.HardState{Term: r.Term, Vote: r.Vote, Commit: r.RaftLog.committed}
}

// maxOutbox bounds the room that is made for messages in advance.
const maxOutbox = 64

// send queues a message of this term.
func (r *Raft) send(m eraftpb.Message) {
	m.From = r.id
	if m.Term == 0 {
		m.Term = r.Term
	}
	if n := len(r.msgs); r.batchAppends && n > 0 && supersedes(&m, &r.msgs[n-1]) {
		r.msgs[n-1] = m
		return
	}
	if r.msgs == nil && r.outbox > 0 {
		r.msgs = make([]eraftpb.Message, 0, r.outbox)
	}
	r.msgs = append(r.msgs, m)
}

// supersedes tells whether the acknowledgement m says all that the one before it does.
func supersedes(m, before *eraftpb.Message) bool {
	return m.MsgType == eraftpb.MessageType_MsgAppendResponse && before.MsgType == m.MsgType &&
		!m.Reject && !before.Reject &&
		m.To == before.To && m.Term == before.Term && m.Index >= before.Index
}

// reset starts a term, or a role in it.
func (r *Raft) reset(term uint64) {
	if r.Term != term {
		r.Term = term
		r.Vote = None
	}
	r.Lead = None
	r.heartbeatElapsed = 0
	r.electionElapsed = 0
	r.randomizedElectionTimeout = r.electionTimeout + r.rand.Intn(r.electionTimeout)
	r.abortTransfer()
	r.abortReads()
	r.uncommitted.reset()
	r.appendsDue = false
	r.votes = map[uint64]bool{}
	r.PendingConfIndex = 0
	last := r.RaftLog.LastIndex()
	for id, pr := range r.Prs {
		*pr = Progress{Next: last + 1, IsLearner: pr.IsLearner}
		if id == r.id {
			pr.Match = r.selfMatch()
		}
	}
}

// selfMatch is how much of its own log the leader counts.
func (r *Raft) selfMatch() uint64 {
	if r.ackOnPersist {
		return r.RaftLog.stabled
	}
	return r.RaftLog.LastIndex()
}

// becomeFollower follows lead, or nobody yet, in term.
func (r *Raft) becomeFollower(term, lead uint64) {
	if r.State != StateFollower {
		r.infof("%d became follower of %d at term %d", r.id, lead, term)
	}
	r.reset(term)
	r.State = StateFollower
	r.Lead = lead
}

// becomePreCandidate changes neither term nor vote: a candidacy that fails leaves no trace.
func (r *Raft) becomePreCandidate() {
	if r.State == StateLeader {
		panic("raft: a leader became pre-candidate")
	}
	r.votes = map[uint64]bool{}
	r.State = StatePreCandidate
	r.Lead = None
	r.electionElapsed = 0
	r.randomizedElectionTimeout = r.electionTimeout + r.rand.Intn(r.electionTimeout)
}

// becomeCandidate enters the next term and votes for itself (thesis 3.4).
func (r *Raft) becomeCandidate() {
	if r.State == StateLeader {
		panic("raft: a leader became candidate")
	}
	r.reset(r.Term + 1)
	r.State = StateCandidate
	r.Vote = r.id
	r.votes[r.id] = true
}

// becomeLeader takes over the term. The empty entry it appends is the only way to commit what older
// terms left (thesis 3.6.2), and to learn what is committed (6.4).
func (r *Raft) becomeLeader() {
	if r.State == StateFollower {
		panic("raft: a follower became leader")
	}
	r.reset(r.Term)
	r.State = StateLeader
	r.Lead = r.id
	if pr := r.Prs[r.id]; pr != nil {
		pr.enter(ProgressReplicate)
		pr.RecentActive = true
	}
	// There may be conf changes in the log that are not applied; the empty entry is none (trap C1).
	r.PendingConfIndex = r.RaftLog.LastIndex()
	r.appendEntries([]eraftpb.Entry{{}})
	r.infof("%d became leader at term %d", r.id, r.Term)
}

// commitsConfChange tells whether the leader has committed a conf change since the commit index was
// known. It must have that on disk before it tells anyone: a peer that learns of its own removal
// may be gone at once, and its vote with it, and a leader that then crashed and forgot would still
// count by the old members. With two voters it would never lead again (trap C3).
func (r *Raft) commitsConfChange(known uint64) bool {
	return r.State == StateLeader && known < r.PendingConfIndex &&
		r.PendingConfIndex <= r.RaftLog.committed
}

// tick is one step of the clock.
func (r *Raft) tick() {
	r.contactElapsed++
	if r.graceTicks > 0 {
		r.graceTicks--
	}
	if r.State == StateLeader {
		r.tickLeader()
		return
	}
	r.electionElapsed++
	if r.electionElapsed >= r.randomizedElectionTimeout && r.promotable() {
		r.electionElapsed = 0
		_ = r.Step(eraftpb.Message{From: r.id, MsgType: eraftpb.MessageType_MsgHup})
	}
}

// expectElection never lowers the timeout below the smallest one, on which leases rely, and never
// raises it beyond the largest random one. It does raise it: a member that is to come second but
// had drawn a short timeout would split the vote of the first.
func (r *Raft) expectElection(delay int) {
	if r.State == StateFollower {
		r.randomizedElectionTimeout = r.electionTimeout + min(max(delay, 0), r.electionTimeout-1)
	}
}

func (r *Raft) tickLeader() {
	r.electionElapsed++
	r.heartbeatElapsed++
	if r.leadTransferee != None {
		r.transferElapsed++
		if r.transferElapsed >= r.electionTimeout {
			r.abortTransfer()
		}
	}
	for _, id := range r.sortedIDs() {
		pr := r.Prs[id]
		if r.lazyCommit && id != r.id && pr.toldCommit < min(pr.Match, r.RaftLog.committed) {
			r.sendAppend(id)
		}
		if pr.State != ProgressSnapshot {
			continue
		}
		// The report about the snapshot may be lost as well (trap D6).
		if pr.snapshotTicks++; pr.snapshotTicks >= r.snapshotTimeoutTicks {
			pr.PendingSnapshot = 0
			pr.becomeProbe()
		}
	}
	if r.electionElapsed >= r.electionTimeout {
		r.electionElapsed = 0
		if r.checkQuorum {
			_ = r.Step(eraftpb.Message{From: r.id, MsgType: eraftpb.MessageType_MsgCheckQuorum})
		}
		if r.State != StateLeader {
			return
		}
	}
	if r.heartbeatElapsed >= r.heartbeatTimeout {
		r.heartbeatElapsed = 0
		_ = r.Step(eraftpb.Message{From: r.id, MsgType: eraftpb.MessageType_MsgBeat})
	}
}

// Step takes in a message. Messages without a term are local: they come from tick, from the owner,
// or are requests handed on.
func (r *Raft) Step(m eraftpb.Message) error {
	if m.Term != 0 && !r.passTermGate(&m) {
		return nil
	}
	switch m.MsgType {
	case eraftpb.MessageType_MsgHup:
		r.hup()
		return nil
	case eraftpb.MessageType_MsgRequestVote, eraftpb.MessageType_MsgPreVote:
		r.handleVoteRequest(m)
		return nil
	case eraftpb.MessageType_MsgTransferLeader:
		r.handleTransferLeader(m)
		return nil
	}
	switch r.State {
	case StateLeader:
		return r.stepLeader(m)
	case StateCandidate, StatePreCandidate:
		return r.stepCandidate(m)
	case StateFollower:
		return r.stepFollower(m)
	}
	return nil
}

// passTermGate compares the terms, once for all messages (trap A2). It says whether the message
// still has to be looked at.
func (r *Raft) passTermGate(m *eraftpb.Message) bool {
	switch {
	case m.Term == lastTerm:
		// No group gets there; a term above it would be 0.
		return false
	case m.Term > r.Term:
		return r.passHigherTerm(m)
	case m.Term < r.Term:
		r.answerLowerTerm(m)
		return false
	}
	return true
}

func (r *Raft) passHigherTerm(m *eraftpb.Message) bool {
	switch m.MsgType {
	case eraftpb.MessageType_MsgRequestVote:
		if r.guardsLease() && !r.isForced(m) {
			// Somebody cannot hear the leader that we hear (thesis 4.2.3). The term stays.
			return false
		}
	case eraftpb.MessageType_MsgPreVote:
		// A question about a term, not the term.
		return true
	case eraftpb.MessageType_MsgPreVoteResponse:
		if !m.Reject {
			// The term is the one we asked for.
			return true
		}
	}
	lead := None
	if isFromLeader(m.MsgType) {
		lead = m.From
	}
	elapsed := 0
	if m.MsgType == eraftpb.MessageType_MsgRequestVote && r.State != StateLeader {
		// Only a vote that is given delays the own election (thesis figure 3.1). Else a node with a
		// fast clock and an old log, which cannot win, could keep everyone else from trying.
		elapsed = r.electionElapsed
	}
	r.becomeFollower(m.Term, lead)
	r.electionElapsed = elapsed
	return true
}

// answerLowerTerm tells a node of an older term about this one where that helps it on. Without an
// answer, pre-vote and check-quorum can leave a group without a leader for ever: nobody would take
// the other's messages seriously enough to learn the term (trap A5).
func (r *Raft) answerLowerTerm(m *eraftpb.Message) {
	switch m.MsgType {
	case eraftpb.MessageType_MsgAppend, eraftpb.MessageType_MsgHeartbeat,
		eraftpb.MessageType_MsgSnapshot:
		r.send(eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgAppendResponse, To: m.From,
			Index: m.Index, Reject: true, RejectHint: r.RaftLog.committed,
		})
	case eraftpb.MessageType_MsgRequestVote:
		r.answerVote(eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgRequestVoteResponse, To: m.From, Reject: true,
		})
	case eraftpb.MessageType_MsgPreVote:
		r.answerVote(eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgPreVoteResponse, To: m.From, Reject: true,
		})
	}
}

func isFromLeader(t eraftpb.MessageType) bool {
	switch t {
	case eraftpb.MessageType_MsgAppend, eraftpb.MessageType_MsgHeartbeat,
		eraftpb.MessageType_MsgSnapshot:
		return true
	}
	return false
}

// stepLeader is the leader's dispatch table.
func (r *Raft) stepLeader(m eraftpb.Message) error {
	switch m.MsgType {
	case eraftpb.MessageType_MsgBeat:
		r.broadcastHeartbeat()
	case eraftpb.MessageType_MsgPropose:
		return r.proposeMessage(m.Entries)
	case eraftpb.MessageType_MsgAppendResponse:
		r.handleAppendResponse(m)
	case eraftpb.MessageType_MsgHeartbeatResponse:
		r.handleHeartbeatResponse(m)
	case eraftpb.MessageType_MsgCheckQuorum:
		r.handleCheckQuorum()
	case eraftpb.MessageType_MsgUnreachable:
		r.handleUnreachable(m.From)
	case eraftpb.MessageType_MsgSnapStatus:
		r.handleSnapStatus(m.From, m.Reject)
	case eraftpb.MessageType_MsgAppend, eraftpb.MessageType_MsgHeartbeat,
		eraftpb.MessageType_MsgSnapshot:
		if m.Term != 0 {
			// Two leaders in a term. This one does not follow: it would cut off its own log.
			r.errorf("%d leads term %d and got %v from %d", r.id, r.Term, m.MsgType, m.From)
		}
	}
	return nil
}

// stepCandidate is the dispatch table of candidates and pre-candidates.
func (r *Raft) stepCandidate(m eraftpb.Message) error {
	switch m.MsgType {
	case eraftpb.MessageType_MsgPropose:
		return ErrProposalDropped
	case eraftpb.MessageType_MsgAppend, eraftpb.MessageType_MsgHeartbeat,
		eraftpb.MessageType_MsgSnapshot:
		// Somebody won this term (trap A3).
		r.becomeFollower(max(m.Term, r.Term), m.From)
		return r.stepFollower(m)
	case eraftpb.MessageType_MsgRequestVoteResponse, eraftpb.MessageType_MsgPreVoteResponse:
		r.handleVoteResponse(m)
	}
	return nil
}

// stepFollower is the follower's dispatch table.
func (r *Raft) stepFollower(m eraftpb.Message) error {
	switch m.MsgType {
	case eraftpb.MessageType_MsgPropose:
		return ErrProposalDropped
	case eraftpb.MessageType_MsgAppend:
		r.hearLeader(m.From)
		r.handleAppendEntries(m)
	case eraftpb.MessageType_MsgHeartbeat:
		r.hearLeader(m.From)
		r.handleHeartbeat(m)
	case eraftpb.MessageType_MsgSnapshot:
		r.hearLeader(m.From)
		r.handleSnapshot(m)
	case eraftpb.MessageType_MsgTimeoutNow:
		r.handleTimeoutNow(m.Round)
	}
	return nil
}

func (r *Raft) hearLeader(lead uint64) {
	r.Lead = lead
	r.electionElapsed = 0
	r.contactElapsed = 0
}

func (r *Raft) infof(format string, args ...any) {
	if r.logger != nil {
		r.logger.Infof(format, args...)
	}
}

func (r *Raft) errorf(format string, args ...any) {
	if r.logger != nil {
		r.logger.Errorf(format, args...)
	}
}
