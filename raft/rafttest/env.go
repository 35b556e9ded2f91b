package rafttest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/datadriven"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
	"github.com/tinykv/tinykv/raft/rafttest/contract"
)

// firstIndex is the index of the snapshot that all groups of the transcripts start from, in term 1.
const firstIndex = 2

// Env is a few nodes and the messages between them, driven by the commands of a transcript. Nothing
// happens by itself. Owner: the test.
type Env struct {
	nodes map[uint64]*member
	// wire holds what was sent and not delivered, in order.
	wire []eraftpb.Message
	// down cuts a node off.
	down map[uint64]bool
	out  strings.Builder
}

type member struct {
	rn      *raft.RawNode
	storage *raft.MemoryStorage
	config  raft.Config
	watch   *contract.Checker
	applied uint64
	async   bool
}

// fixed makes every election timeout the same: transcripts have no chance in them.
type fixed struct{}

func (fixed) Intn(int) int { return 0 }

// New returns an environment without nodes.
func New() *Env { return &Env{nodes: map[uint64]*member{}, down: map[uint64]bool{}} }

// Handle carries out one command of a transcript and returns what happened.
func (e *Env) Handle(d *datadriven.TestData) string {
	e.out.Reset()
	handle, ok := handlers()[d.Cmd]
	if !ok {
		return fmt.Sprintf("unknown command %q\n", d.Cmd)
	}
	if err := handle(e, d); err != nil {
		fmt.Fprintf(&e.out, "error: %v\n", err)
	}
	if e.out.Len() == 0 {
		return "ok\n"
	}
	return e.out.String()
}

type handler func(*Env, *datadriven.TestData) error

// handlers is the table of the commands.
func handlers() map[string]handler {
	return map[string]handler{
		"group":    (*Env).group,
		"campaign": onNode(func(n *member, _ []uint64) error { return n.rn.Campaign() }),
		"transfer": onNode(func(n *member, a []uint64) error {
			n.rn.TransferLeader(a[0])
			return nil
		}),
		"read": onNode(func(n *member, a []uint64) error { return n.rn.ReadIndex(a[0]) }),
		"beat": onNode(func(n *member, _ []uint64) error {
			n.rn.BroadcastHeartbeat()
			return nil
		}),
		"applied": onNode(func(n *member, a []uint64) error {
			n.rn.AppliedTo(a[0])
			n.applied = a[0]
			return nil
		}),
		"unreach": onNode(func(n *member, a []uint64) error {
			n.rn.ReportUnreachable(a[0])
			return nil
		}),
		"snap-ok": onNode(func(n *member, a []uint64) error {
			n.rn.ReportSnapshot(a[0], true)
			return nil
		}),
		"snap-fail": onNode(func(n *member, a []uint64) error {
			n.rn.ReportSnapshot(a[0], false)
			return nil
		}),
		"compact": onNode((*member).compact),
		"tick":    (*Env).tick,
		"propose": (*Env).propose,
		"conf":    (*Env).confChange,
		"ready":   (*Env).ready,
		"deliver": (*Env).deliver,
		"drop":    (*Env).drop,
		"wire":    (*Env).showWire,
		"send":    (*Env).inject,
		"settle":  (*Env).settle,
		"isolate": (*Env).isolate,
		"heal":    (*Env).heal,
		"restart": (*Env).restart,
		"status":  (*Env).status,
		"log":     (*Env).showLog,
		"rounds":  (*Env).rounds,
	}
}

// onNode makes a command of a function on the node that the first argument names; the others are
// numbers.
func onNode(f func(n *member, args []uint64) error) handler {
	return func(e *Env, d *datadriven.TestData) error {
		ids, err := numbers(d)
		if err != nil {
			return err
		}
		n := e.nodes[ids[0]]
		if n == nil {
			return fmt.Errorf("no node %d", ids[0])
		}
		return f(n, append(ids[1:], 0))
	}
}

