// Package listappend judges histories of transactions that append to lists and read them.
//
// Each appended value is unique, so a list that was read names all transactions that have changed
// it, in their order. From that come the dependencies between transactions: ww, one has appended
// behind the other; wr, one has read what the other has appended; rw, one has read a list that the
// other has appended to next. Isolation levels forbid cycles of them (Adya; Elle has the method).
// Under snapshot isolation two transactions that each read what the other one writes next may both
// happen, write skew; all other cycles are bugs: a history is one of snapshot isolation if and only
// if there is no cycle of steps that are each a ww or wr, or one of these followed by an rw (Cerone
// and Gotsman).
//
// Beyond that, a history that knows the timestamps of its transactions is held against them.
package listappend

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Outcome is what a client knows of its transaction.
type Outcome int

// The outcomes.
const (
	// Committed: it has happened.
	Committed Outcome = iota
	// Failed: it has not, and never will.
	Failed
	// Unknown: it may have happened, or may still.
	Unknown
)

// Op is one step of a transaction: it appends Value to the list of Key, or, if that is 0, reads it.
type Op struct {
	Key   string
	Value uint64
	// List is what was read.
	List []uint64
}

// Read and Append make steps.
func Read(key string, list ...uint64) Op { return Op{Key: key, List: list} }

// Append is a step that appends a value, which is not 0 and appended nowhere else.
func Append(key string, value uint64) Op { return Op{Key: key, Value: value} }

// Txn is a transaction as its client saw it.
type Txn struct {
	Ops     []Op
	Outcome Outcome
	// Start and Commit are timestamps; 0 if they are not known. One that has changed nothing has no
	// Commit.
	Start, Commit uint64
	// Begun and Ended are moments of one clock, from before its start timestamp was given out and
	// from after its outcome was known; 0 if they are not known.
	Begun, Ended int64
	// Locking: it has locked what it read, so that its Start is the timestamp of its newest lock.
	// For people.
	Locking bool
}

// Anomaly is something that snapshot isolation forbids.
type Anomaly struct {
	// Kind is Adya's name where there is one: G0, G1a, G1b, G1c, G-single, G-nonadjacent; else a
	// word.
	Kind string
	// Txns are the numbers of the transactions, as they stand in the history; of a cycle, in its
	// order.
	Txns []int
	Text string
}

func (a Anomaly) String() string {
	return fmt.Sprintf("%s of transactions %v: %s", a.Kind, a.Txns, a.Text)
}

// Report is the judgement of a history.
type Report struct {
	Anomalies []Anomaly
	// Reads, Appends and Edges say how much there was to look at. Skews is how many groups of
	// transactions depend on each other in a way that snapshot isolation allows and serializability
	// does not.
	Reads, Appends, Edges, Skews int
}

// Check judges a history.
func Check(history []Txn) Report {
	c := &checker{
		history: history, writer: map[element]int{}, last: map[element]bool{},
		order: map[string][]uint64{},
	}
	c.index()
	c.internal()
	c.orders()
	if len(c.report.Anomalies) == 0 { // else the order of the lists is not known
		c.edges()
		c.cycles()
		c.timestamps()
	}
	slices.SortStableFunc(c.report.Anomalies, func(a, b Anomaly) int {
		return cmp.Compare(a.Kind, b.Kind)
	})
	return c.report
}

// element is one place in one list.
type element struct {
	key   string
	value uint64
}

type checker struct {
	history []Txn
	report  Report
	// writer is who has appended an element; last tells whether it is the last of its transaction
	// in that list.
	writer map[element]int
	last   map[element]bool
	// reads are what transactions have read of lists before they changed them themselves.
	reads []read
	// order is the longest list that was read of a key: all others must be the beginning of it.
	order map[string][]uint64
	// seen are the transactions of which something was read, so that they have happened.
	seen map[int]bool
	graph
}

type read struct {
	txn  int
	key  string
	list []uint64
}

func (c *checker) blame(kind string, txns []int, format string, args ...any) {
	c.report.Anomalies = append(c.report.Anomalies,
		Anomaly{kind, txns, fmt.Sprintf(format, args...)})
}

// index finds out who has appended what.
func (c *checker) index() {
	for n, t := range c.history {
		lasts := map[string]uint64{}
		for _, op := range t.Ops {
			if op.Value == 0 {
				c.report.Reads++
				continue
			}
			c.report.Appends++
			e := element{op.Key, op.Value}
			if other, twice := c.writer[e]; twice {
				panic(fmt.Sprintf("the history appends %d to %s twice, in %d and %d", op.Value,
					op.Key, other, n))
			}
			c.writer[e] = n
			lasts[op.Key] = op.Value
		}
		for k, v := range lasts {
			c.last[element{k, v}] = true
		}
	}
}

