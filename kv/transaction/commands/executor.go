package commands

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/deadlock"
	"github.com/tinykv/tinykv/kv/transaction/latch"
	"github.com/tinykv/tinykv/kv/transaction/memlock"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/kv/transaction/waiting"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Policy is in what the faces differ.
type Policy struct {
	Codec mvcc.Codec
	// MissingCommits: to commit a key of which nothing is known succeeds and does nothing.
	MissingCommits bool
	// Collapse: a rollback removes the unprotected one before it at the same key.
	Collapse bool
	// Validate is called with what a command is about to write and the keys whose latches it has;
	// nil in servers.
	Validate func(mods []storage.Modify, keys [][]byte)
}

// Disk is the policy of data on disk.
func Disk() Policy { return Policy{Codec: mvcc.CodecTiKV, Collapse: true} }

// Executor carries out commands on a storage. Safe for concurrent use.
type Executor struct {
	st storage.BoundStorage
	// local is st, if it can often read without waiting; else nil.
	local   storage.LocalReader
	policy  Policy
	latches *latch.Table
	// barriers keep a DeleteRange apart from all other commands.
	barriers *latch.Barriers
	timeout  time.Duration
	// safe is nil where nothing is ever collected.
	safe *SafePoints
	// locks are for commits whose timestamp this store chooses; it chooses none while times is nil.
	locks *memlock.Table
	times *Timestamps
	// waiting are those who wait for locks. graph is who waits for whom in the cluster, at the
	// store that keeps it, and detector the way to it.
	waiting  *waiting.Queues
	graph    *deadlock.Graph
	detector Detector
}

// New returns an executor; timeout bounds commands whose context has no deadline.
func New(st storage.BoundStorage, policy Policy, timeout time.Duration) *Executor {
	graph := deadlock.NewGraph(nil)
	local, _ := st.(storage.LocalReader)
	return &Executor{
		st: st, local: local, policy: policy, latches: new(latch.Table),
		barriers: new(latch.Barriers), locks: new(memlock.Table),
		waiting: new(waiting.Queues), graph: graph, detector: localDetector{graph},
		timeout: timeout,
	}
}

// SetTimestamps lets the executor choose the timestamps at which transactions commit: by
// asynchronous commit and in one phase. To be called before the first command.
func (e *Executor) SetTimestamps(s *Timestamps) { e.times = s }

func (e *Executor) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, e.timeout)
}

// decision reads, and gathers changes. An error means that nothing is written.
type decision func(tx *txn) error

// txn is what a decision has to work with. Owner: the goroutine of the command.
type txn struct {
	policy Policy
	// safePoint is the one of transactions, as of a moment after the term of leadership began.
	safePoint func() (uint64, error)
	// known fails for a timestamp that is known to be in the future (Timestamps.known).
	known func(ts uint64, ahead time.Duration) error
	// chooses: this store may choose commit timestamps in the term of the view.
	chooses bool
	// claim, if set, lasts until the outcome of the write is known.
	claim  *memlock.Claim
	locks  *memlock.Table
	domain latch.Domain
	times  *Timestamps
	*mvcc.Reader
	*mvcc.Writer
}

// unclaim ends the claim, if there is one.
func (tx *txn) unclaim() {
	if tx.claim != nil {
		tx.claim.Drop()
		tx.claim = nil
	}
}

// effect is what a command does to transactions.
type effect struct {
	// ends: it ends them, and with that what they take. A full disk does not refuse it.
	ends bool
	// chooses: it may choose a commit timestamp.
	chooses bool
}

var ends = effect{ends: true}

