package listappend

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func of(ops ...Op) Txn { return Txn{Ops: ops} }

// final reads everything there is, so that the order of the lists is known.
func final(lists map[string][]uint64) Txn {
	t := Txn{}
	for k, l := range lists {
		t.Ops = append(t.Ops, Read(k, l...))
	}
	return t
}

// TestAnomalies: each kind by the smallest history that has it.
func TestAnomalies(t *testing.T) {
	with := func(x Txn, f func(*Txn)) Txn { f(&x); return x }
	for name, c := range map[string]struct {
		history []Txn
		want    []string
	}{
		"nothing": {nil, nil},
		"one after the other": {[]Txn{
			of(Append("x", 1)), of(Read("x", 1), Append("x", 2)),
			of(Read("x", 1, 2), Append("y", 3), Read("y", 3)),
		}, nil},
		"own appends are no part of what others have": {[]Txn{
			of(Append("x", 1), Read("x", 1), Append("x", 2), Read("x", 1, 2)), of(Read("x", 1, 2)),
		}, nil},
		"own append is not seen": {[]Txn{of(Append("x", 1), Read("x"))}, []string{"internal"}},
		"two reads differ": {
			[]Txn{of(Append("x", 1)), of(Read("x"), Read("x", 1))}, []string{"internal"},
		},
		"own append comes early": {[]Txn{of(Read("x", 1), Append("x", 1))}, []string{"internal"}},
		"garbage":                {[]Txn{of(Read("x", 9))}, []string{"garbage"}},
		"duplicate": {
			[]Txn{of(Append("x", 1)), of(Read("x", 1, 1))}, []string{"duplicate"},
		},
		"aborted read": {[]Txn{
			{Ops: []Op{Append("x", 1)}, Outcome: Failed}, of(Read("x", 1)),
		}, []string{"G1a"}},
		"unknown is no failure": {
			[]Txn{{Ops: []Op{Append("x", 1)}, Outcome: Unknown}, of(Read("x", 1))}, nil,
		},
		"intermediate read": {
			[]Txn{of(Append("x", 1), Append("x", 2)), of(Read("x", 1))}, []string{"G1b"},
		},
		"torn appends": {[]Txn{
			of(Append("x", 1), Append("x", 2)), of(Append("x", 3)), of(Read("x", 1, 3, 2)),
		}, []string{"G1b"}},
		"two orders": {[]Txn{
			of(Append("x", 1)), of(Append("x", 2)), of(Read("x", 1, 2)), of(Read("x", 2)),
		}, []string{"incompatible order"}},
		"dirty write": {[]Txn{
			of(Append("x", 1), Append("y", 2)), of(Append("x", 3), Append("y", 4)),
			final(map[string][]uint64{"x": {1, 3}, "y": {4, 2}}),
		}, []string{"G0"}},
		"circular information flow": {[]Txn{
			of(Append("x", 1), Read("y", 2)), of(Append("y", 2), Read("x", 1)),
		}, []string{"G1c"}},
		"read skew": {[]Txn{
			of(Append("x", 1), Append("y", 2)), of(Read("x", 1), Read("y")),
			final(map[string][]uint64{"x": {1}, "y": {2}}),
		}, []string{"G-single"}},
		"lost update": {[]Txn{
			of(Read("x"), Append("x", 1)), of(Read("x"), Append("x", 2)),
			final(map[string][]uint64{"x": {1, 2}}),
		}, []string{"G-single"}},
		"long fork": {[]Txn{
			of(Append("x", 1)), of(Append("y", 2)), of(Read("x", 1), Read("y")),
			of(Read("x"), Read("y", 2)),
			final(map[string][]uint64{"x": {1}, "y": {2}}),
		}, []string{"G-nonadjacent"}},
		"write skew": {[]Txn{
			of(Read("x"), Append("y", 1)), of(Read("y"), Append("x", 2)),
			final(map[string][]uint64{"x": {2}, "y": {1}}),
		}, nil},
		"a failed transaction depends on nobody": {[]Txn{
			of(Append("x", 1), Append("y", 2)),
			{Ops: []Op{Read("x", 1), Read("y")}, Outcome: Unknown},
			final(map[string][]uint64{"x": {1}, "y": {2}}),
		}, nil},
		"a commit behind the read is seen": {[]Txn{
			with(of(Append("x", 1)), func(t *Txn) { t.Start, t.Commit = 5, 10 }),
			with(of(Read("x", 1)), func(t *Txn) { t.Start = 9 }),
		}, []string{"future read"}},
		"a commit before the read is missed": {[]Txn{
			with(of(Append("x", 1)), func(t *Txn) { t.Start, t.Commit = 5, 10 }),
			with(of(Read("x")), func(t *Txn) { t.Start = 10 }),
		}, []string{"missed commit"}},
		"the second committer did not know of the first": {[]Txn{
			with(of(Append("x", 1)), func(t *Txn) { t.Start, t.Commit = 5, 10 }),
			with(of(Append("x", 2)), func(t *Txn) { t.Start, t.Commit = 9, 12 }),
			final(map[string][]uint64{"x": {1, 2}}),
		}, []string{"lost update"}},
		"acknowledged, and not behind it": {[]Txn{
			with(of(Append("x", 1)), func(t *Txn) {
				t.Start, t.Commit, t.Begun, t.Ended = 5, 10, 1, 2
			}),
			with(of(Read("y")), func(t *Txn) { t.Start, t.Begun, t.Ended = 9, 3, 4 }),
		}, []string{"real time"}},
		"at its very timestamp": {[]Txn{
			with(of(Append("x", 1)), func(t *Txn) {
				t.Start, t.Commit, t.Begun, t.Ended = 5, 10, 1, 2
			}),
			with(of(Read("x", 1), Append("x", 2)), func(t *Txn) {
				t.Start, t.Commit, t.Begun, t.Ended = 10, 12, 3, 4
			}),
			with(of(Read("x", 1, 2)), func(t *Txn) { t.Start, t.Begun = 12, 5 }),
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := Check(c.history)
			var got []string
			for _, a := range r.Anomalies {
				got = append(got, a.Kind)
			}
			require.Equal(t, c.want, got, "%v", r)
			require.Equal(t, name == "write skew", r.Skews > 0, "%v", r)
		})
	}
}

