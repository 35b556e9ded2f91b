package mvcc

import (
	"bytes"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/memcomparable"
)

// Sight is what a lock lets a read see of its key.
type Sight int

// The sights.
const (
	// Clear: the read sees the key as if it were not locked.
	Clear Sight = iota
	// Hidden: the read cannot know the key's value.
	Hidden
	// Through: the read sees what the lock's transaction is about to write.
	Through
)

// ScanOptions say what a scan walks over.
type ScanOptions struct {
	Span
	// Reverse walks in descending order.
	Reverse bool
	// KeyOnly leaves values out.
	KeyOnly bool
	// Look is asked about each lock.
	Look func(key []byte, l *Lock) Sight
}

// Scanner walks the keys that a read at a timestamp sees, and the locks in its way. It goes through the lock and the
// write family together, since a key may have a lock and no version yet. Not safe for concurrent use.
type Scanner struct {
	r   *Reader
	ts  uint64
	opt ScanOptions
	// locks and writes stand on the next key in the direction of the walk, or are not valid.
	locks, writes storage.Iterator
}

// Item is one key of a scan: its value, or the lock that hides it.
type Item struct {
	Key, Value []byte
	// CommitTS is that of the version; 0 if the value was seen through a lock.
	CommitTS uint64
	Lock     *Lock
}

// NewScanner begins a walk of what a read at ts sees.
func NewScanner(r *Reader, ts uint64, opt ScanOptions) *Scanner {
	s := &Scanner{r: r, ts: ts, opt: opt}
	lower, upper := opt.locks(r.codec)
	s.locks = r.view.Iterate(engine.CFLock, lower, upper)
	lower, upper = opt.keys()
	s.writes = r.view.Iterate(engine.CFWrite, lower, upper)
	if opt.Reverse {
		s.locks.Last()
		s.writes.Last()
	} else {
		s.locks.First()
		s.writes.First()
	}
	return s
}

// Close ends the scan; the reader can be used further.
func (s *Scanner) Close() {
	s.locks.Close()
	s.writes.Close()
}

// Next is the next key; nil at the end.
func (s *Scanner) Next() (*Item, error) {
	for {
		key, locked, written, err := s.nearest()
		if err != nil || key == nil {
			return nil, err
		}
		var lock *Lock
		if locked {
			kl, err := s.r.lockAt(s.locks)
			if err != nil {
				return nil, err
			}
			s.step(s.locks)
			lock = &kl.Lock
		}
		if written {
			s.pass(key)
		}
		item, err := s.item(key, lock, written)
		if err != nil || item != nil {
			return item, err
		}
	}
}

// item is what the read sees of a key, nil if that is nothing.
func (s *Scanner) item(key []byte, lock *Lock, written bool) (*Item, error) {
	sight := Clear
	if lock != nil {
		sight = s.opt.Look(key, lock)
	}
	item := &Item{Key: key}
	switch sight {
	case Hidden:
		item.Lock = lock
		return item, nil
	case Through:
		value, found, err := s.r.LockedValue(key, lock)
		if err != nil || !found {
			return nil, err
		}
		item.Value = value
	case Clear:
		if !written {
			return nil, nil
		}
		f, err := s.r.Version(key, s.ts)
		if err != nil || f == nil || f.Kind == WriteKindDelete {
			return nil, err
		}
		item.CommitTS = f.CommitTS
		if s.opt.KeyOnly {
			return item, nil
		}
		if item.Value, err = s.r.Value(key, f); err != nil {
			return nil, err
		}
	}
	if s.opt.KeyOnly {
		item.Value = nil
	}
	return item, nil
}

func (s *Scanner) step(it storage.Iterator) {
	if s.opt.Reverse {
		it.Prev()
	} else {
		it.Next()
	}
}

// nearest is the next key in the direction of the walk that either iterator stands on, and which of them do.
func (s *Scanner) nearest() (key []byte, locked, written bool, err error) {
	if s.locks.Valid() {
		if key, err = s.r.codec.UserKey(s.locks.Key()); err != nil {
			return nil, false, false, err
		}
		locked = true
	} else if err := s.locks.Err(); err != nil {
		return nil, false, false, err
	}
	if !s.writes.Valid() {
		if err := s.writes.Err(); err != nil {
			return nil, false, false, err
		}
		return key, locked, false, nil
	}
	user, _, err := SplitKey(s.writes.Key())
	if err != nil {
		return nil, false, false, err
	}
	c := bytes.Compare(user, key)
	if s.opt.Reverse {
		c = -c
	}
	switch {
	case !locked || c < 0:
		return user, false, true, nil
	case c == 0:
		return key, true, true, nil
	}
	return key, true, false, nil
}

// maxSteps is how many records of a key are stepped over before the rest is jumped over.
const maxSteps = 8

// pass moves the write iterator beyond all records of the key.
func (s *Scanner) pass(key []byte) {
	encoded := memcomparable.Encode(key)
	for range maxSteps {
		if !s.writes.Valid() || !bytes.HasPrefix(s.writes.Key(), encoded) {
			return
		}
		s.step(s.writes)
	}
	if s.opt.Reverse {
		s.writes.SeekLT(encoded)
		return
	}
	// The least user key above key is key followed by a zero byte.
	s.writes.SeekGE(memcomparable.Encode(append(bytes.Clone(key), 0)))
}
