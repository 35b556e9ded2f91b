package commands

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Mutation is what a transaction is about to do to a key. Kind is Put, Delete or Lock.
type Mutation struct {
	Kind       mvcc.WriteKind
	Key, Value []byte
}

// Prewrite is the first phase of a transaction.
type Prewrite struct {
	Mutations    []Mutation
	Primary      []byte
	StartTS, TTL uint64
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
// which it is true: *LockedError and *ConflictError.
func (e *Executor) Prewrite(ctx context.Context, c *kvrpcpb.Context, p *Prewrite) (keyErrs []error, err error) {
	if len(p.Mutations) == 0 {
		return nil, nil
	}
	if p.StartTS == 0 || p.StartTS == mvcc.TsMax {
		return nil, abortf("InvalidTxnTso: a transaction cannot start at %d", p.StartTS)
	}
	muts := lastOfEach(p.Mutations)
	keys := make([][]byte, len(muts))
	for i, m := range muts {
		keys[i] = m.Key
	}
	err = e.update(ctx, c, keys, begins, func(tx *txn) error {
		keyErrs = nil
		for i := range muts {
			keyErr, err := tx.prewrite(p, &muts[i])
			if err != nil {
				return err
			}
			if keyErr == nil {
				continue
			}
			// What is in the way may have come after this transaction was committed: the request is an old one.
			rec, err := tx.OwnRecord(muts[i].Key, p.StartTS)
			if err != nil {
				return err
			}
			if rec.Committed() {
				keyErrs = nil
				return errNothing
			}
			keyErrs = append(keyErrs, keyErr)
		}
		if len(keyErrs) > 0 {
			return errNothing
		}
		return nil
	})
	if err == errNothing {
		err = nil
	}
	return keyErrs, err
}

// errNothing has nothing written, without being an error to anyone.
var errNothing = abortf("nothing to write")

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
		return &ConflictError{
			StartTS: p.StartTS, ConflictTS: newest.StartTS, CommitTS: newest.CommitTS,
			Key: m.Key, Primary: bytes.Clone(p.Primary),
			SelfRolledBack: newest.CommitTS == p.StartTS && (newest.Kind == mvcc.WriteKindRollback || newest.OverlappedRollback),
		}, nil
	}
	if l != nil {
		return &LockedError{mvcc.KeyLock{Key: m.Key, Lock: *l}}, nil
	}
	lock := &mvcc.Lock{Primary: p.Primary, Ts: p.StartTS, Ttl: p.TTL, Kind: m.Kind}
	if m.Kind == mvcc.WriteKindPut {
		tx.PutLockWithValue(m.Key, lock, m.Value)
	} else {
		tx.PutLock(m.Key, lock)
	}
	return nil, nil
}
