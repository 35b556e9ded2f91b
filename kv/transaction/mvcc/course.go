package mvcc

import (
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
)

// What follows are the names that test suites of the course use, over the course's format.

// DecodeUserKey is the key of a place in the default or the write family; nil if it is none.
func DecodeUserKey(encoded []byte) []byte {
	key, _, err := SplitKey(encoded)
	if err != nil {
		return nil
	}
	return key
}

// ToBytes is the lock in the course's format.
func (l *Lock) ToBytes() []byte { return CodecCourse.EncodeLock(l) }

// ToBytes is the write record in the course's format.
func (w *Write) ToBytes() []byte { return CodecCourse.EncodeWrite(w) }

// ParseLock reads a lock in the course's format.
func ParseLock(data []byte) (*Lock, error) {
	l, err := CodecCourse.DecodeLock(data)
	return &l, err
}

// ParseWrite reads a write record in the course's format; nil has none.
func ParseWrite(data []byte) (*Write, error) {
	if data == nil {
		return nil, nil
	}
	w, err := CodecCourse.DecodeWrite(data)
	return &w, err
}

// MvccTxn reads and gathers changes for one transaction. Not safe for concurrent use.
type MvccTxn struct {
	StartTS uint64
	Reader  storage.Reader
	writer  *Writer
}

// NewMvccTxn returns a transaction that reads from reader.
func NewMvccTxn(reader storage.Reader, startTS uint64) *MvccTxn {
	return &MvccTxn{StartTS: startTS, Reader: reader, writer: NewWriter(CodecCourse)}
}

// TxnOf is a transaction that has made the changes.
func TxnOf(mods []storage.Modify) *MvccTxn {
	return &MvccTxn{writer: &Writer{codec: CodecCourse, mods: mods}}
}

// Change is one change: Data is a storage.Put or a storage.Delete.
type Change struct{ Data any }

// Key is where it is made.
func (c Change) Key() []byte {
	if p, ok := c.Data.(storage.Put); ok {
		return p.Key
	}
	d, _ := c.Data.(storage.Delete)
	return d.Key
}

// Cf is the column family in which it is made.
func (c Change) Cf() string {
	if p, ok := c.Data.(storage.Put); ok {
		return p.Cf
	}
	d, _ := c.Data.(storage.Delete)
	return d.Cf
}

// Writes are the changes so far.
func (t *MvccTxn) Writes() []Change {
	out := make([]Change, len(t.writer.mods))
	for i, m := range t.writer.mods {
		if m.Delete {
			out[i].Data = storage.Delete{Key: m.Key, Cf: string(m.CF)}
		} else {
			out[i].Data = storage.Put{Key: m.Key, Value: m.Value, Cf: string(m.CF)}
		}
	}
	return out
}

// PutWrite sets a write record.
func (t *MvccTxn) PutWrite(key []byte, ts uint64, w *Write) { t.writer.PutWrite(key, ts, w) }

// PutLock sets the key's lock.
func (t *MvccTxn) PutLock(key []byte, l *Lock) { t.writer.PutLock(key, l) }

// DeleteLock removes the key's lock.
func (t *MvccTxn) DeleteLock(key []byte) { t.writer.DeleteLock(key) }

// PutValue sets the value of this transaction.
func (t *MvccTxn) PutValue(key, value []byte) {
	t.writer.put(engine.CFDefault, EncodeKey(key, t.StartTS), value)
}

// DeleteValue removes the value of this transaction.
func (t *MvccTxn) DeleteValue(key []byte) { t.writer.DeleteValue(key, t.StartTS) }

// read runs f with a reader over the transaction's view.
func (t *MvccTxn) read(f func(r *Reader) error) error {
	r := NewReader(t.Reader, CodecCourse)
	defer r.Close()
	return f(r)
}

// GetLock is the key's lock, nil if there is none.
func (t *MvccTxn) GetLock(key []byte) (l *Lock, err error) {
	err = t.read(func(r *Reader) error { l, err = r.Lock(key); return err })
	return l, err
}

// GetValue is the value that the transaction sees; nil if there is none.
func (t *MvccTxn) GetValue(key []byte) (value []byte, err error) {
	err = t.read(func(r *Reader) error { value, _, err = r.Get(key, t.StartTS); return err })
	return value, err
}

// CurrentWrite is the record with this transaction's start timestamp, and its commit timestamp.
func (t *MvccTxn) CurrentWrite(key []byte) (w *Write, commitTS uint64, err error) {
	err = t.read(func(r *Reader) error {
		rec, err := r.OwnRecord(key, t.StartTS)
		if rec.Own != nil {
			w, commitTS = &rec.Own.Write, rec.Own.CommitTS
		}
		return err
	})
	return w, commitTS, err
}

// MostRecentWrite is the key's newest record, and its commit timestamp.
func (t *MvccTxn) MostRecentWrite(key []byte) (w *Write, commitTS uint64, err error) {
	err = t.read(func(r *Reader) error {
		f, err := r.SeekWrite(key, TsMax)
		if f != nil {
			w, commitTS = &f.Write, f.CommitTS
		}
		return err
	})
	return w, commitTS, err
}