// internal holds what a transaction has read against what it has read before and appended itself.
func (c *checker) internal() {
	for n, t := range c.history {
		known := map[string][]uint64{} // what was read first
		own := map[string][]uint64{}
		for _, op := range t.Ops {
			if op.Value != 0 {
				own[op.Key] = append(own[op.Key], op.Value)
				continue
			}
			mine := own[op.Key]
			base := len(op.List) - len(mine)
			if base < 0 || !slices.Equal(op.List[base:], mine) {
				c.blame("internal", []int{n}, "%s was read as %v, without its own %v", op.Key,
					op.List, mine)
				continue
			}
			list := op.List[:base]
			if before, again := known[op.Key]; again {
				if !slices.Equal(before, list) {
					c.blame("internal", []int{n}, "%s was read as %v, and then as %v", op.Key,
						before, op.List)
				}
				continue
			}
			known[op.Key] = list
			c.reads = append(c.reads, read{n, op.Key, list})
		}
	}
}

// orders finds the order of each list, and holds all reads against it.
func (c *checker) orders() {
	c.seen = map[int]bool{}
	for _, r := range c.reads {
		c.elements(r)
		if len(r.list) > len(c.order[r.key]) {
			c.order[r.key] = r.list
		}
	}
	for _, r := range c.reads {
		if !slices.Equal(c.order[r.key][:len(r.list)], r.list) {
			c.blame("incompatible order", []int{r.txn}, "%s was read as %v and as %v", r.key,
				r.list, c.order[r.key])
		}
	}
}

// elements looks at each element of a list that was read.
func (c *checker) elements(r read) {
	met := map[uint64]bool{}
	for i, v := range r.list {
		w, known := c.writer[element{r.key, v}]
		switch {
		case !known:
			c.blame("garbage", []int{r.txn}, "%s has %d, which nobody has appended", r.key, v)
			continue
		case met[v]:
			c.blame("duplicate", []int{r.txn, w}, "%s has %d twice: %v", r.key, v, r.list)
		case c.history[w].Outcome == Failed:
			c.blame("G1a", []int{r.txn, w}, "%s has %d of a transaction that has failed", r.key, v)
		case w == r.txn:
			c.blame("internal", []int{r.txn}, "%s has %d before it was appended", r.key, v)
		case !c.last[element{r.key, v}] &&
			(i+1 == len(r.list) || c.writer[element{r.key, r.list[i+1]}] != w):
			c.blame("G1b", []int{r.txn, w},
				"%s has %d, and not what its transaction has appended to it next", r.key, v)
		}
		met[v] = true
		c.seen[w] = true
	}
}

// happened tells whether a transaction is known to have happened.
func (c *checker) happened(n int) bool {
	return c.history[n].Outcome == Committed || c.history[n].Outcome == Unknown && c.seen[n]
}

// next is the transaction that has appended to a list behind its first n elements; -1 if none is
// known.
func (c *checker) next(key string, n int) int {
	if n >= len(c.order[key]) {
		return -1
	}
	return c.writer[element{key, c.order[key][n]}]
}

// edges adds the dependencies.
func (c *checker) edges() {
	c.init(len(c.history))
	for key, list := range c.order {
		for i := 1; i < len(list); i++ {
			from, to := c.writer[element{key, list[i-1]}], c.writer[element{key, list[i]}]
			c.add(ww, from, to, fmt.Sprintf("%s: %d before %d", key, list[i-1], list[i]))
		}
	}
	for _, r := range c.reads {
		if !c.happened(r.txn) {
			continue
		}
		if n := len(r.list); n > 0 {
			c.add(wr, c.writer[element{r.key, r.list[n-1]}], r.txn,
				fmt.Sprintf("%s: read %d", r.key, r.list[n-1]))
		}
		if w := c.next(r.key, len(r.list)); w >= 0 {
			c.add(rw, r.txn, w,
				fmt.Sprintf("%s: read %d elements, and not the next", r.key, len(r.list)))
		}
	}
	c.report.Edges = c.count
}

