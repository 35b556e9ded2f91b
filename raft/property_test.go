package raft

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// The commit index is the largest index that a majority has: counted naively.
func TestQuorumValueIsTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		matches := rapid.SliceOfN(rapid.Uint64Range(0, 12), 0, 9).Draw(t, "matches")
		want := uint64(0)
		for candidate := uint64(0); candidate <= 12; candidate++ {
			have := 0
			for _, m := range matches {
				if m >= candidate {
					have++
				}
			}
			if len(matches) > 0 && have > len(matches)/2 {
				want = candidate
			}
		}
		if got := quorumValue(slices.Clone(matches)); got != want {
			t.Fatalf("quorum of %v: %d, want %d", matches, got, want)
		}
	})
}

// Two majorities of groups that differ by one voter meet (thesis 4.1): the reason for one conf
// change at a time.
func TestQuorumsOfNeighbouringGroupsMeet(t *testing.T) {
	for n := 1; n < 12; n++ {
		if quorum(n)+quorum(n+1) <= n+1 {
			t.Fatalf("majorities of %d and %d voters need not meet", n, n+1)
		}
	}
}

// An election is won and lost as a naive count says, learners and strangers left out.
func TestTallyIsTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		voters := rapid.IntRange(1, 7).Draw(t, "voters")
		learners := rapid.IntRange(0, 3).Draw(t, "learners")
		var ids []uint64
		for id := 1; id <= voters+learners; id++ {
			ids = append(ids, uint64(id))
		}
		r := mkRaft(1, ids)
		for id := voters + 1; id <= voters+learners; id++ {
			r.Prs[uint64(id)].IsLearner = true
		}
		votes := rapid.MapOf(rapid.Uint64Range(1, 12), rapid.Bool()).Draw(t, "votes")
		r.votes = votes
		yes, no := 0, 0
		for id := 1; id <= voters; id++ {
			if v, ok := votes[uint64(id)]; ok && v {
				yes++
			} else if ok {
				no++
			}
		}
		want := votePending
		if 2*yes > voters {
			want = voteWon
		} else if 2*(voters-no) <= voters {
			want = voteLost
		}
		if got := r.tally(); got != want {
			t.Fatalf("%d voters, votes %v: %v, want %v", voters, votes, got, want)
		}
	})
}

// naiveLog is a log that keeps everything in one slice, index 0 unused.
type naiveLog struct {
	ents                       []eraftpb.Entry
	stabled, committed, handed uint64
	first                      uint64
}

func (n *naiveLog) last() uint64 { return uint64(len(n.ents)) - 1 }

// A RaftLog over a storage is the naive log, in both settings, whatever is done to it.
func TestLogIsTheNaiveOne(t *testing.T) {
	for _, unstableOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("unstableOnly=%v", unstableOnly), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { checkLog(t, unstableOnly) })
		})
	}
}

func checkLog(t *rapid.T, unstableOnly bool) {
	st := NewMemoryStorage()
	l, err := openLog(st, unstableOnly)
	if err != nil {
		t.Fatal(err)
	}
	l.cacheBytes = rapid.Uint64Range(0, 60).Draw(t, "cache")
	n := &naiveLog{ents: make([]eraftpb.Entry, 1), first: 1}
	term := uint64(1)
	persist := func(_ *rapid.T) {
		un := l.unstableEntries()
		if err := st.Append(un); err != nil {
			t.Fatal(err)
		}
		if len(un) > 0 {
			l.stableTo(un[len(un)-1].Index, un[len(un)-1].Term)
			n.stabled = n.last()
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"append": func(t *rapid.T) {
			for range rapid.IntRange(1, 5).Draw(t, "n") {
				e := eraftpb.Entry{Index: n.last() + 1, Term: term, Data: []byte{byte(n.last())}}
				l.append(e)
				n.ents = append(n.ents, e)
			}
		},
		"replace": func(t *rapid.T) {
			if n.committed >= n.last() {
				return
			}
			term++
			at := rapid.Uint64Range(n.committed+1, n.last()).Draw(t, "at")
			e := eraftpb.Entry{Index: at, Term: term, Data: []byte{0xff}}
			l.truncateAndAppend([]*eraftpb.Entry{&e})
			n.ents = append(slices.Clone(n.ents[:at]), e)
			n.stabled = min(n.stabled, at-1)
		},
		"persist": persist,
		"commit": func(t *rapid.T) {
			to := rapid.Uint64Range(0, n.last()+2).Draw(t, "to")
			l.commitTo(to)
			n.committed = max(n.committed, min(to, n.last()))
		},
		"apply": func(_ *rapid.T) {
			persist(t)
			ents := l.nextEnts()
			want := n.ents[n.handed+1 : n.committed+1]
			if len(ents) != len(want) {
				t.Fatalf("%d to apply, want %d", len(ents), len(want))
			}
			for i := range ents {
				same(t, ents[i], want[i])
			}
			l.appliedTo(n.committed)
			n.handed = n.committed
		},
		"compact": func(t *rapid.T) { compactBoth(t, st, l, n) },
		"":        func(t *rapid.T) { compareLogs(t, l, n, unstableOnly) },
	})
}

