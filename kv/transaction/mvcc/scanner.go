package mvcc

import (
	"bytes"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/memcomparable"
)

// Scanner walks the keys that a read at a timestamp sees, in ascending order, and the locks in its way. It goes through
// the lock and the write family together, since a key may have a lock and no version yet. Not safe for concurrent use.
type Scanner struct {
	r     *Reader
	ts    uint64
	locks storage.Iterator
	// blocks tells whether a lock keeps the read from knowing the key's value.
	blocks func(key []byte, l *Lock) bool
}

// Item is one key of a scan: its value, or the lock that hides it.
type Item struct {
	Key, Value []byte
	Lock       *Lock
}

// NewScanner begins at a user key; nil is the region's start.
func NewScanner(r *Reader, from []byte, ts uint64, blocks func(key []byte, l *Lock) bool) *Scanner {
	var lower, lockLower []byte
	if from != nil {
		lower, lockLower = memcomparable.Encode(from), r.codec.LockKey(from)
	}
	s := &Scanner{r: r, ts: ts, blocks: blocks, locks: r.view.Iterate(engine.CFLock, lockLower, nil)}
	s.locks.First()
	if it := r.writeIter(); lower == nil {
		it.First()
	} else {
		it.SeekGE(lower)
	}
	return s
}

// Close ends the scan; the reader can be used further.
func (s *Scanner) Close() { s.locks.Close() }

// Next is the next key; nil at the end.
func (s *Scanner) Next() (*Item, error) {
	for {
		key, locked, written, err := s.least()
		if err != nil || key == nil {
			return nil, err
		}
		var lock *Lock
		if locked {
			kl, err := s.r.lockAt(s.locks)
			if err != nil {
				return nil, err
			}
			s.locks.Next()
			if s.blocks(key, &kl.Lock) {
				lock = &kl.Lock
			}
		}
		item := &Item{Key: key, Lock: lock}
		found := lock != nil
		if written {
			if lock == nil {
				item.Value, found, err = s.r.Get(key, s.ts)
			}
			if err == nil {
				s.pass(key)
			}
		}
		if err != nil {
			return nil, err
		}
		if found {
			return item, nil
		}
	}
}

// least is the smallest key that either iterator stands on, and which of them do.
func (s *Scanner) least() (key []byte, locked, written bool, err error) {
	if s.locks.Valid() {
		if key, err = s.r.codec.UserKey(s.locks.Key()); err != nil {
			return nil, false, false, err
		}
		locked = true
	} else if err := s.locks.Err(); err != nil {
		return nil, false, false, err
	}
	if it := s.r.writes; it.Valid() {
		user, _, err := SplitKey(it.Key())
		if err != nil {
			return nil, false, false, err
		}
		switch c := bytes.Compare(user, key); {
		case !locked || c < 0:
			return user, false, true, nil
		case c == 0:
			return key, true, true, nil
		}
	} else if err := it.Err(); err != nil {
		return nil, false, false, err
	}
	return key, locked, false, nil
}

// maxSteps is how many records of a key are stepped over before the rest is jumped over.
const maxSteps = 8

// pass moves the write iterator behind all records of the key.
func (s *Scanner) pass(key []byte) {
	it, encoded := s.r.writes, memcomparable.Encode(key)
	for range maxSteps {
		if !it.Valid() || !bytes.HasPrefix(it.Key(), encoded) {
			return
		}
		it.Next()
	}
	// The least user key above key is key followed by a zero byte.
	it.SeekGE(memcomparable.Encode(append(bytes.Clone(key), 0)))
}
