// Package feature numbers what a store may only do once every store of its cluster can.
//
// A replicated command of a new kind must not reach a store of an older version: that store would
// not carry it out, and its replicas would differ. So each store announces the features that it
// knows when it registers. The placement service puts a feature in force once all stores have
// announced it, and records that for good. Stores learn with the answers to their heartbeats what
// is in force, and serve it from then on. A store that does not know a feature in force is refused.
//
// A store notes what it announces in its data directory before it announces it. A program that does
// not know all of that refuses the directory: an older program cannot come back to data that
// entries of a new kind may reach.
package feature

import (
	"fmt"
	"slices"
	"strings"
)

// Set is a set of features. The bits are part of the on-disk and wire formats; do not change.
type Set uint64

const (
	// ConditionalOps: writes that are decided when they are applied, and deletes of ranges.
	ConditionalOps Set = 1 << iota
	// Transactions: transactions. Not served yet; the bit is reserved.
	Transactions
	// AsyncCommit: locks of transactions whose commit timestamp stores choose, and the command that
	// asks for them.
	AsyncCommit
	// Merge: regions go into their neighbours.
	Merge
	// TxnMerge: so do those of clusters of transactions. A store without it would not ask for a new
	// timestamp and for the safe point when its region has taken another one in.
	TxnMerge
	// TTL: keys that expire.
	TTL
)

// Supported is what this program knows. A feature is added here with the code that carries it out.
const Supported = ConditionalOps | AsyncCommit | Merge | TxnMerge | TTL

type named struct {
	bit  Set
	name string
}

// names are part of the data directory's format; do not change.
var names = []named{
	{ConditionalOps, "conditional-ops"}, {Transactions, "transactions"},
	{AsyncCommit, "async-commit"}, {Merge, "merge"},
	{TxnMerge, "merge-transactions"}, {TTL, "ttl"},
}

// Has tells whether all of other are in the set.
func (s Set) Has(other Set) bool { return s&other == other }

// Names are the features in the order of their bits. One that this program does not know is named
// by its bit.
func (s Set) Names() []string {
	var out []string
	for _, f := range names {
		if s.Has(f.bit) {
			out = append(out, f.name)
			s &^= f.bit
		}
	}
	for bit := 0; s != 0; bit, s = bit+1, s>>1 {
		if s&1 != 0 {
			out = append(out, fmt.Sprintf("feature-%d", bit))
		}
	}
	return out
}

func (s Set) String() string { return strings.Join(s.Names(), ", ") }

// Parse reads names. unknown are those that this program does not know.
func Parse(list []string) (s Set, unknown []string) {
	for _, n := range list {
		i := slices.IndexFunc(names, func(f named) bool { return f.name == n })
		if i < 0 {
			unknown = append(unknown, n)
			continue
		}
		s |= names[i].bit
	}
	return s, unknown
}