func compactBoth(t *rapid.T, st *MemoryStorage, l *RaftLog, n *naiveLog) {
	limit := min(n.handed, n.stabled)
	if limit < n.first {
		return
	}
	to := rapid.Uint64Range(n.first, limit).Draw(t, "to")
	if err := st.Compact(to); err != nil {
		t.Fatal(err)
	}
	l.compactTo(to)
	n.first = to + 1
}

func same(t *rapid.T, got, want eraftpb.Entry) {
	if got.Index != want.Index || got.Term != want.Term || string(got.Data) != string(want.Data) {
		t.Fatalf("entry %v, want %v", &got, &want)
	}
}

func compareLogs(t *rapid.T, l *RaftLog, n *naiveLog, unstableOnly bool) {
	if l.LastIndex() != n.last() || l.lastTerm() != n.ents[n.last()].Term {
		t.Fatalf("last %d/%d, want %d/%d", l.LastIndex(), l.lastTerm(), n.last(),
			n.ents[n.last()].Term)
	}
	if l.firstIndex() != n.first || l.committed != n.committed || l.stabled != n.stabled {
		t.Fatalf("first %d committed %d stabled %d, want %d %d %d", l.firstIndex(), l.committed,
			l.stabled,
			n.first, n.committed, n.stabled)
	}
	for i := n.first - 1; i <= n.last(); i++ {
		if term, err := l.Term(i); err != nil || term != n.ents[i].Term {
			t.Fatalf("term of %d: %d %v, want %d", i, term, err, n.ents[i].Term)
		}
	}
	if n.last() >= n.first {
		lo := rapid.Uint64Range(n.first, n.last()).Draw(t, "lo")
		hi := rapid.Uint64Range(lo, n.last()).Draw(t, "hi") + 1
		limit := rapid.Uint64Range(0, 30).Draw(t, "limit")
		ents, err := l.slice(lo, hi, limit)
		if err != nil || len(ents) == 0 || uint64(len(ents)) > hi-lo {
			t.Fatalf("slice [%d,%d): %d entries, %v", lo, hi, len(ents), err)
		}
		for i := range ents {
			same(t, ents[i], n.ents[lo+uint64(i)])
		}
		if limit == 0 && uint64(len(ents)) != hi-lo {
			t.Fatalf("slice [%d,%d) without a limit: %d entries", lo, hi, len(ents))
		}
	}
	var bytes uint64
	for i := range l.entries {
		bytes += entrySize(&l.entries[i])
	}
	if unstableOnly && bytes != l.memBytes {
		t.Fatalf("%d bytes in memory, counted %d", bytes, l.memBytes)
	}
}

// What was handed out of the log stays as it was, whatever is done to the log (trap Q1).
func TestSlicesOfTheLogAreNeverWrittenTo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLog(NewMemoryStorage())
		type held struct {
			ents []eraftpb.Entry
			want string
		}
		var all []held
		term := uint64(1)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if l.LastIndex() > l.committed && rapid.Bool().Draw(t, "replace") {
				term++
				at := rapid.Uint64Range(l.committed+1, l.LastIndex()).Draw(t, "at")
				l.truncateAndAppend([]*eraftpb.Entry{
					{Index: at, Term: term}, {Index: at + 1, Term: term},
				})
			} else {
				l.append(eraftpb.Entry{Index: l.LastIndex() + 1, Term: term})
			}
			ents := l.unstableEntries()
			all = append(all, held{ents, fmt.Sprint(ents)})
		}
		for i, h := range all {
			if got := fmt.Sprint(h.ents); got != h.want {
				t.Fatalf("slice %d changed: %s, was %s", i, got, h.want)
			}
		}
	})
}

