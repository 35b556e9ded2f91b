package commands

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Assertion is what a transaction takes for granted of a key.
type Assertion int

// The assertions.
const (
	AssertNothing Assertion = iota
	AssertExists
	AssertAbsent
)

func (a Assertion) String() string {
	switch a {
	case AssertExists:
		return "existence"
	case AssertAbsent:
		return "absence"
	case AssertNothing:
	}
	return "nothing"
}

// Mutation is what a transaction is about to do to a key. Kind is Put, Delete or Lock.
type Mutation struct {
	Kind       mvcc.WriteKind
	Key, Value []byte
	// Insert: the key must not exist.
	Insert bool
	// CheckOnly: nothing is written, only what is in the way is said.
	CheckOnly bool
	Assert    Assertion
	// Strict: the assertion is also checked where the transaction has locked the key before, and
	// nothing else is read.
	Strict bool
	// Check is what a pessimistic transaction has checked at the key before.
	Check PessimisticCheck
	// ExpectedForUpdateTS, if not 0, is what the key's pessimistic lock must have.
	ExpectedForUpdateTS uint64

	// held is the pessimistic lock that the mutation takes the place of.
	held *mvcc.Lock
}

// PessimisticCheck says what the prewrite of a key in a pessimistic transaction relies on.
type PessimisticCheck int

// The checks; their numbers are those of the protocols.
const (
	// Unlocked: the key was not locked, and the client knows that nobody else has changed it.
	Unlocked PessimisticCheck = iota
	// LockedBefore: the key has a pessimistic lock, which may have got lost if nobody has changed
	// it since.
	LockedBefore
	// CheckConflict: the key was not locked, and is checked as in an optimistic transaction.
	CheckConflict
)

// Prewrite is the first phase of a transaction.
type Prewrite struct {
	Mutations    []Mutation
	Primary      []byte
	StartTS, TTL uint64
	// TxnSize is about how many keys the transaction has locked; it tells those who resolve a lock
	// what to expect.
	TxnSize uint64
	// MinCommitTS is the least timestamp at which the transaction commits. A reader may raise that
	// of the primary; 0 says that none may.
	MinCommitTS uint64
	// TxnSource is kept in lock and write record.
	TxnSource uint64
	// AsyncCommit: the transaction is committed once all its keys are locked, at the largest of the
	// timestamps that stores choose. Secondaries are all its keys but the primary, in the request
	// that has the primary.
	AsyncCommit bool
	Secondaries [][]byte
	// OnePC: the mutations are all of the transaction, and it is committed with them at once.
	OnePC bool
	// MaxCommitTS is the largest timestamp that a store may choose; 0 is no limit. Beyond it all
	// locks are plain ones.
	MaxCommitTS uint64
	// ForUpdateTS is the timestamp of the newest lock of a pessimistic transaction; 0 is an
	// optimistic one.
	ForUpdateTS uint64
	// Retry: an earlier attempt may have been carried out.
	Retry bool
}

// Prewritten is the outcome of a prewrite.
type Prewritten struct {
	// InWay says what is in the way, for each key of which it is true. Then nothing was done.
	InWay []error
	// MinCommitTS is the timestamp that was chosen for a transaction with asynchronous commit. 0
	// says that some of the locks are plain ones, so that the transaction is committed by its
	// primary.
	MinCommitTS uint64
	// CommitTS is the timestamp at which the request has committed the transaction in one phase; 0
	// if it has not.
	CommitTS uint64
	// Committed: the request is an old one. The transaction was committed at that timestamp, and
	// nothing was done.
	Committed uint64
}

// lastOfEach keeps the last mutation of each key.
func lastOfEach(muts []Mutation) []Mutation {
	if len(muts) == 1 {
		return slices.Clone(muts)
	}
	at := make(map[string]int, len(muts))
	var out []Mutation
	for _, m := range muts {
		if i, twice := at[string(m.Key)]; twice {
			out[i] = m
			continue
		}
		at[string(m.Key)] = len(out)
		out = append(out, m)
	}
	return out
}

