// Package memlock holds what one store knows in memory of reads and of commits under way, so that
// it can choose the timestamp at which a transaction commits.
//
// A commit timestamp must be larger than that of each read that has not seen the commit. So the
// store keeps max_ts, the largest timestamp of a read so far, and chooses a larger one. Between the
// choice and the moment at which the write is in the engine, a read at a larger timestamp would
// miss it: so the transaction has a claim on its keys meanwhile, for which such reads wait.
//
// The order of each side's steps is what makes it right. A read raises max_ts, then looks for
// claims, then takes its view. A writer claims its keys, then reads max_ts, and drops the claim
// when its write is applied. One of the two always sees the other: either the read finds the claim,
// or the writer finds max_ts raised.
//
// A transaction that locks what it reads relies on a key until its lock goes, as of its newest
// lock, which may be in another store. So max_ts is at that timestamp, or later, before a commit
// that has waited for the lock chooses (package commands).
//
// What reads other stores have served, which led the region before, is not known here. They had
// timestamps that were given out before the leadership changed; so max_ts is raised to a new
// timestamp once in each term, before the first choice in it.
package memlock

import (
	"bytes"
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/tinykv/tinykv/kv/transaction/latch"
)

// shards is how many mutexes share the claims; a power of two.
const shards = 64

// Table is the state of one store. The zero value is ready. Safe for concurrent use.
type Table struct {
	maxTS atomic.Uint64
	// count is how many keys are claimed; readers skip the search while it is 0.
	count  atomic.Int64
	shards [shards]shard
}

type shard struct {
	mu struct {
		sync.Mutex
		claims map[string][]*Claim
	}
}

// Claim says that a transaction is about to lock or to commit keys at a timestamp that this store
// chooses. It has one owner, the command; readers wait on it.
type Claim struct {
	t       *Table
	domain  latch.Domain
	startTS uint64
	keys    [][]byte
	// min is the least timestamp at which the transaction commits, once decided is closed.
	min           uint64
	decided, gone chan struct{}
	dropped       atomic.Bool
}

// MaxTS is the largest timestamp of a read.
func (t *Table) MaxTS() uint64 { return t.maxTS.Load() }

// Raise has all later choices be larger than ts. It is called before a read looks for claims. The
// end of time raises nothing: a read at it sees what is there, and promises nothing about later
// commits.
func (t *Table) Raise(ts uint64) {
	if ts == math.MaxUint64 {
		return
	}
	for old := t.maxTS.Load(); old < ts; old = t.maxTS.Load() {
		if t.maxTS.CompareAndSwap(old, ts) {
			return
		}
	}
}

// Idle tells whether no key is claimed.
func (t *Table) Idle() bool { return t.count.Load() == 0 }

func (t *Table) shard(key []byte) *shard { return &t.shards[xxhash.Sum64(key)%shards] }

// Claim claims keys for a transaction. Reads of them wait until Decide and, if they are behind what
// it has chosen, until Drop.
func (t *Table) Claim(d latch.Domain, startTS uint64, keys [][]byte) *Claim {
	c := &Claim{
		t: t, domain: d, startTS: startTS, keys: keys, decided: make(chan struct{}),
		gone: make(chan struct{}),
	}
	for _, k := range keys {
		s := t.shard(k)
		s.mu.Lock()
		if s.mu.claims == nil {
			s.mu.claims = map[string][]*Claim{}
		}
		s.mu.claims[string(k)] = append(s.mu.claims[string(k)], c)
		s.mu.Unlock()
	}
	t.count.Add(int64(len(keys)))
	return c
}

// Decide chooses the least timestamp of the commit: at least floor, and larger than that of any
// read that has begun before. To be called once.
func (c *Claim) Decide(floor uint64) uint64 {
	c.min = max(floor, c.t.maxTS.Load()+1)
	close(c.decided)
	return c.min
}

// Drop ends the claim: the write is applied, or it never will be. It may be called again.
func (c *Claim) Drop() {
	if c.dropped.Swap(true) {
		return
	}
	for _, k := range c.keys {
		s := c.t.shard(k)
		s.mu.Lock()
		left := slices.DeleteFunc(s.mu.claims[string(k)], func(o *Claim) bool { return o == c })
		if len(left) == 0 {
			delete(s.mu.claims, string(k))
		} else {
			s.mu.claims[string(k)] = left
		}
		s.mu.Unlock()
	}
	c.t.count.Add(-int64(len(c.keys)))
	close(c.gone)
}

