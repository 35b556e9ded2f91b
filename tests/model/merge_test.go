package model

import (
	"flag"
	"testing"
)

var long = flag.Bool("long", false,
	"search the large configurations, which take minutes and some GiB")

// base gives a model what most have.
func base(m model) *model {
	m.terms, m.tries, m.list = max(1, m.terms), max(1, m.tries), max(1, m.list)
	m.versionS, m.versionT = max(1, m.versionS), max(1, m.versionT)
	return &m
}

// configuration is a model of the protocol as it is, and how much of it is searched.
type configuration struct {
	name      string
	m         model
	limit     int    // states; 0: all
	endsEvery uint64 // from each n-th state: does the merge end
}

var short = []configuration{
	{name: "one merge", m: model{}, endsEvery: 1},
	{name: "a write", m: model{limits: used{writes: 1}}, endsEvery: 1},
	{name: "second term", m: model{terms: 2}, endsEvery: 4},
	{name: "split of T", m: model{terms: 2, limits: used{splits: 1}}, endsEvery: 16},
	{
		name: "split back, another source", m: model{limits: used{backs: 1, sources: 2}},
		endsEvery: 4,
	},
	{
		name: "T's replica removed and added", m: model{limits: used{removes: 1, adds: 1}},
		endsEvery: 8,
	},
	{name: "two merges", m: model{tries: 2, limits: used{splits: 1}}, endsEvery: 16},
	{
		name: "S far ahead of T", m: model{versionS: 7, limits: used{splits: 1, backs: 1}},
		endsEvery: 4,
	},
	{
		name: "T far ahead of S", m: model{versionT: 7, limits: used{splits: 1, backs: 1}},
		endsEvery: 4,
	},
	{name: "direct rollback", m: model{terms: 2, direct: true}, endsEvery: 8},
}

var large = []configuration{
	{
		name: "T's replica removed and added, second term",
		m:    model{terms: 2, limits: used{removes: 1, adds: 1}}, endsEvery: 64,
	},
	{
		name: "third term, a write, a split",
		m:    model{terms: 3, limits: used{writes: 1, splits: 1}}, endsEvery: 1024,
	},
	{
		name: "all changes of T", m: model{limits: used{backs: 1, sources: 1, removes: 1, adds: 1}},
		endsEvery: 64,
	},
	{
		name: "two merges, second term, a split",
		m:    model{terms: 2, tries: 2, limits: used{splits: 1}}, endsEvery: 256,
	},
	{
		name: "T moves away", m: model{outside: true, limits: used{removes: 3, adds: 1}},
		endsEvery: 256,
	},
	{
		name: "list of two, other sources", m: model{list: 2, limits: used{backs: 1, sources: 3}},
		endsEvery: 16,
	},
	{name: "two merges, all changes of T", m: model{tries: 2,
		limits: used{splits: 1, backs: 1, sources: 1, removes: 1, adds: 1}}, limit: 20_000_000,
		endsEvery: 4096},
}

func TestMergeModel(t *testing.T) {
	of := short
	if *long {
		of = append(of, large...)
	}
	for _, c := range of {
		t.Run(c.name, func(t *testing.T) {
			s := search{m: base(c.m), limit: c.limit, endsEvery: c.endsEvery}
			r := s.run()
			t.Log(r)
			if r.broken != "" || !r.complete && c.limit == 0 {
				t.Error("the protocol breaks an invariant, or not all of it was searched")
			}
		})
	}
}
