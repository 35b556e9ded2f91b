package raft

import (
	"fmt"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// duty is what a message does to a node in a role, in words: what is sent for it and what becomes
// of the node. "-" is nothing.
type duty struct{ follower, preCandidate, candidate, leader string }

// duties has a row for each message type that there is. The node is 1 of 3, at term 1, with an
// empty log; its leader as a follower is 2, so nobody else gets its vote of that term. Messages
// come from 2 and are of the node's term.
var duties = map[eraftpb.MessageType]duty{
	tHup: {
		"candidate: 2 MsgRequestVote", "candidate: 2 MsgRequestVote", "2 MsgRequestVote", "-",
	},
	tBeat:  {"-", "-", "-", "2 MsgHeartbeat"},
	tCheck: {"-", "-", "-", "follower"},
	tProp: {
		"refused", "refused", "refused", "last 2: 2 MsgAppend",
	},
	tApp: {
		"last 1: 1 MsgAppendResponse", "follower of 2, last 1: 1 MsgAppendResponse",
		"follower of 2, last 1: 1 MsgAppendResponse", "-",
	},
	tAppResp: {"-", "-", "-", "commit 1: 2 MsgAppend"},
	tVote: {
		"1 MsgRequestVoteResponse reject", "vote 2: 1 MsgRequestVoteResponse",
		"1 MsgRequestVoteResponse reject", "1 MsgRequestVoteResponse reject",
	},
	tVoteResp: {"-", "-", "leader of 1, last 1: 2 MsgAppend", "-"},
	tPreVote: {
		"1 MsgPreVoteResponse", "1 MsgPreVoteResponse", "1 MsgPreVoteResponse",
		"1 MsgPreVoteResponse reject",
	},
	tPreResp: {"-", "candidate: 2 MsgRequestVote", "-", "-"},
	tSnap: {
		"last 9, commit 9: 1 MsgAppendResponse",
		"follower of 2, last 9, commit 9: 1 MsgAppendResponse",
		"follower of 2, last 9, commit 9: 1 MsgAppendResponse", "-",
	},
	tHeartbeat: {
		"1 MsgHeartbeatResponse", "follower of 2: 1 MsgHeartbeatResponse",
		"follower of 2: 1 MsgHeartbeatResponse", "-",
	},
	tHeartResp:                               {"-", "-", "-", "1 MsgAppend"},
	tTransfer:                                {"1 MsgTransferLeader", "-", "-", "1 MsgAppend"},
	tNow:                                     {"candidate: 2 MsgRequestVote", "-", "-", "-"},
	eraftpb.MessageType_MsgSnapStatus:        {"-", "-", "-", "-"},
	eraftpb.MessageType_MsgUnreachable:       {"-", "-", "-", "probe"},
	eraftpb.MessageType_MsgReadIndex:         {"-", "-", "-", "-"},
	eraftpb.MessageType_MsgReadIndexResponse: {"-", "-", "-", "-"},
}

// dutyMessage is a message of a type that means something to who has to heed it.
func dutyMessage(typ eraftpb.MessageType) eraftpb.Message {
	m := eraftpb.Message{MsgType: typ, From: 2, To: 1, Term: 1}
	switch typ {
	case tHup, tBeat, tCheck, eraftpb.MessageType_MsgUnreachable, eraftpb.MessageType_MsgSnapStatus,
		tTransfer:
		m.Term = 0
	case tProp:
		m.Term, m.Entries = 0, []*eraftpb.Entry{{Data: []byte("x")}}
	case tApp:
		m.Entries = []*eraftpb.Entry{{Index: 1, Term: 1}}
	case tAppResp:
		m.Index = 1
	case tPreVote, tPreResp:
		m.Term = 2
	case tSnap:
		m.Snapshot = snapAt(9, 1, 1, 2, 3)
	}
	return m
}

// tell puts what changed, and what is sent, into words.
func tell(r *Raft, before Status, beforeProbe ProgressState, err error) string {
	if err != nil {
		return "refused"
	}
	var parts, sent string
	add := func(format string, args ...any) {
		if parts != "" {
			parts += ", "
		}
		parts += fmt.Sprintf(format, args...)
	}
	if r.State != before.State {
		if add("%v", r.State); r.Lead != None {
			parts += fmt.Sprintf(" of %d", r.Lead)
		}
	}
	if r.Vote != before.Vote && r.Vote != r.id && r.Vote != None {
		add("vote %d", r.Vote)
	}
	if r.RaftLog.LastIndex() != before.LastIndex {
		add("last %d", r.RaftLog.LastIndex())
	}
	if r.RaftLog.committed != before.Commit {
		add("commit %d", r.RaftLog.committed)
	}
	if r.State == StateLeader && before.State == StateLeader && r.Prs[2].State == ProgressProbe &&
		beforeProbe != ProgressProbe {
		add("probe")
	}
	if msgs := take(r); len(msgs) > 0 {
		sent = fmt.Sprintf("%d %v", len(msgs), msgs[0].MsgType)
		if msgs[0].Reject {
			sent += " reject"
		}
	}
	switch {
	case parts == "" && sent == "":
		return "-"
	case parts == "":
		return sent
	case sent == "":
		return parts
	}
	return parts + ": " + sent
}

// TestEveryMessageTypeHasItsDuty2AA: each message type, to each role.
func TestEveryMessageTypeHasItsDuty2AA(t *testing.T) {
	roles := []struct {
		name string
		make func(*Raft)
		want func(duty) string
	}{
		{"follower", func(r *Raft) { r.becomeFollower(1, 2) }, func(d duty) string {
			return d.follower
		}},
		{"pre-candidate", func(r *Raft) {
			r.becomeFollower(1, None)
			r.becomePreCandidate()
			r.votes[1] = true
		}, func(d duty) string { return d.preCandidate }},
		{"candidate", (*Raft).becomeCandidate, func(d duty) string { return d.candidate }},
		{"leader", func(r *Raft) {
			r.becomeCandidate()
			r.becomeLeader()
			r.Prs[2].becomeReplicate()
		}, func(d duty) string { return d.leader }},
	}
	for number, name := range eraftpb.MessageType_name {
		d, ok := duties[eraftpb.MessageType(number)]
		if !ok {
			t.Errorf("nobody has said what %s does", name)
			continue
		}
		for _, role := range roles {
			r := mkRaft(1, []uint64{1, 2, 3})
			role.make(r)
			take(r)
			before, state := (&RawNode{Raft: r}).Status(), r.Prs[2].State
			err := r.Step(dutyMessage(eraftpb.MessageType(number)))
			if got, want := tell(r, before, state, err), role.want(d); got != want {
				t.Errorf("%s to a %s: %q, want %q", name, role.name, got, want)
			}
		}
	}
}

// TestThousandGroupsElectSoon2AA: a store comes back with a thousand groups at once (trap A4).
// Every one has a leader within three of the longest timeouts, as their timeouts differ and are
// drawn again.
func TestThousandGroupsElectSoon2AA(t *testing.T) {
	worst := 0
	for group := range uint64(1000) {
		c := mkCluster(t, 3)
		for id, r := range c.nodes {
			r.rand = &splitMix{state: group*31 + id}
			r.becomeFollower(1, None)
		}
		ticks := 0
		for c.nodes[1].State != StateLeader && c.nodes[2].State != StateLeader &&
			c.nodes[3].State != StateLeader {
			// All clocks tick before anything is delivered, so that equal timeouts do split the
			// votes.
			for _, id := range c.ids() {
				c.nodes[id].tick()
			}
			var out []eraftpb.Message
			for _, id := range c.ids() {
				out = append(out, take(c.nodes[id])...)
			}
			c.send(out...)
			ticks++
			if ticks > 6*10 {
				t.Fatalf("group %d has no leader after %d ticks", group, ticks)
			}
		}
		worst = max(worst, ticks)
	}
	t.Logf("the last group has its leader after %d ticks", worst)
}
