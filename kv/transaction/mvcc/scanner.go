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

// Scanner walks the keys that a read at a timestamp sees, and the locks in its way. It goes through
// the lock and the write family together, since a key may have a lock and no version yet. Not safe
// for concurrent use.
type Scanner struct {
	r   *Reader
	ts  uint64
	opt ScanOptions
	// locks and writes stand on the next key in the direction of the walk, or are not valid.
	locks, writes storage.Iterator
	// values is over the default family; nil until it is needed.
	values storage.Iterator
	// encoded is the key of the last take.
	encoded []byte
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
	if s.values != nil {
		s.values.Close()
	}
}

// Next is the next key; nil at the end.
func (s *Scanner) Next() (*Item, error) {
	for {
		key, locked, written, err := s.nearest()
		if err != nil || key == nil {
			return nil, err
		}
		var lock *Lock
		sight := Clear
		if locked {
			kl, err := s.r.lockAt(s.locks)
			if err != nil {
				return nil, err
			}
			s.step(s.locks)
			lock, sight = &kl.Lock, s.opt.Look(key, &kl.Lock)
		}
		var f *Found
		if written {
			if f, err = s.take(key, sight == Clear); err != nil {
				return nil, err
			}
		}
		item, err := s.item(key, sight, lock, f)
		if err != nil || item != nil {
			return item, err
		}
	}
}

// item is what the read sees of a key, nil if that is nothing; f is the version that it sees if the
// lock hides nothing.
func (s *Scanner) item(key []byte, sight Sight, lock *Lock, f *Found) (*Item, error) {
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
		if f == nil || f.Kind == WriteKindDelete {
			return nil, nil
		}
		item.CommitTS = f.CommitTS
		if s.opt.KeyOnly {
			return item, nil
		}
		var err error
		if item.Value, err = s.value(key, f); err != nil {
			return nil, err
		}
	}
	if s.opt.KeyOnly {
		item.Value = nil
	}
	return item, nil
}

// value is that of a Put at the key that take was called for. In ascending order one iterator goes
// from value to value.
func (s *Scanner) value(key []byte, f *Found) ([]byte, error) {
	if f.ShortValue != nil || s.opt.Reverse {
		return s.r.Value(key, f)
	}
	if s.values == nil {
		lower, upper := s.opt.keys()
		s.values = s.r.view.Iterate(engine.CFDefault, lower, upper)
	}
	s.encoded = binary.BigEndian.AppendUint64(s.encoded, ^f.StartTS)
	s.values.SeekGE(s.encoded)
	if s.values.Valid() && bytes.Equal(s.values.Key(), s.encoded) {
		return append([]byte{}, s.values.Value()...), nil
	}
	if err := s.values.Err(); err != nil {
		return nil, err
	}
	return nil, errNoValue(key, f.StartTS)
}

func (s *Scanner) step(it storage.Iterator) {
	if s.opt.Reverse {
		it.Prev()
	} else {
		it.Next()
	}
}

// nearest is the next key in the direction of the walk that either iterator stands on, and which of
// them do.
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

// take moves the write iterator beyond all records of the key that it stands on. With look it
// returns the Put or Delete that the read sees of it, nil if there is none, on the way.
func (s *Scanner) take(key []byte, look bool) (*Found, error) {
	at := s.writes.Key()
	s.encoded = append(s.encoded[:0], at[:len(at)-8]...)
	seen := s.ts
	if s.r.newest {
		seen = TsMax
	}
	var f *Found
	var err error
	if s.opt.Reverse {
		f, err = s.takeUp(key, seen, look)
	} else {
		f, err = s.takeDown(key, seen, look)
	}
	if err == nil && f != nil && f.CommitTS > s.ts {
		err = &NewerError{Key: bytes.Clone(key), Found: *f}
	}
	return f, err
}

// own is the commit timestamp of the record that the write iterator stands on, if it is one of the
// key of take.
func (s *Scanner) own() (commitTS uint64, ok bool) {
	if !s.writes.Valid() {
		return 0, false
	}
	at, n := s.writes.Key(), len(s.encoded)
	if len(at) != n+8 || !bytes.Equal(at[:n], s.encoded) {
		return 0, false
	}
	return ^binary.BigEndian.Uint64(at[n:]), true
}

func (s *Scanner) found(key []byte, commitTS uint64) (*Found, error) {
	w, err := s.r.codec.DecodeWrite(s.writes.Value())
	if err != nil {
		return nil, fmt.Errorf("write record of key %v at %d: %w", redact.Key(key), commitTS, err)
	}
	return &Found{Write: w, CommitTS: commitTS}, nil
}

// takeDown is take from the newest record of the key to the oldest.
func (s *Scanner) takeDown(key []byte, ts uint64, look bool) (f *Found, err error) {
	for steps := 0; ; steps++ {
		commitTS, ok := s.own()
		switch {
		case !ok:
			return f, s.writes.Err()
		case look && commitTS > ts && steps >= maxSteps:
			s.writes.SeekGE(binary.BigEndian.AppendUint64(s.encoded, ^ts))
			continue
		case look && commitTS <= ts:
			next, err := s.found(key, commitTS)
			if err != nil {
				return nil, err
			}
			if look = !next.Changes(); !look && !next.fencedOff(ts) {
				f = next
			}
		case !look && steps >= maxSteps:
			// The least user key above key is key followed by a zero byte.
			s.writes.SeekGE(memcomparable.Encode(append(bytes.Clone(key), 0)))
			return f, s.writes.Err()
		}
		s.writes.Next()
	}
}

// takeUp is take from the oldest record of the key to the newest.
func (s *Scanner) takeUp(key []byte, ts uint64, look bool) (f *Found, err error) {
	for range maxSteps {
		commitTS, ok := s.own()
		if !ok {
			if f != nil && f.fencedOff(ts) {
				f = nil
			}
			return f, s.writes.Err()
		}
		if look && commitTS <= ts {
			next, err := s.found(key, commitTS)
			if err != nil {
				return nil, err
			}
			if next.Changes() {
				f = next
			}
		}
		s.writes.Prev()
	}
	s.writes.SeekLT(s.encoded)
	if !look {
		return nil, s.writes.Err()
	}
	return s.r.version(key, ts)
}
