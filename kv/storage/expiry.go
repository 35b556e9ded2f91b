package storage

import (
	"bytes"
	"context"
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// MaxTTL is the longest TTL in seconds, some 34,000 years: a time that far off still fits.
const MaxTTL = 1 << 40

// CheckTTL refuses a TTL that is too long.
func CheckTTL(seconds uint64) error {
	if seconds > MaxTTL {
		return fmt.Errorf("a TTL of %d seconds exceeds the longest, %d", seconds, uint64(MaxTTL))
	}
	return nil
}

// Expirer is a Storage whose keys may expire. From its expiry on a key does not exist, for reads,
// scans and swaps alike.
type Expirer interface {
	// TTL is how many seconds a key has left, rounded up; 0 if it does not expire. found is false
	// if it does not exist. Errors are as for Storage.Get.
	TTL(
		ctx context.Context, c *kvrpcpb.Context, cf engine.CF, key []byte,
	) (seconds uint64, found bool, err error)
}

// Seconds is how many seconds lie between two times in milliseconds, rounded up.
func Seconds(now, expiry uint64) uint64 {
	if expiry <= now {
		return 0
	}
	return (expiry-now-1)/1000 + 1
}

// HideExpired has the view show no key that has expired by a time, in milliseconds since 1970; 0:
// it looks at no expiry times. To be called before the first read.
func (v *View) HideExpired(now uint64) *View {
	v.now = now
	return v
}

// expired tells whether a key is hidden.
func (v *View) expired(cf engine.CF, key []byte) (bool, error) {
	if v.now == 0 {
		return false, nil
	}
	at, err := engine.LoadExpiry(v.snap, cf, key)
	v.note(err)
	return at > 0 && at <= v.now, err
}

// TTL is how many seconds a key has left, rounded up; 0 if it does not expire.
func (v *View) TTL(cf engine.CF, key []byte) (seconds uint64, found bool, err error) {
	_, found, err = v.Get(cf, key)
	if err != nil || !found || v.now == 0 {
		return 0, found, err
	}
	at, err := engine.LoadExpiry(v.snap, cf, key)
	v.note(err)
	return Seconds(v.now, at), true, err
}

// livingIterator walks physical keys of a column family and leaves out what has expired. A second
// iterator walks the expiry times beside the values. Every key with a time has a value, so both
// together take at most two steps for each key.
type livingIterator struct {
	engine.Iterator
	times   engine.Iterator
	cf      engine.CF
	now     uint64
	forward bool
	err     error
}

func (it *livingIterator) First() {
	it.Iterator.First()
	it.settle(true, true)
}

func (it *livingIterator) Last() {
	it.Iterator.Last()
	it.settle(false, true)
}

func (it *livingIterator) SeekGE(key []byte) {
	it.Iterator.SeekGE(key)
	it.settle(true, true)
}

func (it *livingIterator) SeekLT(key []byte) {
	it.Iterator.SeekLT(key)
	it.settle(false, true)
}

func (it *livingIterator) Next() {
	it.Iterator.Next()
	it.settle(true, !it.forward)
}

func (it *livingIterator) Prev() {
	it.Iterator.Prev()
	it.settle(false, it.forward)
}

// settle moves on, in the direction of the last move, to a key that lives. seek: the times are
// somewhere else.
func (it *livingIterator) settle(forward, seek bool) {
	it.forward = forward
	for it.Valid() {
		key := engine.UserKey(it.Iterator.Key())
		dead, err := it.dead(key, seek)
		if err != nil {
			it.err = err
			return
		}
		if !dead {
			return
		}
		if seek = false; forward {
			it.Iterator.Next()
		} else {
			it.Iterator.Prev()
		}
	}
}

// dead moves the times to a key, and tells whether it has expired.
func (it *livingIterator) dead(key []byte, seek bool) (bool, error) {
	at := it.times
	if seek {
		it.seekTimes(key)
	}
	for at.Valid() {
		order := bytes.Compare(engine.UserKey(at.Key()), key)
		if order == 0 {
			expiry, err := engine.DecodeExpiry(at.Value())
			return err == nil && expiry <= it.now, err
		}
		if (order > 0) == it.forward {
			return false, nil
		}
		if it.forward {
			at.Next()
		} else {
			at.Prev()
		}
	}
	return false, at.Err()
}

// seekTimes moves the times to the key, or to the next one in the direction of the walk.
func (it *livingIterator) seekTimes(key []byte) {
	at := engine.DataKey(it.cf.Expiry(), key)
	if it.forward {
		it.times.SeekGE(at)
	} else {
		it.times.SeekLT(append(at, 0))
	}
}

func (it *livingIterator) Valid() bool { return it.err == nil && it.Iterator.Valid() }

func (it *livingIterator) Err() error {
	if it.err != nil {
		return it.err
	}
	return it.Iterator.Err()
}

func (it *livingIterator) Close() {
	it.times.Close()
	it.Iterator.Close()
}
