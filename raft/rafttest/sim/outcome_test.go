package sim

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// TestOutcomeChecksBite: each way in which an operation can have no outcome, or two, is a
// violation.
func TestOutcomeChecksBite(t *testing.T) {
	entry := func(id, index, term uint64) *eraftpb.Entry {
		return &eraftpb.Entry{Index: index, Term: term, Data: putUint64(nil, id)}
	}
	for name, breakIt := range map[string]func(w *World, n *node, id uint64){
		"applied twice": func(w *World, _ *node, id uint64) {
			w.sawEntry(entry(id, 7, 1))
			w.sawEntry(entry(id, 9, 1))
		},
		"never, then applied": func(w *World, n *node, id uint64) {
			n.props = []proposal{{id: id, index: 7, term: 1}}
			n.answer(entry(0, 7, 2))
			w.sawEntry(entry(id, 8, 2))
		},
		"applied, then never": func(w *World, n *node, id uint64) {
			w.sawEntry(entry(id, 7, 1))
			n.props = []proposal{{id: id, index: 7, term: 1}}
			n.answer(entry(0, 7, 2))
		},
		"somebody else's outcome": func(w *World, n *node, id uint64) {
			n.props = []proposal{{id: id, index: 7, term: 1}}
			n.answer(entry(w.newID(), 7, 1))
		},
		"no outcome": func(w *World, n *node, id uint64) {
			n.props = []proposal{{id: id, index: 7, term: 1}}
			w.checkOutcomes()
		},
		"lost count": func(w *World, _ *node, _ uint64) {
			w.oracle.counts.Proposals++
			w.checkOutcomes()
		},
		"read left behind": func(_ *World, n *node, _ uint64) {
			n.reads = []read{{id: 1, term: 99}}
			n.checkReads()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &World{rng: rng{state: 1}, opt: Options{}}
			w.prof = drawProfile(1, w.rng.fork())
			w.start()
			require.Nil(t, w.violation)
			breakIt(w, w.nodes[1], w.newID())
			require.NotNil(t, w.violation)
			require.Equal(t, "I13", w.violation.Invariant)
		})
	}
}

// TestTransferThatHangsIsSeen: raft gives a transfer up after an election timeout; one that lasts
// longer is a violation.
func TestTransferThatHangsIsSeen(t *testing.T) {
	w := &World{rng: rng{state: 1}}
	w.prof = drawProfile(1, w.rng.fork())
	w.prof.Voters, w.prof.CheckQuorum, w.prof.FaultUS = 3, false, 0
	w.start()
	for w.theLeader() == nil && w.events < 100_000 {
		w.dispatch()
	}
	lead := w.theLeader()
	require.NotNil(t, lead)
	other := lead.id%3 + 1
	lead.rn.Raft.Prs[other].Match = 0
	lead.rn.TransferLeader(other)
	require.Equal(t, other, lead.rn.LeadTransferee())
	for range w.prof.ElectionTick {
		lead.checkTransfer()
	}
	require.Nil(t, w.violation)
	lead.checkTransfer()
	require.NotNil(t, w.violation)
	require.Equal(t, "I13", w.violation.Invariant)
}
