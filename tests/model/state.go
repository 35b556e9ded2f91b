package model

import (
	"fmt"
	"math/bits"
)

const (
	voters     = 3 // stores of S; T begins there
	stores     = 4 // with the one outside
	logRoom    = 9
	targetRoom = 8
	attempts   = 2
)

// mode is what a replica of S is.
type mode uint8

const (
	normal mode = iota
	merging
	merged // a tombstone that says S went into T
	gone   // destroyed, its data cleared
)

// entry of S's log: kind, then three bits of term, then three of argument.
type entry uint8

const (
	noop entry = iota << 6
	// argument: how many merges had been tried when it was proposed, which is its version
	write
	prepare  // argument: T0
	rollback // argument: the attempt
)

func (e entry) kind() entry { return e & 0xc0 }
func (e entry) term() uint8 { return uint8(e) >> 3 & 7 }
func (e entry) arg() uint8  { return uint8(e) & 7 }

func newEntry(kind entry, term, arg uint8) entry { return kind | entry(term<<3|arg) }

// source is a replica of S.
type source struct {
	term    uint8
	lead    bool
	len     uint8
	log     [logRoom]entry
	applied uint8
	mode    mode
	tried   uint8 // attempts to merge that it has applied; merging and merged: this one
	proof   uint8 // leader: stores that have answered the second question
	ready   bool  // leader: it has sent Ready in its term; only kept with direct rollbacks
	// Of wrong variants only: what is acknowledged is not published, or not synced.
	unpublished, unsynced bool
}

// kind is what a store has of T.
type kind uint8

const (
	none kind = iota
	blank
	alive
	tomb
)

// unknownID marks the tombstone of a replica that never was initialized.
const unknownID = 15

// target is a replica of T on a store, or its tombstone.
type target struct {
	kind    kind
	id      uint8 // index of the entry that added it
	applied uint8
	epoch   uint8 // tombstone: index of the epoch that it keeps
	told    bool  // tombstone: the epoch came by a message
	base    uint8 // index of its raft snapshot; only kept in the variant that cares
}

// attempt is what everybody could know of a merge, once its P was applied anywhere.
type attempt struct {
	p, t0   uint8
	acks    uint8
	ready   bool
	refused bool // an answer proves the refusal
	merged  bool // a store has answered Merged
	beyond  bool // an epoch of T beyond T0 was seen
	rolled  bool // RollbackMerge is committed
}

// used counts what is limited.
type used struct{ writes, splits, backs, sources, removes, adds uint8 }

// state is one of the cluster.
type state struct {
	s       [voters]source
	t       [stores]target
	log     [targetRoom]change // T's, committed; only what takes effect
	len     uint8
	commit  [logRoom]entry // S's, committed
	commits uint8
	term    uint8 // highest term of S
	applied uint8 // highest index of T applied anywhere
	try     [attempts]attempt
	used    used
	fault   uint8 // index in faults of what a step has broken
}

var faults = [...]string{"", "M1", "M3"}

const (
	faultServes = 1
	faultMerges = 2
)

func flags(b ...bool) (f uint8) {
	for i, x := range b {
		if x {
			f |= 1 << i
		}
	}
	return f
}

// encode writes a state as bytes; equal bytes are equal states.
func (s *state) encode(b []byte) []byte {
	for i := range s.s {
		r := &s.s[i]
		b = append(b, r.term, r.len, r.applied, uint8(r.mode), r.tried, r.proof,
			flags(r.lead, r.ready, r.unpublished, r.unsynced))
		for _, e := range r.log[:r.len] {
			b = append(b, uint8(e))
		}
	}
	for i := range s.t {
		t := &s.t[i]
		b = append(b, uint8(t.kind)<<4|t.id, t.applied<<4|t.epoch, t.base<<1|flags(t.told))
	}
	for _, c := range s.log[:s.len] {
		b = append(b, uint8(c))
	}
	b = append(b, s.len)
	for _, e := range s.commit[:s.commits] {
		b = append(b, uint8(e))
	}
	b = append(b, s.commits, s.term, s.applied, s.fault)
	for i := range s.try {
		a := &s.try[i]
		b = append(b, a.p<<4|a.t0, a.acks, flags(a.ready, a.refused, a.merged, a.beyond, a.rolled))
	}
	u := &s.used
	return append(b, u.writes<<4|u.splits, u.backs<<4|u.sources, u.removes<<4|u.adds)
}

func (s *state) hash() uint64 {
	var room [160]byte
	b := s.encode(room[:0])
	h := uint64(len(b)) * 0x9e3779b97f4a7c15
	for i := 0; i < len(b); i += 8 {
		var w uint64
		for j := i; j < min(i+8, len(b)); j++ {
			w = w<<8 | uint64(b[j])
		}
		hi, lo := bits.Mul64(h^w^0xa0761d6478bd642f, 0xe7037ed1a0b428db+uint64(i))
		h = hi ^ lo
	}
	return h
}

// orders are the permutations of the stores of S.
var orders = [][voters]uint8{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}

// canonical renames the stores, which are alike, so that states that differ in their names only are
// one.
func canonical(s *state) {
	var best state
	var bestRoom, room [160]byte
	var low []byte
	for i, o := range orders {
		c := s.renamed(o)
		b := c.encode(room[:0])
		if i == 0 || string(b) < string(low) {
			best, low = c, append(bestRoom[:0], b...)
		}
	}
	*s = best
}

// renamed gives store i the name to[i].
func (s *state) renamed(to [voters]uint8) state {
	n := *s
	for i := range s.s {
		n.s[to[i]] = s.s[i]
		n.s[to[i]].proof = renameMask(s.s[i].proof, to)
		n.t[to[i]] = s.t[i]
	}
	for i, c := range s.log[:s.len] {
		if (c.kind() == removed || c.kind() == added) && c.arg() < voters {
			n.log[i] = newChange(c.kind(), to[c.arg()])
		}
	}
	for i := range s.try {
		n.try[i].acks = renameMask(s.try[i].acks, to)
	}
	return n
}

func renameMask(mask uint8, to [voters]uint8) (out uint8) {
	for i := range to {
		out |= (mask >> i & 1) << to[i]
	}
	return out
}

// step names a transition.
type step struct {
	op   string
	a, b int
}

func (s step) String() string {
	switch {
	case s.b >= 0:
		return fmt.Sprintf("%s %d %d", s.op, s.a, s.b)
	case s.a >= 0:
		return fmt.Sprintf("%s %d", s.op, s.a)
	}
	return s.op
}