// Prewrite locks all keys and stores their values, or does nothing. What is in the way of that are
// *LockedError,
// *ConflictError and *ExistsError, or *AssertionError if nothing else is.
//
// If the transaction asks for it, the store chooses the timestamp of its commit (memlock).
func (e *Executor) Prewrite(
	ctx context.Context, c *kvrpcpb.Context, p *Prewrite,
) (res Prewritten, err error) {
	ctx, cancel := e.bound(ctx)
	defer cancel()
	if res, ok, err := e.prewriteSoon(ctx, c, p); ok {
		return res, err
	}
	if err := checkStartTS(p.StartTS); err != nil {
		return Prewritten{}, err
	}
	if err := e.believe(ctx, p); err != nil {
		return Prewritten{}, err
	}
	muts, keys, reads := p.todo()
	if reads { // they read the keys at the start timestamp
		if err := e.raise(ctx, p.StartTS); err != nil {
			return Prewritten{}, err
		}
	}
	err = e.update(ctx, c, keys, effect{chooses: p.chooses()}, func(tx *txn) error {
		res, err = tx.prewriteAll(p, muts)
		return res.orNothing(err)
	})
	return res.outcome(err)
}

// chooses tells whether the store is to choose the timestamp of the commit.
func (p *Prewrite) chooses() bool { return p.AsyncCommit || p.OnePC }

// todo are the mutations of the request, their keys, and whether one of them reads its key at the
// start timestamp.
func (p *Prewrite) todo() (muts []Mutation, keys [][]byte, reads bool) {
	muts = lastOfEach(p.Mutations)
	keys = make([][]byte, len(muts))
	for i, m := range muts {
		keys[i] = m.Key
		reads = reads || m.reads()
	}
	return muts, keys, reads
}

// orNothing is err, or errNothing if something is in the way.
func (r *Prewritten) orNothing(err error) error {
	if err == nil && (len(r.InWay) > 0 || r.Committed > 0) {
		return errNothing
	}
	return err
}

// outcome is what Prewrite returns if err has come of the decision and its write.
func (r *Prewritten) outcome(err error) (Prewritten, error) {
	switch err {
	case nil, errNothing:
		return *r, nil
	}
	return Prewritten{}, err
}

// prewriteSoon waits for the outcome of PrewriteNow until ctx ends, if that returns true.
func (e *Executor) prewriteSoon(
	ctx context.Context, c *kvrpcpb.Context, p *Prewrite,
) (res Prewritten, ok bool, err error) {
	if ctx.Err() != nil {
		return Prewritten{}, true, ctx.Err()
	}
	type outcome struct {
		res Prewritten
		err error
	}
	done := make(chan outcome, 1)
	deadline, _ := ctx.Deadline()
	if !e.PrewriteNow(c, p, deadline, func(res Prewritten, err error) {
		done <- outcome{res, err}
	}) {
		return Prewritten{}, false, nil
	}
	select {
	case o := <-done:
		return o.res, true, o.err
	case <-ctx.Done():
		return Prewritten{}, true, ctx.Err()
	}
}

// maxNow is how many mutations PrewriteNow takes.
const maxNow = 8

// PrewriteNow is Prewrite if it returns true: done gets the outcome, exactly once, perhaps before
// PrewriteNow returns, on a goroutine that it must not hold up. A write that was proposed by
// deadline may be answered later. False: nothing was done, and Prewrite must be asked. It never
// waits: neither for latches, nor for the placement service, nor for a proof of leadership.
func (e *Executor) PrewriteNow(
	c *kvrpcpb.Context, p *Prewrite, deadline time.Time, done func(Prewritten, error),
) bool {
	if len(p.Mutations) == 0 || len(p.Mutations) > maxNow || checkStartTS(p.StartTS) != nil ||
		!e.times.reachedNow(max(p.StartTS, p.ForUpdateTS), drift) ||
		!e.times.reachedNow(p.MinCommitTS, commitsAhead) {
		return false
	}
	muts, keys, reads := p.todo()
	if reads && !e.raiseNow(p.StartTS) {
		return false
	}
	var res Prewritten
	return e.updateNow(c, keys, p.chooses(), deadline, func(tx *txn) (err error) {
		res, err = tx.prewriteAll(p, muts)
		return res.orNothing(err)
	}, func(err error) { done(res.outcome(err)) })
}

// believe refuses timestamps of the future, since others would find the locks in their way until
// then.
func (e *Executor) believe(ctx context.Context, p *Prewrite) error {
	if err := e.times.plausible(ctx, max(p.StartTS, p.ForUpdateTS), drift); err != nil {
		return err
	}
	return e.times.plausible(ctx, p.MinCommitTS, commitsAhead)
}

// reads tells whether a mutation depends on whether its key exists.
func (m *Mutation) reads() bool { return m.Insert || m.CheckOnly || m.Assert != AssertNothing }

// errNothing has nothing written, without being an error to anyone.
var errNothing = abortf("nothing to write")