// cycles looks for those that are forbidden, the worst kind first.
func (c *checker) cycles() {
	steps := func(kinds ...kind) bool {
		cycle := c.cycle(kinds)
		if cycle == nil {
			return false
		}
		txns, text := c.describe(cycle)
		c.blame(name(cycle), txns, "%s", text)
		return true
	}
	if steps(ww) || steps(ww, wr) || steps(ww, wr, rw) {
		return
	}
	c.report.Skews = c.skews()
}

// timestamps holds the history against what the transactions say of their place in it.
func (c *checker) timestamps() {
	c.snapshots()
	c.firstCommitter()
	c.realTime()
}

// snapshots: a read at a timestamp sees what was committed up to it, and nothing else.
func (c *checker) snapshots() {
	appended := map[string][]commit{}
	for e, w := range c.writer {
		if t := &c.history[w]; t.Outcome == Committed && t.Commit != 0 {
			appended[e.key] = append(appended[e.key], commit{w, t.Commit, e.value})
		}
	}
	for _, r := range c.reads {
		start := c.history[r.txn].Start
		if start == 0 {
			continue
		}
		has := map[uint64]bool{}
		for _, v := range r.list {
			has[v] = true
			if w := c.writer[element{r.key, v}]; c.history[w].Commit > start {
				c.blame("future read", []int{r.txn, w}, "%s has %d at %d, committed at %d", r.key,
					v, start, c.history[w].Commit)
			}
		}
		for _, a := range appended[r.key] {
			if a.at <= start && a.txn != r.txn && !has[a.value] {
				c.blame("missed commit", []int{r.txn, a.txn}, "%s lacks %d at %d, committed at %d",
					r.key, a.value, start, a.at)
			}
		}
	}
}

// firstCommitter: of two transactions that change a list, the second one begins after the first is
// committed.
func (c *checker) firstCommitter() {
	for key, list := range c.order {
		for i := 1; i < len(list); i++ {
			from, to := c.writer[element{key, list[i-1]}], c.writer[element{key, list[i]}]
			if at, start := c.history[from].Commit,
				c.history[to].Start; from != to && at != 0 && start != 0 && start < at {
				c.blame("lost update", []int{from, to},
					"%s: one is committed at %d, the other began at %d", key, at, start)
			}
		}
	}
}

type commit struct {
	txn   int
	at    uint64
	value uint64
}

// realTime: one that begins after another one was acknowledged begins behind it.
func (c *checker) realTime() {
	type moment struct {
		txn  int
		when int64
	}
	var ends, begins []moment
	for n, t := range c.history {
		if t.Outcome == Committed && t.Commit != 0 && t.Ended != 0 {
			ends = append(ends, moment{n, t.Ended})
		}
		if t.Start != 0 && t.Begun != 0 {
			begins = append(begins, moment{n, t.Begun})
		}
	}
	sort.Slice(ends, func(i, j int) bool { return ends[i].when < ends[j].when })
	sort.Slice(begins, func(i, j int) bool { return begins[i].when < begins[j].when })
	latest, at := -1, 0
	for _, b := range begins {
		for ; at < len(ends) && ends[at].when < b.when; at++ {
			if latest < 0 || c.history[ends[at].txn].Commit > c.history[latest].Commit {
				latest = ends[at].txn
			}
		}
		if latest >= 0 && c.history[latest].Commit > c.history[b.txn].Start {
			c.blame("real time", []int{latest, b.txn},
				"one was acknowledged at %d before the other began at %d",
				c.history[latest].Commit, c.history[b.txn].Start)
		}
	}
}

// String is the transaction as its client saw it.
func (t Txn) String() string {
	var out strings.Builder
	word := [...]string{"committed", "failed", "unknown"}[t.Outcome]
	kind := ""
	if t.Locking {
		kind = ", locking"
	}
	fmt.Fprintf(&out, "start %d, commit %d, %s%s, from %d to %d:", t.Start, t.Commit, word, kind,
		t.Begun, t.Ended)
	for _, op := range t.Ops {
		if op.Value != 0 {
			fmt.Fprintf(&out, " append %d to %s;", op.Value, op.Key)
			continue
		}
		fmt.Fprintf(&out, " %d elements of %s, last %v;", len(op.List), op.Key,
			op.List[max(0, len(op.List)-3):])
	}
	return out.String()
}

func (r Report) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d reads, %d appends, %d dependencies, %d skews", r.Reads, r.Appends,
		r.Edges, r.Skews)
	for i, a := range r.Anomalies {
		if i == 10 {
			fmt.Fprintf(&out, "\nand %d more", len(r.Anomalies)-i)
			break
		}
		fmt.Fprintf(&out, "\n%s", a)
	}
	return out.String()
}
