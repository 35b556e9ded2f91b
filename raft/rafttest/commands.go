package rafttest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/datadriven"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

// tick ID [N]: N ticks of a node's clock.
func (e *Env) tick(d *datadriven.TestData) error {
	return onNode(func(n *member, a []uint64) error {
		for range max(a[0], 1) {
			n.rn.Tick()
		}
		return nil
	})(e, d)
}

// propose ID DATA...: one proposal each.
func (e *Env) propose(d *datadriven.TestData) error {
	return onNode(func(n *member, _ []uint64) error {
		for _, arg := range d.CmdArgs[1:] {
			if err := n.rn.Propose([]byte(arg.Key)); err != nil {
				return err
			}
		}
		return nil
	})(e, d)
}

// conf ID add|learner|remove NODE: proposes a conf change.
func (e *Env) confChange(d *datadriven.TestData) error {
	return onNode(func(n *member, a []uint64) error {
		cc := eraftpb.ConfChange{NodeId: a[0]}
		switch d.CmdArgs[1].Key {
		case "learner":
			cc.ChangeType = eraftpb.ConfChangeType_AddLearnerNode
		case "remove":
			cc.ChangeType = eraftpb.ConfChangeType_RemoveNode
		}
		return n.rn.ProposeConfChange(cc)
	})(e, d)
}

// ready ID: handles the node's next Ready.
func (e *Env) ready(d *datadriven.TestData) error {
	ids, err := numbers(d)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !e.nodes[id].rn.HasReady() {
			fmt.Fprintf(&e.out, "ready %d: nothing\n", id)
			continue
		}
		e.process(id)
	}
	return nil
}

// deliver [to=ID] [from=ID] [type=T]: delivers what matches, in order.
func (e *Env) deliver(d *datadriven.TestData) error {
	for _, m := range e.takeMatching(d) {
		e.transmit(m)
	}
	return nil
}

// drop [to=ID] [from=ID] [type=T]: loses what matches.
func (e *Env) drop(d *datadriven.TestData) error {
	for _, m := range e.takeMatching(d) {
		fmt.Fprintf(&e.out, "dropped: %s\n", describeMessage(&m))
	}
	return nil
}

func (e *Env) takeMatching(d *datadriven.TestData) (taken []eraftpb.Message) {
	var to, from uint64
	var typ string
	for _, arg := range d.CmdArgs {
		ids := append(parseIDs(arg.Vals), 0)
		switch arg.Key {
		case "to":
			to = ids[0]
		case "from":
			from = ids[0]
		case "type":
			typ = arg.Vals[0]
		}
	}
	var rest []eraftpb.Message
	for _, m := range e.wire {
		if to != 0 && m.To != to || from != 0 && m.From != from ||
			typ != "" && m.MsgType.String() != typ {
			rest = append(rest, m)
		} else {
			taken = append(taken, m)
		}
	}
	e.wire = rest
	return taken
}

// wire: shows what is on its way.
func (e *Env) showWire(*datadriven.TestData) error {
	for i := range e.wire {
		fmt.Fprintf(&e.out, "%s\n", describeMessage(&e.wire[i]))
	}
	return nil
}

// send from=ID to=ID type=T [term= index= logterm= commit= hint= round=] [reject] [force]
// [entries=(INDEX/TERM,...)] [snapshot=INDEX/TERM members=(...)]: puts a message on the wire by
// hand, late or forged.
func (e *Env) inject(d *datadriven.TestData) error {
	m := eraftpb.Message{}
	fields := map[string]*uint64{
		"from": &m.From, "to": &m.To, "term": &m.Term, "index": &m.Index, "logterm": &m.LogTerm,
		"commit": &m.Commit, "hint": &m.RejectHint, "round": &m.Round,
	}
	for _, arg := range d.CmdArgs {
		if f := fields[arg.Key]; f != nil {
			ids := parseIDs(arg.Vals)
			if len(ids) != 1 {
				return fmt.Errorf("bad %s", arg.Key)
			}
			*f = ids[0]
			continue
		}
		switch arg.Key {
		case "type":
			t, ok := eraftpb.MessageType_value[arg.Vals[0]]
			if !ok {
				return fmt.Errorf("unknown type %s", arg.Vals[0])
			}
			m.MsgType = eraftpb.MessageType(t)
		case "reject":
			m.Reject = true
		case "force":
			m.Force = true
		case "entries":
			for _, v := range arg.Vals {
				ent := &eraftpb.Entry{}
				if _, err := fmt.Sscanf(v, "%d/%d", &ent.Index, &ent.Term); err != nil {
					return err
				}
				m.Entries = append(m.Entries, ent)
			}
		case "snapshot":
			meta := &eraftpb.SnapshotMetadata{ConfState: &eraftpb.ConfState{}}
			if _, err := fmt.Sscanf(arg.Vals[0], "%d/%d", &meta.Index, &meta.Term); err != nil {
				return err
			}
			m.Snapshot = &eraftpb.Snapshot{Metadata: meta}
		case "members":
			m.Snapshot.Metadata.ConfState.Nodes = parseIDs(arg.Vals)
		default:
			return fmt.Errorf("unknown field %s", arg.Key)
		}
	}
	e.transmit(m)
	return nil
}