func (tx *txn) prewriteAll(p *Prewrite, muts []Mutation) (res Prewritten, err error) {
	if err := tx.young(p.StartTS); err != nil {
		return Prewritten{}, err
	}
	var asserted error
	var own ownLocks
	var todo []*Mutation
	for i := range muts {
		m := &muts[i]
		mine, keyErr, err := tx.examine(p, m)
		switch {
		case err != nil:
			return Prewritten{}, err
		case mine != nil:
			own.add(mine)
			continue
		case keyErr == nil && m.CheckOnly:
			continue
		case keyErr == nil:
			todo = append(todo, m)
			continue
		}
		if _, ok := keyErr.(*AssertionError); ok {
			asserted = keyErr
			continue
		}
		// What is in the way may have come after this transaction was committed: the request is an
		// old one.
		rec, err := tx.OwnRecord(m.Key, p.StartTS)
		if err != nil {
			return Prewritten{}, err
		}
		if rec.Committed() {
			return Prewritten{Committed: rec.Own.CommitTS}, nil
		}
		res.InWay = append(res.InWay, keyErr)
	}
	if len(res.InWay) == 0 && asserted != nil {
		res.InWay = []error{asserted}
	}
	if len(res.InWay) > 0 {
		return res, nil
	}
	return tx.carryOut(p, todo, own), nil
}

// ownLocks are the locks that earlier attempts of a prewrite have left.
type ownLocks struct {
	// plain: one of them is no lock of asynchronous commit.
	any, plain bool
	// min is the largest timestamp that was chosen for one of them.
	min uint64
}

func (o *ownLocks) add(l *mvcc.Lock) {
	o.any = true
	o.plain = o.plain || !l.AsyncCommit
	o.min = max(o.min, l.MinCommitTS)
}

// carryOut locks or commits keys that nothing is in the way of.
func (tx *txn) carryOut(p *Prewrite, todo []*Mutation, own ownLocks) Prewritten {
	chosen := tx.choose(p, todo, own)
	if chosen > 0 && p.OnePC {
		for _, m := range todo {
			tx.commitAtOnce(p, m, chosen)
		}
		return Prewritten{CommitTS: chosen}
	}
	for _, m := range todo {
		tx.lock(p, m, chosen)
	}
	if own.plain || chosen == 0 && len(todo) > 0 {
		return Prewritten{}
	}
	return Prewritten{MinCommitTS: max(chosen, own.min)}
}

// choose chooses the least timestamp of the commit. 0 leaves it to the client: then all locks of
// the request are plain ones. The claim that comes with it lasts until the write is applied.
func (tx *txn) choose(p *Prewrite, todo []*Mutation, own ownLocks) uint64 {
	// What an earlier attempt has left as it is must not be half of something else.
	if !tx.chooses || len(todo) == 0 || own.plain || p.OnePC && own.any {
		return 0
	}
	keys := make([][]byte, len(todo))
	for i, m := range todo {
		keys[i] = m.Key
	}
	tx.claim = tx.locks.Claim(tx.domain, p.StartTS, keys)
	chosen := tx.claim.Decide(max(p.floor(todo), p.StartTS+1))
	if p.MaxCommitTS > 0 && chosen > p.MaxCommitTS {
		tx.unclaim()
		return 0
	}
	return chosen
}

// floor is the least commit timestamp that the client and its pessimistic locks allow.
func (p *Prewrite) floor(todo []*Mutation) uint64 {
	floor := p.MinCommitTS
	if p.ForUpdateTS > 0 {
		floor = max(floor, p.ForUpdateTS+1)
	}
	for _, m := range todo {
		if m.held != nil {
			floor = max(floor, m.held.MinCommitTS, m.held.ForUpdateTS+1)
		}
	}
	return floor
}

// lock locks a key; chosen is 0 for a plain lock.
func (tx *txn) lock(p *Prewrite, m *Mutation, chosen uint64) {
	lock := &mvcc.Lock{
		Primary: p.Primary, Ts: p.StartTS, Ttl: p.TTL, Kind: m.Kind,
		TxnSize: p.TxnSize, MinCommitTS: p.MinCommitTS, TxnSource: p.TxnSource,
		ForUpdateTS: p.ForUpdateTS,
	}
	if m.held != nil {
		lock.Ttl, lock.MinCommitTS = max(lock.Ttl, m.held.Ttl),
			max(lock.MinCommitTS, m.held.MinCommitTS)
		lock.ForUpdateTS = max(lock.ForUpdateTS, m.held.ForUpdateTS)
	}
	if chosen > 0 {
		lock.AsyncCommit, lock.MinCommitTS = true, chosen
		if bytes.Equal(m.Key, p.Primary) {
			lock.Secondaries = p.Secondaries
		}
	}
	if m.Kind == mvcc.WriteKindPut {
		tx.PutLockWithValue(m.Key, lock, m.Value)
	} else {
		tx.PutLock(m.Key, lock)
	}
}

