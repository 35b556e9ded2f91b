package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/pkg/redact"
)

// Reader reads locks and versions from one view. It keeps one iterator over the write family, since
// opening it is most of a read's cost. Not safe for concurrent use; Close it before the view.
type Reader struct {
	view   storage.Reader
	codec  Codec
	writes storage.Iterator
	// encoded is the key of the last SeekWrite.
	encoded []byte
	newest  bool
}

// NewReader returns a reader of view, which stays the caller's.
func NewReader(view storage.Reader, codec Codec) *Reader {
	return &Reader{view: view, codec: codec}
}

// Newest has reads fail with a *NewerError where a key has a version behind the timestamp of the
// read.
func (r *Reader) Newest() { r.newest = true }

// NewerError: a read that must see the newest version would miss it.
type NewerError struct {
	Key []byte
	Found
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("write conflict: key %v has a newer version of the transaction %d at %d",
		redact.Key(e.Key), e.StartTS, e.CommitTS)
}

// Close releases the iterator.
func (r *Reader) Close() {
	if r.writes != nil {
		r.writes.Close()
		r.writes = nil
	}
}

// Lock is the key's lock, nil if there is none.
func (r *Reader) Lock(key []byte) (*Lock, error) {
	data, found, err := r.view.Get(engine.CFLock, r.codec.LockKey(key))
	if err != nil || !found {
		return nil, err
	}
	l, err := r.codec.DecodeLock(data)
	if err != nil {
		return nil, fmt.Errorf("lock of key %v: %w", redact.Key(key), err)
	}
	return &l, nil
}

// Found is a write record and its commit timestamp.
type Found struct {
	Write
	CommitTS uint64
}

func (r *Reader) writeIter() storage.Iterator {
	if r.writes == nil {
		r.writes = r.view.Iterate(engine.CFWrite, nil, nil)
	}
	return r.writes
}

// SeekWrite is the key's newest write record with a commit timestamp of at most ts, of any kind;
// nil if there is none.
func (r *Reader) SeekWrite(key []byte, ts uint64) (*Found, error) {
	it := r.writeIter()
	r.encoded = memcomparable.Append(r.encoded[:0], key)
	it.SeekGE(binary.BigEndian.AppendUint64(r.encoded, ^ts))
	return r.current()
}

// next is the record of the same key after the one that SeekWrite or next has returned.
func (r *Reader) next() (*Found, error) {
	r.writes.Next()
	return r.current()
}

// current is the record that the iterator stands on, if it is one of the key of the last SeekWrite.
func (r *Reader) current() (*Found, error) {
	it := r.writes
	if !it.Valid() {
		return nil, it.Err()
	}
	at := it.Key()
	if n := len(r.encoded); len(at) != n+8 || !bytes.Equal(at[:n], r.encoded) {
		return nil, nil
	}
	ts := ^binary.BigEndian.Uint64(at[len(r.encoded):])
	w, err := r.codec.DecodeWrite(it.Value())
	if err != nil {
		return nil, fmt.Errorf("write record of key %v at %d: %w", redact.Key(r.encoded), ts, err)
	}
	return &Found{Write: w, CommitTS: ts}, nil
}

// Version is the Put or Delete record that a read at ts sees; nil if there is none.
func (r *Reader) Version(key []byte, ts uint64) (*Found, error) {
	if r.newest && ts != TsMax {
		f, err := r.version(key, TsMax)
		if err == nil && f != nil && f.CommitTS > ts {
			err = &NewerError{Key: bytes.Clone(key), Found: *f}
		}
		return f, err
	}
	return r.version(key, ts)
}

func (r *Reader) version(key []byte, ts uint64) (*Found, error) {
	f, err := r.SeekWrite(key, ts)
	for ; f != nil && err == nil; f, err = r.next() {
		if !f.Changes() {
			continue
		}
		if f.fencedOff(ts) {
			return nil, nil
		}
		return f, nil
	}
	return nil, err
}

// Get is the value that a read at ts sees. Locks are not looked at.
func (r *Reader) Get(key []byte, ts uint64) (value []byte, found bool, err error) {
	f, err := r.Version(key, ts)
	if err != nil || f == nil || f.Kind == WriteKindDelete {
		return nil, false, err
	}
	value, err = r.Value(key, f)
	return value, err == nil, err
}

// Value is that of a Put.
func (r *Reader) Value(key []byte, f *Found) ([]byte, error) {
	if f.ShortValue != nil {
		return f.ShortValue, nil
	}
	return r.stored(key, f.StartTS)
}