// update has decide look at the region under the latches of keys, and carries out what it decides.
func (e *Executor) update(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, does effect, decide decision,
) error {
	if len(keys) == 0 { // nothing to do, but for another store to say so
		_, err := e.st.Leadership(c)
		return err
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	for {
		term, err := e.st.Leadership(c)
		if err == nil && !does.ends {
			_, err = e.safe.txnIn(ctx, c.GetRegionId(), tenureOf(c, term))
		}
		if err != nil {
			return err
		}
		does := does
		does.chooses = does.chooses &&
			e.times.sync(ctx, e.locks, c.GetRegionId(), tenureOf(c, term))
		ended, err := e.updateIn(ctx, c, term, does, keys, decide)
		if !ended {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// termEnded ends a wait for latches of a term that is over.
type termEnded struct{}

func (termEnded) Error() string { return "the term of leadership has ended" }

// updateIn is update under one leadership. ended: it was another one's by the time of the view, or
// max_ts is not known any more to be large enough for a choice. Nothing was done.
func (e *Executor) updateIn(
	ctx context.Context, c *kvrpcpb.Context, term uint64, does effect, keys [][]byte, decide decision,
) (ended bool, err error) {
	release, err := e.acquire(ctx, c, term, keys)
	if err != nil {
		return err == error(termEnded{}), err
	}
	view, at, err := e.view(keys, func(key []byte) (storage.Reader, uint64, error) {
		return e.st.BoundReader(ctx, c, key)
	})
	if err != nil {
		release()
		return false, err
	}
	// A lock may have gone while this command waited for its latches (txn.letGo).
	if at != term || does.chooses && !e.times.synced(c.GetRegionId(), tenureOf(c, term)) {
		view.Close()
		release()
		return true, nil
	}
	tx := e.txn(view, c, term, does)
	tx.safePoint = func() (uint64, error) {
		return e.safe.txnIn(ctx, c.GetRegionId(), tenureOf(c, at))
	}
	tx.known = func(ts uint64, ahead time.Duration) error { return e.times.known(ctx, ts, ahead) }
	err = decide(tx)
	tx.Close()
	view.Close()
	if e.policy.Validate != nil {
		e.policy.Validate(tx.Modifies(), keys)
	}
	if err != nil || len(tx.Modifies()) == 0 {
		tx.unclaim()
		release()
		return false, err
	}
	return false,
		e.write(ctx, c, storage.Bound{Term: term, Ends: does.ends}, tx.Modifies(), func(done bool) {
			e.settle(tx, done, release)
		})
}

// txn is what a decision in a term has to work with, over a view that stays the caller's.
func (e *Executor) txn(view storage.Reader, c *kvrpcpb.Context, term uint64, does effect) *txn {
	return &txn{
		policy: e.policy, Reader: mvcc.NewReader(view, e.policy.Codec),
		Writer:  mvcc.NewWriter(e.policy.Codec),
		chooses: does.chooses, locks: e.locks,
		domain: latch.Domain{RegionID: c.GetRegionId(), Term: term}, times: e.times,
	}
}

// settle ends a command whose write is known to have been carried out, or that it never will be.
func (e *Executor) settle(tx *txn, done bool, release func()) {
	tx.unclaim()
	if done {
		e.wake(tx.Modifies()) // before another command can see that the locks are gone
	}
	release()
}

// noWait is a context in which nothing waits: what is free is taken, all else fails.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// errWait: a command would have to wait for something.
var errWait = abortf("it would have to wait")

// updateNow is update of a command that neither ends transactions nor waits. False: nothing was
// done, and update must be asked. Else answered is called once: with the decision's error, or with
// the outcome of the write, which may come later than deadline, and on a goroutine that it must not
// hold up.
//
// It decides over a view that is not of one moment. The latches keep the keys as they are
// meanwhile. The lease, which is compared afterwards, proves that no other store has led the
// region; a write is bound to the term besides.
func (e *Executor) updateNow(
	c *kvrpcpb.Context, keys [][]byte, chooses bool, deadline time.Time, decide decision, answered func(error),
) bool {
	term, err := e.st.Leadership(c)
	if err != nil || e.local == nil || e.policy.Validate != nil {
		return false
	}
	at, regionID := tenureOf(c, term), c.GetRegionId()
	if _, err := e.safe.mustKnow(regionID, at); err != nil {
		return false
	}
	chooses = chooses && e.times != nil && e.times.ready()
	release, err := e.acquire(noWait, c, term, keys)
	if err != nil {
		return false
	}
	if chooses && !e.times.synced(regionID, at) { // after the latches, as in updateIn
		release()
		return false
	}
	tx, err := e.decideNow(c, keys, term, chooses, decide)
	if tx == nil {
		release()
		return false
	}
	if err != nil || len(tx.Modifies()) == 0 {
		tx.unclaim()
		release()
		answered(err)
		return true
	}
	e.st.WriteBound(c, storage.Bound{Term: term}, tx.Modifies(), deadline,
		func(err error, known bool) {
			if known {
				e.settle(tx, err == nil, release)
			}
			answered(err)
		})
	return true
}

// decideNow has decide look at the region in a term. It returns nil if the decision does not count.
func (e *Executor) decideNow(
	c *kvrpcpb.Context, keys [][]byte, term uint64, chooses bool, decide decision,
) (*txn, error) {
	var valid func() bool
	view, led, err := e.view(keys, func(key []byte) (storage.Reader, uint64, error) {
		r, ok, err := e.local.ReadLocal(c, key)
		if !ok {
			err = errWait
		}
		valid = r.Valid
		return r.Reader, r.Term, err
	})
	if err != nil {
		return nil, err
	}
	tx := e.txn(view, c, term, effect{chooses: chooses})
	tx.known = func(uint64, time.Duration) error { return errWait }
	tx.safePoint = func() (uint64, error) {
		return e.safe.mustKnow(c.GetRegionId(), tenureOf(c, term))
	}
	err = errWait
	if led == term {
		err = decide(tx)
	}
	tx.Close()
	view.Close()
	if err == errWait || errors.Is(err, mvcc.ErrCorrupt) || !valid() {
		tx.unclaim()
		return nil, errWait
	}
	return tx, err
}

// inTerm ends the wait of a command for latches of a term that is over.
func (e *Executor) inTerm(c *kvrpcpb.Context, term uint64) func() error {
	return func() error {
		now, err := e.st.Leadership(c)
		if err == nil && now != term {
			err = termEnded{}
		}
		return err
	}
}

// exclude keeps all other commands of the region out, once those inside have left.
func (e *Executor) exclude(
	ctx context.Context, c *kvrpcpb.Context, term uint64,
) (leave func(), err error) {
	return e.barriers.Exclude(ctx, latch.Domain{RegionID: c.GetRegionId(), Term: term},
		e.inTerm(c, term))
}

// acquire takes the latches of the keys.
func (e *Executor) acquire(
	ctx context.Context, c *kvrpcpb.Context, term uint64, keys [][]byte,
) (release func(), err error) {
	domain, useless := latch.Domain{RegionID: c.GetRegionId(), Term: term}, e.inTerm(c, term)
	leave, err := e.barriers.Enter(ctx, domain, useless)
	if err != nil {
		return nil, err
	}
	guard, err := e.latches.Acquire(ctx, latch.Hashes(domain, keys), useless)
	if err != nil {
		leave()
		return nil, err
	}
	return func() {
		guard.Release()
		leave()
	}, nil
}

// view opens one of the region that has all keys.
func (e *Executor) view(
	keys [][]byte, open func(key []byte) (storage.Reader, uint64, error),
) (storage.Reader, uint64, error) {
	least, most := keys[0], keys[0]
	for _, k := range keys[1:] {
		if bytes.Compare(k, least) < 0 {
			least = k
		}
		if bytes.Compare(k, most) > 0 {
			most = k
		}
	}
	view, term, err := open(memcomparable.Encode(least))
	if err != nil {
		return nil, 0, err
	}
	last := memcomparable.Encode(most)
	if _, end := view.Range(); len(end) == 0 || bytes.Compare(last, end) < 0 {
		return view, term, nil
	}
	view.Close()
	if view, _, err = open(last); err == nil { // else it says which key is outside
		view.Close()
		err = abortf("the keys %v and %v are not of one region", redact.Key(least),
			redact.Key(most))
	}
	return nil, 0, err
}

// write waits for the outcome until ctx ends. The latches and the claim are kept until it is known.
func (e *Executor) write(
	ctx context.Context, c *kvrpcpb.Context, b storage.Bound, mods []storage.Modify,
	release func(done bool),
) error {
	deadline, _ := ctx.Deadline()
	done := make(chan error, 1)
	e.st.WriteBound(c, b, mods, deadline, func(err error, known bool) {
		if known {
			release(err == nil)
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