// Search says which claims are in the way of a read.
type Search struct {
	RegionID uint64
	// Keys are those that are read. With Range it is instead all of [From, To); an empty To is the
	// end.
	Keys     [][]byte
	Range    bool
	From, To []byte
	// TS is the timestamp of the read. With Begun, the claims of all transactions that began by TS
	// are in the way, whenever they commit.
	TS    uint64
	Begun bool
	// Ignore are the start timestamps of transactions that are not in the way.
	Ignore []uint64
	// Term is the term in which this store leads the region now.
	Term func() (uint64, error)
}

// recheck is how often a wait asks for the term.
const recheck = 50 * time.Millisecond

// Await returns when no claim is in the way that was there at the call. max_ts must have been
// raised to TS before, and the view of the read must be taken after it. An error is that of ctx, or
// of Term.
//
// A claim of an earlier term than the present one is in nobody's way: its write is in any view that
// is taken from now on, or will never be.
func (t *Table) Await(ctx context.Context, s *Search) error {
	if t.Idle() {
		return nil
	}
	for _, c := range t.find(s) {
		if err := c.await(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// Free tells whether a search finds no claim, in the way or not. What goes for Await goes for it.
func (t *Table) Free(s *Search) bool { return t.Idle() || len(t.find(s)) == 0 }

func (t *Table) find(s *Search) (out []*Claim) {
	add := func(claims []*Claim) {
		for _, c := range claims {
			if c.domain.RegionID == s.RegionID && !slices.Contains(s.Ignore, c.startTS) &&
				(!s.Begun || c.startTS <= s.TS) && !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	if !s.Range {
		for _, k := range s.Keys {
			sh := t.shard(k)
			sh.mu.Lock()
			add(sh.mu.claims[string(k)])
			sh.mu.Unlock()
		}
		return out
	}
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for k, claims := range sh.mu.claims {
			if k >= string(s.From) && (len(s.To) == 0 || k < string(s.To)) {
				add(claims)
			}
		}
		sh.mu.Unlock()
	}
	return out
}

// await waits while the claim is in the way.
func (c *Claim) await(ctx context.Context, s *Search) error {
	for {
		if past, err := c.past(s); past || err != nil {
			return err
		}
		decided, err := c.wait(ctx, c.decided)
		if err != nil {
			return err
		}
		if !decided {
			continue
		}
		if !s.Begun && s.TS < c.min {
			return nil
		}
		if over, err := c.wait(ctx, c.gone); over || err != nil {
			return err
		}
	}
}

// past tells whether the claim is of a term that has ended. Then nobody needs it.
func (c *Claim) past(s *Search) (bool, error) {
	now, err := s.Term()
	if err != nil || now <= c.domain.Term {
		return false, err
	}
	c.Drop()
	return true, nil
}

// wait returns true once done is closed or the claim is dropped, and false when it is time to ask
// for the term.
func (c *Claim) wait(ctx context.Context, done <-chan struct{}) (bool, error) {
	select {
	case <-done:
		return true, nil
	case <-c.gone:
		return true, nil
	default:
	}
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	select {
	case <-done:
		return true, nil
	case <-c.gone:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// DropBefore drops the claims of earlier terms of a region: their owners will never know what
// became of them.
func (t *Table) DropBefore(regionID, term uint64) {
	if t.Idle() {
		return
	}
	var old []*Claim
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for _, claims := range sh.mu.claims {
			for _, c := range claims {
				if c.domain.RegionID == regionID && c.domain.Term < term &&
					!slices.Contains(old, c) {
					old = append(old, c)
				}
			}
		}
		sh.mu.Unlock()
	}
	for _, c := range old {
		c.Drop()
	}
}

// Keys are the keys that are claimed, in order, for tests and for people.
func (t *Table) Keys() (out [][]byte) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for k := range sh.mu.claims {
			out = append(out, []byte(k))
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(out, bytes.Compare)
	return out
}
