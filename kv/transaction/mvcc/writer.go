package mvcc

import (
	"bytes"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
)

// Writer gathers the changes of one command, in order. They are carried out together or not at all.
// Not safe for concurrent use.
type Writer struct {
	codec Codec
	mods  []storage.Modify
	size  int
}

// NewWriter returns an empty writer.
func NewWriter(codec Codec) *Writer { return &Writer{codec: codec} }

// Modifies are the changes so far.
func (w *Writer) Modifies() []storage.Modify { return w.mods }

// Size is about how many bytes the changes take.
func (w *Writer) Size() int { return w.size }

func (w *Writer) add(m storage.Modify) {
	w.size += len(m.Key) + len(m.Value)
	w.mods = append(w.mods, m)
}

func (w *Writer) put(cf engine.CF, key, value []byte) {
	w.add(storage.Modify{CF: cf, Key: key, Value: value})
}

func (w *Writer) del(cf engine.CF, key []byte) {
	w.add(storage.Modify{Delete: true, CF: cf, Key: key})
}

// PutLock sets the key's lock.
func (w *Writer) PutLock(key []byte, l *Lock) {
	w.put(engine.CFLock, w.codec.LockKey(key), w.codec.EncodeLock(l))
}

// DeleteLock removes the key's lock.
func (w *Writer) DeleteLock(key []byte) { w.del(engine.CFLock, w.codec.LockKey(key)) }

// PutWrite sets the key's write record at a commit timestamp.
func (w *Writer) PutWrite(key []byte, commitTS uint64, r *Write) {
	w.put(engine.CFWrite, EncodeKey(key, commitTS), w.codec.EncodeWrite(r))
}

// DeleteWrite removes the key's write record at a commit timestamp.
func (w *Writer) DeleteWrite(key []byte, commitTS uint64) {
	w.del(engine.CFWrite, EncodeKey(key, commitTS))
}

// PutLockWithValue sets the lock of a transaction that puts value, inline if it is short. l is
// changed.
func (w *Writer) PutLockWithValue(key []byte, l *Lock, value []byte) {
	l.ShortValue = w.PutOrInline(key, l.Ts, value)
	w.PutLock(key, l)
}

// PutOrInline stores a value in the default family, unless it is short: then it returns what is to
// be stored inline.
func (w *Writer) PutOrInline(key []byte, startTS uint64, value []byte) (short []byte) {
	if len(value) <= w.codec.InlineLimit() {
		return append([]byte{}, value...)
	}
	w.PutValue(key, startTS, value)
	return nil
}

// PutValue stores a value in the default family.
func (w *Writer) PutValue(key []byte, startTS uint64, value []byte) {
	w.put(engine.CFDefault, EncodeKey(key, startTS), bytes.Clone(value))
}

// DeleteValue removes a value from the default family.
func (w *Writer) DeleteValue(key []byte, startTS uint64) {
	w.del(engine.CFDefault, EncodeKey(key, startTS))
}
