// Package storage is what the gRPC handlers know of a store: reads over one consistent view and
// atomic writes, within one region in raft mode.
package storage

import (
	"context"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// Modify is one change of a write.
type Modify struct {
	Delete     bool
	CF         engine.CF
	Key, Value []byte
	// TTL is how many seconds the value of a put lives, at most MaxTTL; 0: it does not expire. Only
	// an Expirer takes another.
	TTL uint64
}

// Storage serves reads and writes. Safe for concurrent use.
//
// Errors are the typed errors of package raftstore (region errors on the wire), context errors (a
// write may then still be carried out), or IO errors.
type Storage interface {
	// Get reads one key. The value is a copy; an empty value is a value.
	Get(
		ctx context.Context, c *kvrpcpb.Context, cf engine.CF, key []byte,
	) (value []byte, found bool, err error)
	// Reader returns a linearizable view of the request's region, which must have key, unless that
	// is nil; the caller closes it.
	Reader(ctx context.Context, c *kvrpcpb.Context, key []byte) (Reader, error)
	// Write carries out all changes atomically; the keys must lie in one region. A write with an
	// identity happens once, although it is sent again. index is applied in the region's log; 0
	// without a log.
	Write(ctx context.Context, c *kvrpcpb.Context, mods []Modify) (index uint64, err error)
}

// LocalGetter is a Storage that can often answer a Get without waiting for anyone.
type LocalGetter interface {
	// GetLocal is Get if ok; else nothing is known yet and Get must be asked. It never waits.
	GetLocal(c *kvrpcpb.Context, cf engine.CF, key []byte) (value []byte, found, ok bool, err error)
}

// LocalReader is a Storage that can often be read without waiting for anyone.
type LocalReader interface {
	// ReadLocal returns what reads the region if ok; else nothing is known yet and Reader must be
	// asked. It never waits.
	ReadLocal(c *kvrpcpb.Context, key []byte) (r LocalRead, ok bool, err error)
}

// LocalRead is a Reader that is not of one moment: each Get and each iterator shows what was
// written by the moment at which it is made. What it has shown counts only if Valid holds
// afterwards; then this store has led the region in Term all the time.
type LocalRead struct {
	Reader
	Term  uint64
	Valid func() bool
}

// AsyncWriter is a Storage that writes without holding up the caller.
type AsyncWriter interface {
	// WriteAsync is Write, except that done gets the outcome: exactly once, perhaps before
	// WriteAsync returns, on a goroutine that it must not hold up. A write that could not be
	// proposed by deadline fails; one that was proposed may be answered later than that, or not
	// before the store stops.
	WriteAsync(
		c *kvrpcpb.Context, mods []Modify, deadline time.Time, done func(index uint64, err error),
	)
}

// Swap is a compare-and-swap: the key gets the value, or is deleted, if it has what is expected.
type Swap struct {
	CF         engine.CF
	Key, Value []byte
	Delete     bool
	// Expected is the value that the key must have; with ExpectAbsent, it must not exist.
	Expected     []byte
	ExpectAbsent bool
	// TTL is that of the new value, as in Modify.
	TTL uint64
}

// Swapped is the outcome of a compare-and-swap.
type Swapped struct {
	Swapped bool
	// Previous is the value that was compared; Found is false if there was none.
	Previous []byte
	Found    bool
	// Index is as for Storage.Write.
	Index uint64
}

// Conditional is a Storage with writes that are decided at their place in the order of all writes.
type Conditional interface {
	// CompareAndSwap compares and swaps a key in one step. Errors and identities are as for Write.
	CompareAndSwap(ctx context.Context, c *kvrpcpb.Context, swap *Swap) (Swapped, error)
	// DeleteRange deletes the keys of [start, end), which must lie in the request's region; an
	// empty end is the end of the key space.
	DeleteRange(
		ctx context.Context, c *kvrpcpb.Context, cf engine.CF, start, end []byte,
	) (index uint64, err error)
	// DestroyRange deletes the keys of [start, end) in all column families, in all regions of which
	// this store has a replica. Nothing may be written to the range meanwhile.
	DestroyRange(ctx context.Context, start, end []byte) error
}

// Destroyer is a Conditional with replicas elsewhere.
type Destroyer interface {
	// SetOthers lets DestroyRange reach the regions that other stores lead. To be called before it
	// serves.
	SetOthers(o Others)
	// DestroyIn deletes the keys of [start, end), which must lie in the request's region, in all
	// column families; this store must lead the region.
	DestroyIn(ctx context.Context, c *kvrpcpb.Context, start, end []byte) error
}

// Others are the other stores.
type Others interface {
	// DestroyIn has another store carry out Destroyer's DestroyIn. Its errors are those of gRPC.
	DestroyIn(
		ctx context.Context, storeID uint64, req *kvrpcpb.DestroyRangeRequest,
	) (*kvrpcpb.DestroyRangeResponse, error)
}

// BoundStorage is a Storage whose writes can be bound to the leadership under which the reads were
// made that decided on them: a store that has lost the leadership in between, even if it has it
// again, refuses the write. Else a decision could take effect that was made without knowing what
// another leader has done.
type BoundStorage interface {
	Storage
	// Leadership is the term in which this store leads the request's region. It never waits, and
	// proves nothing.
	Leadership(c *kvrpcpb.Context) (term uint64, err error)
	// BoundReader is Reader, with the term in which this store led the region at the moment of the
	// view. The view shows everything that was written in earlier terms and can still take effect.
	BoundReader(
		ctx context.Context, c *kvrpcpb.Context, key []byte,
	) (r Reader, term uint64, err error)
	// WriteBound is WriteAsync of a write that is carried out only if this store still leads the
	// region in b.Term, and if the region still has the version of the request when the write is
	// applied. done gets the outcome as that of WriteAsync; known is false if this store will never
	// learn whether the write takes effect.
	WriteBound(
		c *kvrpcpb.Context, b Bound, mods []Modify, deadline time.Time,
		done func(err error, known bool),
	)
}

// Bound says under which conditions a write may be carried out.
type Bound struct {
	// Term is the leadership under which it was decided.
	Term uint64
	// Ends: it ends what takes space, so that a full disk is no reason to refuse it.
	Ends bool
	// Traced: its stages are recorded.
	Traced bool
}

// BoundRangeDeleter is a BoundStorage that deletes ranges.
type BoundRangeDeleter interface {
	// DeleteRangeBound deletes the keys of [start, end), which must lie in the request's region; an
	// empty end is the end of the key space. Conditions and outcome are those of WriteBound.
	DeleteRangeBound(
		c *kvrpcpb.Context, b Bound, cf engine.CF, start, end []byte, deadline time.Time,
		done func(err error, known bool))
}

// Splitter is a Storage that has regions to split.
type Splitter interface {
	// Split has each key begin a region, and returns the regions that the request's region became,
	// in key order.
	Split(ctx context.Context, c *kvrpcpb.Context, keys [][]byte) ([]*metapb.Region, error)
}

// Comparer is a Storage whose regions have replicas to compare with each other.
type Comparer interface {
	// Compare has the replicas of the request's region compared by their leader, and judged when
	// ctx ends if not all have answered by then.
	Compare(ctx context.Context, c *kvrpcpb.Context) (message.Comparison, error)
}

// Reader is a consistent view of one region's range. Not safe for concurrent use.
type Reader interface {
	// Range is the user keys [start, end) that the view may show; an empty end is +infinity.
	Range() (start, end []byte)
	Get(cf engine.CF, key []byte) (value []byte, found bool, err error)
	// Iterate walks user keys of [lower, upper) clipped to Range; nil upper means its end. The
	// caller closes the iterator before the reader.
	Iterate(cf engine.CF, lower, upper []byte) Iterator
	Close()
}

// Iterator is an engine iterator that shows user keys.
type Iterator interface {
	First()
	Last()
	// SeekGE moves to the first key >= key within the bounds, SeekLT to the last key < key.
	SeekGE(key []byte)
	SeekLT(key []byte)
	Next()
	Prev()
	Valid() bool
	Key() []byte
	Value() []byte
	Err() error
	Close()
}
