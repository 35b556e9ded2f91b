// Package raft is a replicated log: one RawNode a member, one group of members a log. Whatever a
// majority of the members has on disk is committed, stays, and is handed out to all in the same
// order.
//
// It is a state machine and nothing else: no goroutine, clock, network, disk, lock, logger or
// chance of its own. Messages and ticks go in; messages to send and state to persist come out. So a
// test can play any history, and one seed gives one run (package rafttest/sim).
//
// What it has: elections with pre-vote and check-quorum, log replication with flow control,
// snapshots, membership changes one at a time, learners, leader transfer, linearizable reads and
// the rounds that leases stand on. What it has not: joint consensus, witnesses, reads at followers.
//
// References are to D. Ongaro, "Consensus: Bridging Theory and Practice" (the thesis) and to the
// Raft paper (sections). "Trap" refers to docs/raft.md, which lists what goes wrong elsewhere.
//
// # Use
//
// One owner, not several goroutines:
//
//	rn, err := raft.NewRawNode(&raft.Config{ID: 1, ElectionTick: 10, HeartbeatTick: 2, Storage: st})
//	for {
//		select {
//		case <-ticker:
//			rn.Tick()
//		case m := <-network:
//			rn.Step(m)
//		case data := <-clients:
//			rn.Propose(data)
//		}
//		for rn.HasReady() {
//			rd := rn.Ready()
//			early, late := rd.SplitMessages()
//			send(early)
//			persist(rd.Snapshot, rd.Entries, rd.HardState) // in one write; synced if rd.MustSync
//			send(late)
//			answerReads(rd.ReadStates)
//			apply(rd.CommittedEntries) // conf changes: rn.ApplyConfChange
//			rn.Advance(rd)
//		}
//	}
//
// # Duties of the owner
//
//  1. Persist before sending. A vote, a term or an acknowledgement that was sent and is forgotten
//     breaks the group. Only what SplitMessages calls early may leave before, and that only with
//     AckOnPersist.
//  2. Entries of a Ready replace everything from their first index on, also what was persisted.
//  3. A snapshot is installed before the entries and committed entries of its Ready; entries that
//     were handed out before and not applied are dropped.
//  4. The members that ApplyConfChange returns are persisted in the same write as the applied index,
//     and InitialState returns exactly those. A node that restarts with other members counts other
//     majorities.
//  5. Applied entries are never applied again: Config.Applied is the durable applied index.
//  6. The log may be truncated up to what is durably applied, never further; CompactTo follows.
//  7. A node's ID is never used again after its removal, nor after it lost its disk.
//  8. A leader that has applied its own removal keeps running until a round that it broadcast
//     afterwards is confirmed (QuorumRound): the others may need its vote to learn of it. With two
//     voters the leader hands over before it is removed. Any other node may end as soon as it has
//     applied its removal: the leader that told it of the commit has that on disk (MustSync).
//  9. Each ReadIndex has a fresh ID. The state machine is read once it has applied the answer's index.
//  10. A lease starts when a round was sent that is confirmed now, is measured by a monotonic clock,
//     and ends well before ElectionTick ticks. It needs CheckQuorum everywhere, VoteGraceTicks after a
//     restart, and a commit of the own term; it ends when LeadTransferee is set, and only a round
//     sent after that is over starts another.
//  11. ReportSnapshot and ReportUnreachable are hints. Lost ones cost time only.
//
// # A Ready
//
// Ready and Advance take turns. What a Ready promises: Entries are contiguous, leave no gap behind
// the log or the snapshot, and never replace what is committed; CommittedEntries are contiguous
// from one Ready to the next, each once, committed, and persisted by then or with this Ready; none
// come with a snapshot. SoftState and HardState are there when they changed. MustSync is set for
// entries, term, vote, snapshot, and a leader's commit of a conf change. No message tells of a
// term, vote or entry that is not persisted by this Ready or before it. Package rafttest/contract
// checks all of it.
//
// # Messages
//
//	MsgHup, MsgBeat, MsgCheckQuorum, MsgUnreachable, MsgSnapStatus, MsgPropose
//	                        local: from ticks and the owner; refused from the network
//	MsgAppend               leader: entries behind (Index, LogTerm), and the commit index
//	MsgAppendResponse       Index: has everything up to it; Reject: does not have Index, RejectHint is
//	                        where to try, LogTerm its term there
//	MsgHeartbeat            leader: lives; Commit as far as the follower is known to match; Round
//	MsgHeartbeatResponse    echoes Round
//	MsgSnapshot             leader: the state up to an index; answered by MsgAppendResponse
//	MsgRequestVote, -Response, MsgPreVote, -Response
//	                        candidate: (Index, LogTerm) of its last entry. Force, Round: see
//	                        MsgTimeoutNow. A pre-vote's Term is the one asked about
//	MsgTransferLeader       request to the leader: From shall lead; has no term
//	MsgTimeoutNow           leader to target: campaign now; Round is passed on with the votes
//
// # States
//
//	               no word of a leader                 no word, or told to
//	               (with PreVote)                      (without PreVote, MsgTimeoutNow)
//	+----------+ ----------------> +---------------+             |
//	| follower |                   | pre-candidate | --majority--+--> +-----------+
//	+----------+ <--refused, or a--+---------------+                  | candidate |
//	  ^      ^       leader               ^ timeout: again            +-----------+
//	  |      |                            +--------------------------    |     |
//	  |      +----- refused, or a leader, or a higher term --------------+     | majority
//	  |                                                                        v
//	  +-- a higher term; with CheckQuorum a quorum's silence ------------ +--------+
//	                                                                      | leader |
//	                                                                      +--------+
//
// A follower, in the leader's eyes (Progress):
//
//	probe      one append a round trip, until the follower says where the logs meet
//	replicate  pipelined, as far as the window goes; back to probe on a rejection or ReportUnreachable
//	snapshot   nothing but the snapshot; to probe or replicate on its answer, a report, or a timeout
//
// # Invariants
//
// At most one leader a term. applied <= committed <= last. Committed entries are never replaced.
// Entries are equal on all nodes where index and term are. A slot of memory that was handed out is
// never written again. All of them are checked by the simulator after every event.
package raft