// commitAtOnce writes what prewrite and commit would leave.
func (tx *txn) commitAtOnce(p *Prewrite, m *Mutation, commitTS uint64) {
	w := &mvcc.Write{StartTS: p.StartTS, Kind: m.Kind, TxnSource: p.TxnSource}
	if m.Kind == mvcc.WriteKindPut {
		w.ShortValue = tx.PutOrInline(m.Key, p.StartTS, m.Value)
	}
	tx.PutWrite(m.Key, commitTS, w)
	if m.held != nil {
		tx.DeleteLock(m.Key)
	}
}

// examine decides about one key: mine is the lock that an earlier attempt has left, keyErr what is
// in the way.
func (tx *txn) examine(p *Prewrite, m *Mutation) (mine *mvcc.Lock, keyErr, err error) {
	m.held = nil
	l, err := tx.Lock(m.Key)
	if err != nil {
		return nil, nil, err
	}
	if l != nil && l.Ts == p.StartTS {
		if l.Kind != mvcc.WriteKindPessimistic {
			return l, nil, nil
		}
		m.held = l
		if err := m.mayReplace(p, l); err != nil {
			return nil, nil, err
		}
		keyErr, err = tx.assertedStrictly(p, m)
		return nil, keyErr, err
	}
	if p.ForUpdateTS > 0 {
		keyErr, err = tx.examinePessimistic(p, m, l)
		return nil, keyErr, err
	}
	newest, err := tx.SeekWrite(m.Key, mvcc.TsMax)
	if err != nil {
		return nil, nil, err
	}
	if newest != nil && inConflict(newest, p.StartTS) {
		return nil, conflict(p, m, newest), nil
	}
	if l != nil {
		return nil, &LockedError{mvcc.KeyLock{Key: m.Key, Lock: *l}}, nil
	}
	keyErr, err = tx.expected(p, m, newest)
	return nil, keyErr, err
}

// inConflict tells whether the newest record of a key is in the way of a transaction. One that was
// committed at its very start timestamp, which a store has chosen, is seen by it.
func inConflict(newest *mvcc.Found, startTS uint64) bool {
	return newest.CommitTS > startTS || newest.CommitTS == startTS && rolledBackAt(newest)
}

// rolledBackAt tells whether a record says that the transaction that began at its timestamp was
// rolled back.
func rolledBackAt(r *mvcc.Found) bool {
	return r.Kind == mvcc.WriteKindRollback || r.OverlappedRollback
}

func conflict(p *Prewrite, m *Mutation, newest *mvcc.Found) error {
	e := &ConflictError{
		StartTS: p.StartTS, ConflictTS: newest.StartTS, CommitTS: newest.CommitTS,
		Key: m.Key, Primary: bytes.Clone(p.Primary),
	}
	if newest.CommitTS == p.StartTS {
		e.Reason = ConflictRolledBack
	}
	return e
}

// expected compares whether the key exists with what its mutation says of it. Nothing is newer than
// the transaction.
func (tx *txn) expected(p *Prewrite, m *Mutation, newest *mvcc.Found) (keyErr, err error) {
	if !m.Insert && !m.CheckOnly && m.Assert == AssertNothing {
		return nil, nil
	}
	if newest != nil && (!newest.Changes() || newest.Fence != nil) {
		if newest, err = tx.Version(m.Key, mvcc.TsMax); err != nil {
			return nil, err
		}
	}
	exists := newest != nil && newest.Kind == mvcc.WriteKindPut
	if exists && (m.Insert || m.CheckOnly) {
		return &ExistsError{Key: m.Key}, nil
	}
	return m.asserted(p, newest), nil
}

// asserted compares the newest change of a key with the mutation's assertion.
func (m *Mutation) asserted(p *Prewrite, newest *mvcc.Found) error {
	exists := newest != nil && newest.Kind == mvcc.WriteKindPut
	if m.Assert == AssertNothing || exists == (m.Assert == AssertExists) {
		return nil
	}
	e := &AssertionError{StartTS: p.StartTS, Key: m.Key, Assertion: m.Assert}
	if newest != nil {
		e.Existing, e.Written = newest.StartTS, newest.CommitTS
	}
	return e
}