func TestValuesAreUnique(t *testing.T) {
	require.Panics(t, func() { Check([]Txn{of(Append("x", 1)), of(Append("x", 1))}) })
}

// database is a database of one version for each timestamp, with snapshot isolation.
type database struct {
	now     uint64
	commits []committed
}

type committed struct {
	at  uint64
	ops []Op
}

// at is a list at a timestamp.
func (d *database) at(key string, ts uint64) (list []uint64) {
	for _, c := range d.commits {
		for _, op := range c.ops {
			if c.at <= ts && op.Key == key && op.Value != 0 {
				list = append(list, op.Value)
			}
		}
	}
	return list
}

// newest is when a list was changed last.
func (d *database) newest(key string) (at uint64) {
	for _, c := range d.commits {
		for _, op := range c.ops {
			if op.Key == key && op.Value != 0 {
				at = c.at
			}
		}
	}
	return at
}

// history draws transactions that overlap in time, and are carried out with snapshot isolation.
func history(t *rapid.T) []Txn {
	d := &database{now: 1}
	names := []string{"x", "y", "z"}
	var open, out []Txn
	value := uint64(0)
	clock := int64(0)
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		d.now++
		clock++
		if len(open) == 0 || len(open) < 4 && rapid.Bool().Draw(t, "begin") {
			x := Txn{Start: d.now, Begun: clock}
			own := map[string][]uint64{}
			for range rapid.IntRange(1, 4).Draw(t, "ops") {
				k := rapid.SampledFrom(names).Draw(t, "key")
				if rapid.Bool().Draw(t, "append") {
					value++
					x.Ops = append(x.Ops, Append(k, value))
					own[k] = append(own[k], value)
				} else {
					x.Ops = append(x.Ops, Read(k, append(d.at(k, x.Start), own[k]...)...))
				}
			}
			open = append(open, x)
			continue
		}
		n := rapid.IntRange(0, len(open)-1).Draw(t, "end")
		x := open[n]
		open = slices.Delete(open, n, n+1)
		writes := false
		for _, op := range x.Ops {
			if op.Value != 0 {
				writes = true
				if d.newest(op.Key) > x.Start {
					x.Outcome = Failed
				}
			}
		}
		if x.Outcome != Failed && writes {
			x.Commit = d.now
			d.commits = append(d.commits, committed{d.now, x.Ops})
			if rapid.IntRange(0, 4).Draw(t, "lost") == 0 {
				x.Outcome, x.Commit = Unknown, 0
			}
		}
		clock++
		x.Ended = clock
		out = append(out, x)
	}
	d.now++
	last := Txn{Start: d.now, Begun: clock + 1}
	for _, k := range names {
		last.Ops = append(last.Ops, Read(k, d.at(k, d.now)...))
	}
	return append(out, last)
}

// TestSnapshotIsolationIsNeverBlamed: of whatever history a database with snapshot isolation has.
func TestSnapshotIsolationIsNeverBlamed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Check(history(t))
		require.Empty(t, r.Anomalies, "%v", r)
	})
}

// TestBrokenHistoriesAreFound: one read of a history misses the newest element of its list. The
// final read stays, so it must be found, with or without timestamps unless nobody can tell.
func TestBrokenHistoriesAreFound(t *testing.T) {
	broken, byCycle := 0, 0
	rng := rand.New(rand.NewPCG(1, 2))
	rapid.Check(t, func(t *rapid.T) {
		h := history(t)
		var places [][2]int
		for n, x := range h[:len(h)-1] {
			for i, op := range x.Ops {
				if len(op.List) > 0 {
					places = append(places, [2]int{n, i})
				}
			}
		}
		if len(places) == 0 {
			return
		}
		at := places[rng.IntN(len(places))]
		op := &h[at[0]].Ops[at[1]]
		op.List = op.List[:len(op.List)-1]
		if h[at[0]].Outcome != Committed {
			return
		}
		r := Check(h)
		require.True(t, len(r.Anomalies) > 0 || unknownEnd(h, op), "%v: %v", h, r)
		broken++
		for i := range h {
			h[i].Start, h[i].Commit, h[i].Begun, h[i].Ended = 0, 0, 0, 0
		}
		if len(Check(h).Anomalies) > 0 {
			byCycle++
		}
	})
	t.Logf("%d broken histories, %d are found without timestamps", broken, byCycle)
	require.Positive(t, byCycle)
}

// unknownEnd tells whether what a read has lost is of a transaction whose timestamp nobody knows.
func unknownEnd(h []Txn, broken *Op) bool {
	order := h[len(h)-1]
	for _, op := range order.Ops {
		if op.Key != broken.Key {
			continue
		}
		lost := op.List[len(broken.List)]
		for _, x := range h {
			if slices.ContainsFunc(x.Ops, func(o Op) bool {
				return o.Key == broken.Key && o.Value == lost
			}) {
				return x.Outcome == Unknown
			}
		}
	}
	return false
}