// settle [quiet]: handles Readys and delivers messages until nothing is left.
func (e *Env) settle(d *datadriven.TestData) error {
	for rounds := 0; ; rounds++ {
		if rounds > 200 {
			return fmt.Errorf("the group does not come to rest")
		}
		busy := false
		for _, id := range e.ids() {
			for e.nodes[id].rn.HasReady() {
				busy = true
				e.process(id)
			}
		}
		wire := e.wire
		e.wire = nil
		for _, m := range wire {
			busy = true
			e.transmit(m)
		}
		if !busy {
			break
		}
	}
	if d.HasArg("quiet") {
		e.out.Reset()
	}
	return nil
}

// isolate ID...: messages of these nodes are lost.
func (e *Env) isolate(d *datadriven.TestData) error {
	ids, err := numbers(d)
	for _, id := range ids {
		e.down[id] = true
	}
	return err
}

// heal: no messages are lost any more.
func (e *Env) heal(*datadriven.TestData) error {
	clear(e.down)
	return nil
}

// restart ID: the node dies and comes back with what was persisted.
func (e *Env) restart(d *datadriven.TestData) error {
	return onNode(func(n *member, _ []uint64) error {
		return e.add(n.config.ID, n.config, n.storage, n.applied)
	})(e, d)
}

// status [ID...]: shows roles and, at a leader, what it knows of the members.
func (e *Env) status(d *datadriven.TestData) error {
	ids, err := numbers(d)
	if err != nil {
		ids = e.ids()
	}
	for _, id := range ids {
		st := e.nodes[id].rn.Status()
		fmt.Fprintf(&e.out, "%d: %v term=%d vote=%d lead=%d applied=%d commit=%d last=%d", id,
			st.State,
			st.Term, st.Vote, st.Lead, st.Applied, st.Commit, st.LastIndex)
		if st.LeadTransferee != 0 {
			fmt.Fprintf(&e.out, " transfer to %d", st.LeadTransferee)
		}
		e.out.WriteString("\n")
		if st.State != raft.StateLeader {
			continue
		}
		e.nodes[id].rn.VisitProgress(func(id uint64, pr raft.Progress) {
			fmt.Fprintf(&e.out, "   %d: %v\n", id, &pr)
		})
	}
	return nil
}

// log ID: shows the persisted log.
func (e *Env) showLog(d *datadriven.TestData) error {
	return onNode(func(n *member, _ []uint64) error {
		first, _ := n.storage.FirstIndex()
		last, _ := n.storage.LastIndex()
		ents, err := n.storage.Entries(first, last+1)
		if err != nil {
			return err
		}
		lines := strings.Split(describeEntries(ents), ", ")
		fmt.Fprintf(&e.out, "[%d..%d] %s\n", first, last, strings.Join(slices.DeleteFunc(lines,
			func(s string) bool { return s == "" }), ", "))
		return nil
	})(e, d)
}

// rounds ID: shows the heartbeat rounds.
func (e *Env) rounds(d *datadriven.TestData) error {
	return onNode(func(n *member, _ []uint64) error {
		fmt.Fprintf(&e.out, "sent %d, confirmed %d\n", n.rn.HeartbeatRound(), n.rn.QuorumRound())
		return nil
	})(e, d)
}

// compact makes a snapshot at an applied index and truncates the log there.
func (n *member) compact(a []uint64) error {
	cs := &eraftpb.ConfState{}
	n.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if pr.IsLearner {
			cs.Learners = append(cs.Learners, id)
		} else {
			cs.Nodes = append(cs.Nodes, id)
		}
	})
	if _, err := n.storage.CreateSnapshot(a[0], cs, nil); err != nil {
		return err
	}
	if err := n.storage.Compact(a[0]); err != nil {
		return err
	}
	n.rn.CompactTo(a[0])
	return nil
}
