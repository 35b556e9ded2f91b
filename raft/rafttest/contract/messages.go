package contract

import (
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

// messages checks what is sent; last is the end of the log once the Ready is persisted.
func (c *Checker) messages(v View, rd *raft.Ready, last uint64) error {
	early, late := rd.SplitMessages()
	if err := c.Split(v, rd.Messages, early, late); err != nil {
		return err
	}
	for i := range rd.Messages {
		if err := c.message(v, &rd.Messages[i], last); err != nil {
			return err
		}
	}
	return nil
}

// Split checks the parting of a Ready's messages into early and late ones, of a node in state v.
func (c *Checker) Split(v View, all, early, late []eraftpb.Message) error {
	for i := range early {
		m := &early[i]
		if v.Hard.Term != c.hard.Term || v.Hard.Vote != c.hard.Vote || m.Term != c.hard.Term {
			return broken("early", "%v of term %d, persisted %v", m.MsgType, m.Term, c.hard)
		}
		if !ofLeader(m.MsgType) || v.Soft.RaftState != raft.StateLeader {
			return broken("early", "%v of a %v", m.MsgType, v.Soft.RaftState)
		}
	}
	if len(early)+len(late) != len(all) {
		return broken("split", "%d and %d of %d", len(early), len(late), len(all))
	}
	for i := range all {
		switch {
		case len(early) > 0 && same(&early[0], &all[i]):
			early = early[1:]
		case len(late) > 0 && same(&late[0], &all[i]):
			late = late[1:]
		default:
			return broken("split", "%v to %d is neither early nor late", all[i].MsgType, all[i].To)
		}
	}
	return nil
}

// same tells messages apart as far as it matters for their order.
func same(a, b *eraftpb.Message) bool {
	return a.MsgType == b.MsgType && a.To == b.To && a.Term == b.Term && a.Index == b.Index &&
		a.Round == b.Round
}

func ofLeader(t eraftpb.MessageType) bool {
	return t == eraftpb.MessageType_MsgAppend || t == eraftpb.MessageType_MsgHeartbeat ||
		t == eraftpb.MessageType_MsgSnapshot
}

// message checks one message against the state that it is sent in.
func (c *Checker) message(v View, m *eraftpb.Message, last uint64) error {
	if m.MsgType == eraftpb.MessageType_MsgTransferLeader {
		// A request that is handed on is from who shall lead, and of no term.
		if m.To == v.ID || m.To == raft.None {
			return broken("sender", "%v to %d", m.MsgType, m.To)
		}
		return nil
	}
	// A pre-vote and its granting name the term that is asked about.
	asks := m.MsgType == eraftpb.MessageType_MsgPreVote ||
		m.MsgType == eraftpb.MessageType_MsgPreVoteResponse && !m.Reject
	if m.From != v.ID || m.To == v.ID || m.To == raft.None || m.Term > v.Hard.Term && !asks {
		return broken("sender", "%v from %d to %d of term %d", m.MsgType, m.From, m.To, m.Term)
	}
	now := m.Term == v.Hard.Term
	switch m.MsgType {
	case eraftpb.MessageType_MsgRequestVote:
		if now && v.Hard.Vote != v.ID {
			return broken("vote", "a candidate's vote is for %d", v.Hard.Vote)
		}
	case eraftpb.MessageType_MsgRequestVoteResponse:
		if now && !m.Reject && v.Hard.Vote != m.To {
			return broken("vote", "granted to %d, vote is for %d", m.To, v.Hard.Vote)
		}
	case eraftpb.MessageType_MsgAppendResponse:
		if now && !m.Reject && m.Index > last {
			return broken("ack", "of %d, persisted %d", m.Index, last)
		}
	case eraftpb.MessageType_MsgHeartbeat:
		if m.Commit > v.Hard.Commit {
			return broken("append", "heartbeat with commit %d, committed %d", m.Commit,
				v.Hard.Commit)
		}
	case eraftpb.MessageType_MsgAppend:
		return appendMessage(v, m)
	}
	return nil
}

func appendMessage(v View, m *eraftpb.Message) error {
	if m.Commit > v.Hard.Commit {
		return broken("append", "with commit %d, committed %d", m.Commit, v.Hard.Commit)
	}
	prev := m.LogTerm
	for i, e := range m.Entries {
		if e.Index != m.Index+1+uint64(i) || e.Term < prev || e.Term > m.Term {
			return broken("append", "entry %d of term %d at place %d behind %d/%d", e.Index, e.Term,
				i, m.Index, m.LogTerm)
		}
		prev = e.Term
	}
	return nil
}
