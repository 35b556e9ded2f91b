package commands

import (
	"bytes"
	"context"

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
}

// Prewrite is the first phase of a transaction.
type Prewrite struct {
	Mutations    []Mutation
	Primary      []byte
	StartTS, TTL uint64
	// TxnSize is about how many keys the transaction has locked; it tells those who resolve a lock what to expect.
	TxnSize uint64
	// MinCommitTS is the least timestamp at which the transaction commits. A reader may raise that of the primary; 0
	// says that none may.
	MinCommitTS uint64
	// TxnSource is kept in lock and write record.
	TxnSource uint64
}

// lastOfEach keeps the last mutation of each key.
func lastOfEach(muts []Mutation) []Mutation {
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

// Prewrite locks all keys and stores their values, or does nothing. keyErrs says what is in the way, for each key of
// which it is true: *LockedError, *ConflictError and *ExistsError, or *AssertionError if nothing else is in the way.
func (e *Executor) Prewrite(ctx context.Context, c *kvrpcpb.Context, p *Prewrite) (keyErrs []error, err error) {
	if err := checkStartTS(p.StartTS); err != nil {
		return nil, err
	}
	muts := lastOfEach(p.Mutations)
	keys := make([][]byte, len(muts))
	for i, m := range muts {
		keys[i] = m.Key
	}
	err = e.update(ctx, c, keys, begins, func(tx *txn) error {
		keyErrs, err = tx.prewriteAll(p, muts)
		if err == nil && len(keyErrs) > 0 {
			err = errNothing
		}
		return err
	})
	if err == errNothing {
		err = nil
	}
	return keyErrs, err
}

// errNothing has nothing written, without being an error to anyone.
var errNothing = abortf("nothing to write")

func (tx *txn) prewriteAll(p *Prewrite, muts []Mutation) (keyErrs []error, err error) {
	if err := tx.young(p.StartTS); err != nil {
		return nil, err
	}
	var asserted error
	for i := range muts {
		keyErr, err := tx.prewrite(p, &muts[i])
		if err != nil {
			return nil, err
		}
		if keyErr == nil {
			continue
		}
		if _, ok := keyErr.(*AssertionError); ok {
			asserted = keyErr
			continue
		}
		// What is in the way may have come after this transaction was committed: the request is an old one.
		rec, err := tx.OwnRecord(muts[i].Key, p.StartTS)
		if err != nil {
			return nil, err
		}
		if rec.Committed() {
			return nil, errNothing
		}
		keyErrs = append(keyErrs, keyErr)
	}
	if len(keyErrs) == 0 && asserted != nil {
		keyErrs = []error{asserted}
	}
	return keyErrs, nil
}

// prewrite decides about one key. keyErr is what is in the way.
func (tx *txn) prewrite(p *Prewrite, m *Mutation) (keyErr, err error) {
	l, err := tx.Lock(m.Key)
	if err != nil {
		return nil, err
	}
	if l != nil && l.Ts == p.StartTS {
		if l.Kind == mvcc.WriteKindPessimistic {
			return nil, abortf("LockTypeNotMatch: key %x has a pessimistic lock of the transaction %d", m.Key, p.StartTS)
		}
		return nil, nil // done by an earlier attempt
	}
	newest, err := tx.SeekWrite(m.Key, mvcc.TsMax)
	if err != nil {
		return nil, err
	}
	if newest != nil && newest.CommitTS >= p.StartTS {
		return conflict(p, m, newest), nil
	}
	if l != nil {
		return &LockedError{mvcc.KeyLock{Key: m.Key, Lock: *l}}, nil
	}
	if keyErr, err = tx.expected(p, m, newest); keyErr != nil || err != nil || m.CheckOnly {
		return keyErr, err
	}
	lock := &mvcc.Lock{
		Primary: p.Primary, Ts: p.StartTS, Ttl: p.TTL, Kind: m.Kind,
		TxnSize: p.TxnSize, MinCommitTS: p.MinCommitTS, TxnSource: p.TxnSource,
	}
	if m.Kind == mvcc.WriteKindPut {
		tx.PutLockWithValue(m.Key, lock, m.Value)
	} else {
		tx.PutLock(m.Key, lock)
	}
	return nil, nil
}

func conflict(p *Prewrite, m *Mutation, newest *mvcc.Found) error {
	e := &ConflictError{
		StartTS: p.StartTS, ConflictTS: newest.StartTS, CommitTS: newest.CommitTS,
		Key: m.Key, Primary: bytes.Clone(p.Primary),
	}
	if newest.CommitTS == p.StartTS && (newest.Kind == mvcc.WriteKindRollback || newest.OverlappedRollback) {
		e.Reason = ConflictRolledBack
	}
	return e
}

// expected compares whether the key exists with what its mutation says of it. Nothing is newer than the transaction.
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
	if m.Assert == AssertNothing || exists == (m.Assert == AssertExists) {
		return nil, nil
	}
	e := &AssertionError{StartTS: p.StartTS, Key: m.Key, Assertion: m.Assert}
	if newest != nil {
		e.Existing, e.Written = newest.StartTS, newest.CommitTS
	}
	return e, nil
}
