package commands

import (
	"bytes"
	"context"
	"time"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// LockedKey is a key that a pessimistic transaction is to lock.
type LockedKey struct {
	Key []byte
	// Absent: the key must not exist.
	Absent bool
}

// PessimisticLock has a transaction lock keys before it is committed. Nobody else can change them
// from then on.
type PessimisticLock struct {
	Keys         []LockedKey
	Primary      []byte
	StartTS, TTL uint64
	// ForUpdateTS is the timestamp of this request: what was committed later than that is a
	// conflict.
	ForUpdateTS uint64
	// MinCommitTS is that of Prewrite.
	MinCommitTS uint64
	// ReturnValues asks for the values, Exists for whether there are any.
	ReturnValues, Exists bool
	// OnlyIfExists locks only keys that exist.
	OnlyIfExists bool
	// First: the transaction has no other lock, so that it is part of no deadlock.
	First bool
	// Wait is for how long to wait for locks of others; 0 does not.
	Wait time.Duration
	// Tag is shown to people who look at who waits for whom.
	Tag []byte
}

// errLockNotFound has the words by which programs recognize it.
func errLockNotFound(key []byte, startTS uint64) error {
	return abortf("PessimisticLockNotFound: the transaction %d has lost its lock on key %v",
		startTS, redact.Key(key))
}

// mayReplace tells whether a mutation may take the place of the transaction's own pessimistic lock.
func (m *Mutation) mayReplace(p *Prewrite, held *mvcc.Lock) error {
	switch {
	case p.ForUpdateTS == 0:
		return abortf("LockTypeNotMatch: key %v has a pessimistic lock of the transaction %d",
			redact.Key(m.Key), p.StartTS)
	case m.CheckOnly:
		return abortf("key %v is locked, and cannot only be checked", redact.Key(m.Key))
	case m.ExpectedForUpdateTS > 0 && held.ForUpdateTS != m.ExpectedForUpdateTS:
		return errLockNotFound(m.Key, p.StartTS)
	}
	return nil
}

// examinePessimistic is examine where a pessimistic transaction has no lock.
func (tx *txn) examinePessimistic(
	p *Prewrite, m *Mutation, foreign *mvcc.Lock,
) (keyErr, err error) {
	if m.CheckOnly {
		return nil, abortf("a pessimistic transaction cannot only check key %v", redact.Key(m.Key))
	}
	if m.Check == LockedBefore {
		return tx.amend(p, m, foreign)
	}
	rec, err := tx.OwnRecord(m.Key, p.StartTS)
	if err != nil {
		return nil, err
	}
	newest, err := tx.SeekWrite(m.Key, mvcc.TsMax)
	if err != nil {
		return nil, err
	}
	switch {
	case rec.Committed():
		return conflict(p, m, rec.Own), nil // the caller finds the record
	case rec.RolledBack():
		e := &ConflictError{
			StartTS: p.StartTS, ConflictTS: p.StartTS, CommitTS: p.StartTS, Key: m.Key,
			Primary: p.Primary,
		}
		e.Reason = ConflictRolledBack
		return e, nil
	case foreign != nil:
		l := *foreign
		l.Ttl = 0 // it holds up locks of others: it is to be resolved at once
		return &LockedError{mvcc.KeyLock{Key: m.Key, Lock: l}}, nil
	case m.Check == CheckConflict && newest != nil && newest.CommitTS > p.StartTS:
		e := conflict(p, m, newest).(*ConflictError)
		e.Reason = ConflictLazy
		return e, nil
	}
	if p.Retry {
		changed, err := tx.changedBehind(m.Key, p.ForUpdateTS)
		if err != nil {
			return nil, err
		}
		if changed != nil {
			return nil, errLockNotFound(m.Key, p.StartTS)
		}
	}
	if m.Check == CheckConflict {
		return tx.expected(p, m, newest)
	}
	return tx.assertedStrictly(p, m)
}

// assertedStrictly checks a strict assertion of a pessimistic transaction, where nothing else of
// the mutation needs the key's newest change. A key that was changed behind the transaction's locks
// explains why the assertion fails: then that is the error.
func (tx *txn) assertedStrictly(p *Prewrite, m *Mutation) (keyErr, err error) {
	if !m.Strict || m.Assert == AssertNothing {
		return nil, nil
	}
	newest, err := tx.Version(m.Key, mvcc.TsMax)
	if err != nil {
		return nil, err
	}
	if keyErr = m.asserted(p, newest); keyErr == nil {
		return nil, nil
	}
	changed, err := tx.changedBehind(m.Key, p.ForUpdateTS)
	if err != nil {
		return nil, err
	}
	if changed != nil {
		return nil, errLockNotFound(m.Key, p.StartTS)
	}
	return keyErr, nil
}

// amend has a pessimistic lock that got lost be forgiven: nobody has written the key since the
// transaction began.
func (tx *txn) amend(p *Prewrite, m *Mutation, foreign *mvcc.Lock) (keyErr, err error) {
	rec, err := tx.OwnRecord(m.Key, p.StartTS)
	if err != nil {
		return nil, err
	}
	if rec.Committed() {
		return conflict(p, m, rec.Own), nil // the caller finds the record
	}
	newest, err := tx.SeekWrite(m.Key, mvcc.TsMax)
	if err != nil {
		return nil, err
	}
	if foreign != nil || rec.RolledBack() || newest != nil && newest.CommitTS >= p.StartTS {
		return nil, errLockNotFound(m.Key, p.StartTS)
	}
	return tx.assertedStrictly(p, m)
}

// changedBehind is the newest record of a key that is no rollback, if it is behind ts.
func (tx *txn) changedBehind(key []byte, ts uint64) (*mvcc.Found, error) {
	f, err := tx.SeekWrite(key, mvcc.TsMax)
	for ; f != nil && err == nil && f.CommitTS > ts; f, err = tx.SeekWrite(key, f.CommitTS-1) {
		if f.Kind != mvcc.WriteKindRollback {
			return f, nil
		}
	}
	return nil, err
}

// AcquireLocks locks all keys, or none of them. It returns what ForUpdateTS shows of each key.
// Errors are *LockedError, after the wait; *ConflictError, *ExistsError, *DeadlockError and
// *AbortError.
func (e *Executor) AcquireLocks(
	ctx context.Context, c *kvrpcpb.Context, p *PessimisticLock,
) (values []Value, err error) {
	if err := checkStartTS(p.StartTS); err != nil {
		return nil, err
	}
	if p.ForUpdateTS < p.StartTS || p.ForUpdateTS == mvcc.TsMax {
		return nil,
			abortf("InvalidTxnTso: a transaction that started at %d cannot lock at %d", p.StartTS,
				p.ForUpdateTS)
	}
	if err := e.raise(ctx, p.ForUpdateTS); err != nil {
		return nil, err
	}
	keys := make([][]byte, len(p.Keys))
	for i, k := range p.Keys {
		keys[i] = k.Key
	}
	return e.lockOrWait(ctx, c, p, keys, func() ([]Value, error) {
		err := e.update(ctx, c, keys, effect{}, func(tx *txn) error {
			values, err = tx.lockAll(p)
			return err
		})
		if err != nil {
			return nil, err
		}
		return values, nil
	})
}

// lockAll locks all keys.
func (tx *txn) lockAll(p *PessimisticLock) ([]Value, error) {
	if err := tx.young(p.StartTS); err != nil {
		return nil, err
	}
	values := make([]Value, len(p.Keys))
	for i := range p.Keys {
		v, err := tx.lockEarly(p, &p.Keys[i])
		if err != nil {
			return nil, err
		}
		values[i] = v
	}
	return values, nil
}

// lockEarly locks one key, and reads it.
func (tx *txn) lockEarly(p *PessimisticLock, k *LockedKey) (Value, error) {
	l, err := tx.Lock(k.Key)
	if err != nil {
		return Value{}, err
	}
	own := l != nil && l.Ts == p.StartTS
	switch {
	case own && l.Kind != mvcc.WriteKindPessimistic:
		return Value{},
			abortf("LockTypeNotMatch: key %v of the transaction %d is prewritten",
				redact.Key(k.Key), p.StartTS)
	case l != nil && !own:
		return Value{}, &LockedError{mvcc.KeyLock{Key: k.Key, Lock: *l}}
	case !own:
		if err := tx.lockable(p, k); err != nil {
			return Value{}, err
		}
	}
	v, err := tx.current(p, k)
	if err != nil || !v.Found && p.OnlyIfExists && !own {
		return v, err
	}
	if own && l.ForUpdateTS >= p.ForUpdateTS {
		return v, nil // it came again
	}
	next := &mvcc.Lock{
		Primary: bytes.Clone(p.Primary), Ts: p.StartTS, Ttl: p.TTL, Kind: mvcc.WriteKindPessimistic,
		ForUpdateTS: p.ForUpdateTS,
		MinCommitTS: p.MinCommitTS,
	}
	if own {
		next.Ttl, next.MinCommitTS = max(next.Ttl, l.Ttl), max(next.MinCommitTS, l.MinCommitTS)
	}
	tx.PutLock(k.Key, next)
	return v, nil
}

// lockable tells whether a key that is not locked can be.
func (tx *txn) lockable(p *PessimisticLock, k *LockedKey) error {
	rec, err := tx.OwnRecord(k.Key, p.StartTS)
	switch {
	case err != nil:
		return err
	case rec.Committed():
		return committed(k.Key, rec)
	case rec.RolledBack():
		return abortf("PessimisticLockRolledBack: the transaction %d was rolled back at key %v",
			p.StartTS, redact.Key(k.Key))
	}
	newer, err := tx.changedBehind(k.Key, p.ForUpdateTS)
	if err != nil || newer == nil {
		return err
	}
	return &ConflictError{
		StartTS: p.StartTS, ConflictTS: newer.StartTS, CommitTS: newer.CommitTS, Key: k.Key,
		Primary: bytes.Clone(p.Primary),
		Reason:  ConflictPessimistic,
	}
}

// current reads what is asked for of a key.
func (tx *txn) current(p *PessimisticLock, k *LockedKey) (Value, error) {
	if !k.Absent && !p.ReturnValues && !p.Exists && !p.OnlyIfExists {
		return Value{}, nil
	}
	f, err := tx.Version(k.Key, p.ForUpdateTS)
	if err != nil || f == nil || f.Kind == mvcc.WriteKindDelete {
		return Value{}, err
	}
	if k.Absent {
		return Value{}, &ExistsError{Key: k.Key}
	}
	v := Value{Found: true, CommitTS: f.CommitTS}
	if p.ReturnValues {
		v.Data, err = tx.Value(k.Key, f)
		v.Data = bytes.Clone(v.Data)
	}
	return v, err
}

// A transaction that has locked a key relies on it, from the timestamp of that lock up to the one
// of its newest lock, wherever that is: what it has read is what was there then. If it writes the
// key, or commits it as locked, the record keeps earlier timestamps away. Else, once the lock has
// gone, only max_ts does: another transaction may have taken its own timestamp long ago, and have
// waited for the lock since.
//
// Invariant: the lock of a pessimistic transaction goes without a commit record only after max_ts
// is at the timestamp of the transaction's newest lock, or later, or this store may not choose
// before it is (Timestamps.doubt).

// letGo removes such a lock. What the newest one is is not known here.
func (tx *txn) letGo(key []byte) {
	tx.times.doubt(tx.domain.RegionID)
	tx.DeleteLock(key)
}

// ReleaseLocks drops a transaction's pessimistic locks of keys, or of all the region without keys,
// that were taken at forUpdateTS or before; it is to be the timestamp of the transaction's newest
// lock. No record is left: the transaction may lock the keys again.
func (e *Executor) ReleaseLocks(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS, forUpdateTS uint64,
) error {
	if err := checkStartTS(startTS); err != nil {
		return err
	}
	if forUpdateTS == mvcc.TsMax || e.raise(ctx, forUpdateTS) != nil {
		e.times.doubt(c.GetRegionId()) // that is as good, and needs no placement service
	}
	if len(keys) > 0 {
		return e.release(ctx, c, distinct(keys), startTS, forUpdateTS)
	}
	var from []byte
	for {
		locks, _, err := e.someLocks(ctx, c, mvcc.Span{From: from}, resolveLocks, resolveBytes,
			func(l *mvcc.Lock) bool {
				return l.Ts == startTS && l.Kind == mvcc.WriteKindPessimistic
			})
		if err != nil || len(locks) == 0 {
			return err
		}
		keys := make([][]byte, len(locks))
		for i, l := range locks {
			keys[i] = l.Key
		}
		if err := e.release(ctx, c, keys, startTS, forUpdateTS); err != nil {
			return err
		}
		from = append(bytes.Clone(keys[len(keys)-1]), 0)
	}
}

func (e *Executor) release(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS, forUpdateTS uint64,
) error {
	return e.update(ctx, c, keys, ends, func(tx *txn) error {
		for _, k := range keys {
			l, err := tx.Lock(k)
			if err != nil {
				return err
			}
			if l != nil && l.Ts == startTS && l.Kind == mvcc.WriteKindPessimistic &&
				l.ForUpdateTS <= forUpdateTS {
				tx.DeleteLock(k)
			}
		}
		return nil
	})
}