// numbers returns the arguments that are plain numbers.
func numbers(d *datadriven.TestData) ([]uint64, error) {
	var ids []uint64
	for _, arg := range d.CmdArgs {
		if id, err := strconv.ParseUint(arg.Key, 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%s needs a node", d.Cmd)
	}
	return ids, nil
}

// group makes nodes: group voters=(1,2,3) learners=(4) empty=(5) [options]. prevote=(3) and
// checkquorum=(3) are for some nodes only.
func (e *Env) group(d *datadriven.TestData) error {
	cs := &eraftpb.ConfState{}
	var empty, preVote, checkQuorum []uint64
	c := raft.Config{ElectionTick: 5, HeartbeatTick: 1, Rand: fixed{}}
	for _, arg := range d.CmdArgs {
		var v uint64
		if len(arg.Vals) > 0 {
			v, _ = strconv.ParseUint(arg.Vals[0], 10, 64)
		}
		switch arg.Key {
		case "voters":
			cs.Nodes = parseIDs(arg.Vals)
		case "learners":
			cs.Learners = parseIDs(arg.Vals)
		case "empty":
			empty = parseIDs(arg.Vals)
		case "prevote":
			c.PreVote = len(arg.Vals) == 0
			preVote = parseIDs(arg.Vals)
		case "checkquorum":
			c.CheckQuorum = len(arg.Vals) == 0
			checkQuorum = parseIDs(arg.Vals)
		case "ack-on-persist":
			c.AckOnPersist = true
		case "async-apply":
			c.AsyncApply = true
		case "unstable-only":
			c.UnstableOnly = true
		case "grace":
			c.VoteGraceTicks = int(v)
		case "max-size":
			c.MaxSizePerMsg = v
		case "inflight":
			c.MaxInflightMsgs = int(v)
		case "inflight-bytes":
			c.MaxInflightBytes = v
		case "uncommitted":
			c.MaxUncommittedBytes = v
		case "apply-bytes":
			c.MaxCommittedBytesPerReady = v
		default:
			return fmt.Errorf("unknown option %q", arg.Key)
		}
	}
	for _, id := range slices.Concat(cs.Nodes, cs.Learners) {
		st := raft.NewMemoryStorage()
		snap := eraftpb.Snapshot{
			Metadata: &eraftpb.SnapshotMetadata{Index: firstIndex, Term: 1, ConfState: cs},
		}
		if err := st.ApplySnapshot(snap); err != nil {
			return err
		}
		if err := st.SetHardState(eraftpb.HardState{Term: 1, Commit: firstIndex}); err != nil {
			return err
		}
		c := c
		c.PreVote = c.PreVote || slices.Contains(preVote, id)
		c.CheckQuorum = c.CheckQuorum || slices.Contains(checkQuorum, id)
		if err := e.add(id, c, st, firstIndex); err != nil {
			return err
		}
	}
	for _, id := range empty {
		if err := e.add(id, c, raft.NewMemoryStorage(), 0); err != nil {
			return err
		}
	}
	return nil
}

func (e *Env) add(id uint64, c raft.Config, st *raft.MemoryStorage, applied uint64) error {
	c.ID, c.Storage, c.Applied = id, st, applied
	rn, err := raft.NewRawNode(&c)
	if err != nil {
		return err
	}
	e.nodes[id] = &member{
		rn: rn, storage: st, config: c, applied: applied, async: c.AsyncApply,
		watch: contract.New(contract.ViewOf(id, rn), applied, st),
	}
	return nil
}

func parseIDs(vals []string) (ids []uint64) {
	for _, v := range vals {
		if id, err := strconv.ParseUint(v, 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

func (e *Env) ids() []uint64 {
	var ids []uint64
	for id := range e.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// process handles one Ready of a node as an owner does: persist, send, apply, advance.
func (e *Env) process(id uint64) {
	n := e.nodes[id]
	rd := n.rn.Ready()
	fmt.Fprintf(&e.out, "ready %d\n%s", id, describeReady(&rd))
	if err := n.watch.Ready(contract.ViewOf(id, n.rn), &rd); err != nil {
		fmt.Fprintf(&e.out, "BROKEN %v\n", err)
	}
	if !raft.IsEmptySnap(&rd.Snapshot) {
		_ = n.storage.ApplySnapshot(rd.Snapshot)
		n.applied = rd.Snapshot.Metadata.Index
	}
	_ = n.storage.Append(rd.Entries)
	if !raft.IsEmptyHardState(rd.HardState) {
		_ = n.storage.SetHardState(rd.HardState)
	}
	e.wire = append(e.wire, rd.Messages...)
	for i := range rd.CommittedEntries {
		ent := &rd.CommittedEntries[i]
		if ent.EntryType == eraftpb.EntryType_EntryConfChange && !n.async {
			var cc eraftpb.ConfChange
			if cc.Unmarshal(ent.Data) == nil {
				fmt.Fprintf(&e.out, "  members %s\n", describeConf(n.rn.ApplyConfChange(cc)))
			}
		}
		if !n.async {
			n.applied = ent.Index
		}
	}
	if err := n.watch.Advance(&rd); err != nil {
		fmt.Fprintf(&e.out, "BROKEN %v\n", err)
	}
	n.rn.Advance(rd)
}

// transmit delivers one message, or loses it.
func (e *Env) transmit(m eraftpb.Message) {
	n := e.nodes[m.To]
	switch {
	case n == nil:
		fmt.Fprintf(&e.out, "nobody: %s\n", describeMessage(&m))
	case e.down[m.From] || e.down[m.To]:
		fmt.Fprintf(&e.out, "lost: %s\n", describeMessage(&m))
	default:
		fmt.Fprintf(&e.out, "%s\n", describeMessage(&m))
		if err := n.rn.Step(m); err != nil {
			fmt.Fprintf(&e.out, "  %v\n", err)
		}
	}
}
