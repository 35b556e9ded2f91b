package mvcc

import (
	"bytes"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/pkg/memcomparable"
)

// Records is all that is stored of a key, for people who look at it.
type Records struct {
	Key    []byte
	Lock   *Lock
	Writes []Found
	// Values are those of the default family.
	Values []StoredValue
	// Cut: there is more than was asked for.
	Cut bool
}

// StoredValue is a value and the start timestamp of its transaction.
type StoredValue struct {
	StartTS uint64
	Value   []byte
}

// Records reads all records of a key, newest first, as far as they have maxBytes.
func (r *Reader) Records(key []byte, maxBytes int) (*Records, error) {
	out := &Records{Key: bytes.Clone(key)}
	l, err := r.Lock(key)
	if err != nil {
		return nil, err
	}
	out.Lock = l
	f, err := r.SeekWrite(key, TsMax)
	for ; f != nil && err == nil; f, err = r.next() {
		if maxBytes -= len(key) + len(f.ShortValue) + 32; maxBytes < 0 {
			out.Cut = true
			return out, nil
		}
		out.Writes = append(out.Writes, *f)
	}
	if err != nil {
		return nil, err
	}
	lower := memcomparable.Encode(key)
	it := r.view.Iterate(engine.CFDefault, lower, memcomparable.Encode(append(bytes.Clone(key), 0)))
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		_, ts, err := SplitKey(it.Key())
		if err != nil {
			return nil, err
		}
		if maxBytes -= len(it.Key()) + len(it.Value()); maxBytes < 0 {
			out.Cut = true
			return out, nil
		}
		out.Values = append(out.Values, StoredValue{ts, bytes.Clone(it.Value())})
	}
	return out, it.Err()
}

// KeyOf is a key that the transaction has locked or written; nil if there is none. It looks through
// the whole region; goOn is asked now and then, and its error ends it.
func (r *Reader) KeyOf(startTS uint64, goOn func() error) ([]byte, error) {
	locks, _, err := r.Locks(Span{}, 1, 1, func(l *Lock) bool { return l.Ts == startTS })
	if err != nil || len(locks) > 0 {
		return firstKey(locks), err
	}
	it := r.writeIter()
	n := 0
	for it.First(); it.Valid(); it.Next() {
		if n++; n%1024 == 0 {
			if err := goOn(); err != nil {
				return nil, err
			}
		}
		w, err := r.codec.DecodeWrite(it.Value())
		if err != nil {
			return nil, err
		}
		if w.StartTS == startTS {
			key, _, err := SplitKey(it.Key())
			return key, err
		}
	}
	return nil, it.Err()
}

func firstKey(locks []KeyLock) []byte {
	if len(locks) == 0 {
		return nil
	}
	return locks[0].Key
}
