package storage

import (
	"context"
	"errors"
)

// ErrConflict means that a condition of the transaction did not hold; nothing was written.
var ErrConflict = errors.New("storage: condition of the transaction does not hold")

// KV is one stored pair.
type KV struct {
	Key         string
	Value       []byte
	ModRevision int64 // 0 if the key does not exist
}

// Cond is one condition of a transaction.
type Cond struct {
	Key    string
	ByRev  bool   // compare ModRevision (0 = absent), else the value
	Rev    int64  // for ByRev
	Value  []byte // for comparison by value; an absent key never equals a value
	Reason string // named in the error
}

// RevisionIs holds if the key was last changed at that revision; 0 means the key is absent.
func RevisionIs(key string, rev int64) Cond { return Cond{Key: key, ByRev: true, Rev: rev} }

// ValueIs holds if the key has exactly this value.
func ValueIs(key string, value []byte) Cond { return Cond{Key: key, Value: value} }

// Op is one write of a transaction. A nil Value deletes.
type Op struct {
	Key   string
	Value []byte
}

// Put writes a value.
func Put(key string, value []byte) Op {
	if value == nil {
		value = []byte{}
	}
	return Op{Key: key, Value: value}
}

// Delete removes a key.
func Delete(key string) Op { return Op{Key: key} }

// Event is a change of a watched key. Value is nil if it was deleted.
type Event struct {
	KV
	Deleted bool
}

// Storage is a linearizable ordered map with transactions and watches.
//
// Implementations are safe for concurrent use. A call that returned nil is durable. A call that
// failed with anything but ErrConflict may or may not have been carried out.
type Storage interface {
	// Get returns the pair; ModRevision is 0 if the key is absent.
	Get(ctx context.Context, key string) (KV, error)
	// Range returns all pairs whose key begins with prefix, in key order.
	Range(ctx context.Context, prefix string) ([]KV, error)
	// Txn carries out all ops if all conditions hold, else returns ErrConflict. The returned
	// revision is the ModRevision of everything it wrote.
	Txn(ctx context.Context, conds []Cond, ops []Op) (rev int64, err error)
	// Watch delivers changes of one key made after revision fromRev until ctx ends or the watch
	// breaks; then the channel is closed and the caller starts over with a Get.
	Watch(ctx context.Context, key string, fromRev int64) <-chan Event
}