// LockedValue is what a transaction that holds the lock is about to write; found is false for a
// delete.
func (r *Reader) LockedValue(key []byte, l *Lock) (value []byte, found bool, err error) {
	switch {
	case l.Kind != WriteKindPut:
		return nil, false, nil
	case l.ShortValue != nil:
		return l.ShortValue, true, nil
	}
	value, err = r.stored(key, l.Ts)
	return value, err == nil, err
}

// stored reads the default family. The absence of a value is damage, never "not found".
func (r *Reader) stored(key []byte, startTS uint64) ([]byte, error) {
	value, found, err := r.view.Get(engine.CFDefault, EncodeKey(key, startTS))
	if err == nil && !found {
		err = errNoValue(key, startTS)
	}
	return value, err
}

func errNoValue(key []byte, startTS uint64) error {
	return fmt.Errorf("%w: DefaultNotFound: key %v has no value of the transaction %d", ErrCorrupt,
		redact.Key(key), startTS)
}

// Record says what became of a transaction at a key.
type Record struct {
	// Own is the transaction's commit or rollback record; nil if there is none.
	Own *Found
	// Overlapped is another transaction's record whose commit timestamp is this transaction's start
	// timestamp. If its OverlappedRollback is set, this transaction was rolled back.
	Overlapped *Found
	// Newer is the commit timestamp of the oldest Put or Delete behind the transaction's start; 0
	// if there is none.
	Newer uint64
}

// Committed tells whether the transaction has committed the key.
func (r *Record) Committed() bool { return r.Own != nil && r.Own.Kind != WriteKindRollback }

// RolledBack tells whether it was rolled back.
func (r *Record) RolledBack() bool {
	return r.Own != nil && r.Own.Kind == WriteKindRollback ||
		r.Overlapped != nil && r.Overlapped.OverlappedRollback
}

// OwnRecord looks for what the transaction has left at the key. A commit record lies behind its
// start timestamp, so all newer records are looked through.
func (r *Reader) OwnRecord(key []byte, startTS uint64) (Record, error) {
	var rec Record
	f, err := r.SeekWrite(key, TsMax)
	for ; f != nil && err == nil && f.CommitTS >= startTS; f, err = r.next() {
		switch {
		case f.StartTS == startTS:
			rec.Own = f
			return rec, nil
		case f.CommitTS == startTS:
			rec.Overlapped = f
			return rec, nil
		case f.Changes():
			rec.Newer = f.CommitTS
		}
	}
	return rec, err
}

// KeyLock is a lock and its key.
type KeyLock struct {
	Key []byte
	Lock
}

// Span is the user keys of [From, To); nil is the region's bound.
type Span struct{ From, To []byte }

// keys are the span's bounds in the default and the write family.
func (s Span) keys() (lower, upper []byte) {
	return encodeBound(s.From, memcomparable.Encode), encodeBound(s.To, memcomparable.Encode)
}

// locks are the span's bounds in the lock family.
func (s Span) locks(c Codec) (lower, upper []byte) {
	return encodeBound(s.From, c.LockKey), encodeBound(s.To, c.LockKey)
}

func encodeBound(key []byte, encode func([]byte) []byte) []byte {
	if key == nil {
		return nil
	}
	return encode(key)
}

// Locks lists locks of the span that match. It ends after max locks or once their keys and values
// have maxBytes, whichever comes first; cut says that there may be more.
func (r *Reader) Locks(
	span Span, max, maxBytes int, match func(*Lock) bool,
) (out []KeyLock, cut bool, err error) {
	lower, upper := span.locks(r.codec)
	it := r.view.Iterate(engine.CFLock, lower, upper)
	defer it.Close()
	size := 0
	for it.First(); it.Valid(); it.Next() {
		if len(out) >= max || size >= maxBytes {
			return out, true, nil
		}
		kl, err := r.lockAt(it)
		if err != nil {
			return nil, false, err
		}
		if match(&kl.Lock) {
			out = append(out, kl)
			size += len(it.Key()) + len(it.Value())
		}
	}
	return out, false, it.Err()
}

func (r *Reader) lockAt(it storage.Iterator) (KeyLock, error) {
	key, err := r.codec.UserKey(it.Key())
	if err != nil {
		return KeyLock{}, err
	}
	l, err := r.codec.DecodeLock(it.Value())
	if err != nil {
		return KeyLock{}, fmt.Errorf("lock of key %v: %w", redact.Key(key), err)
	}
	return KeyLock{Key: key, Lock: l}, nil
}