// The window of appends is a queue: the naive one.
func TestWindowIsTheNaiveQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in inflights
		var naive []inflight
		next := uint64(1)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				next += rapid.Uint64Range(1, 3).Draw(t, "gap")
				bytes := rapid.Uint64Range(0, 9).Draw(t, "bytes")
				in.add(next, bytes)
				naive = append(naive, inflight{next, bytes})
			},
			"free": func(t *rapid.T) {
				to := rapid.Uint64Range(0, next+1).Draw(t, "to")
				in.freeTo(to)
				naive = slices.DeleteFunc(naive, func(f inflight) bool { return f.index <= to })
			},
			"free first": func(_ *rapid.T) {
				in.freeFirst()
				naive = naive[min(1, len(naive)):]
			},
			"reset": func(_ *rapid.T) { in.reset(); naive = nil },
			"": func(t *rapid.T) {
				var bytes uint64
				for _, f := range naive {
					bytes += f.bytes
				}
				if in.n != len(naive) || in.bytes != bytes {
					t.Fatalf("%d appends, %d bytes; want %d, %d", in.n, in.bytes, len(naive), bytes)
				}
				limit := rapid.IntRange(0, 5).Draw(t, "limit")
				if got, want := in.full(limit, 0), limit > 0 && len(naive) >= limit; got != want {
					t.Fatalf("full at %d with %d: %v", limit, len(naive), got)
				}
			},
		})
	})
}

// Whatever answers come, in whatever order, Next stays above Match, and Match never goes back
// (trap B-9).
func TestProgressKeepsItsInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pr := &Progress{Next: 5}
		match := uint64(0)
		index := rapid.Uint64Range(0, 20)
		t.Repeat(map[string]func(*rapid.T){
			"ack": func(t *rapid.T) { pr.maybeUpdate(index.Draw(t, "index")) },
			"reject": func(t *rapid.T) {
				pr.maybeDecrTo(index.Draw(t, "index"), index.Draw(t, "hint"))
			},
			"sent": func(t *rapid.T) {
				pr.sent(pr.Next+rapid.Uint64Range(0, 3).Draw(t, "n"), 1, true)
			},
			"probe":     func(_ *rapid.T) { pr.becomeProbe() },
			"replicate": func(_ *rapid.T) { pr.becomeReplicate() },
			"snapshot":  func(t *rapid.T) { pr.becomeSnapshot(pr.Match + index.Draw(t, "index")) },
			"": func(t *rapid.T) {
				if pr.Match < match || pr.Next <= pr.Match {
					t.Fatalf("%v, match was %d", pr, match)
				}
				if pr.PendingSnapshot != 0 && pr.State != ProgressSnapshot {
					t.Fatalf("%v", pr)
				}
				match = pr.Match
			},
		})
	})
}

// The hint of a follower is never above what may match and never below what is committed; searching
// it term by term is the naive search.
func TestConflictHintIsTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ts []uint64
		term := uint64(1)
		for range rapid.IntRange(1, 20).Draw(t, "entries") {
			term += rapid.Uint64Range(0, 2).Draw(t, "step")
			ts = append(ts, term)
		}
		l := newLog(storageWith(terms(ts...)))
		index := rapid.Uint64Range(0, 25).Draw(t, "index")
		want := rapid.Uint64Range(0, term+2).Draw(t, "term")
		floor := rapid.Uint64Range(0, uint64(len(ts))).Draw(t, "floor")
		naive := min(index, uint64(len(ts)))
		for naive > floor && ts[naive-1] > want {
			naive--
		}
		naive = max(naive, floor)
		if got := l.findConflictByTerm(index, want, floor); got != naive {
			t.Fatalf("log %v, index %d, term %d, floor %d: %d, want %d", ts, index, want, floor,
				got, naive)
		}
	})
}
