package engine

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Times are milliseconds since 1970. A key expires at a time: from then on it does not exist. 0
// stands for never.
//
// What a family of expiry times holds: the time, 8 bytes, little endian. Part of the on-disk
// format; do not change.
//
// Invariant: a key has an expiry time only if it has a value. Both change in one batch. A batch
// that deletes a range is the exception, for an engine without range tombstones: there the values
// go first.

const expirySize = 8

// AppendExpiry appends the value that a family of expiry times has for a key.
func AppendExpiry(buf []byte, at uint64) []byte { return binary.LittleEndian.AppendUint64(buf, at) }

// DecodeExpiry reads such a value. ErrCorrupt if it is none.
func DecodeExpiry(value []byte) (uint64, error) {
	if len(value) != expirySize {
		return 0, fmt.Errorf("%w: expiry time of %d bytes", ErrCorrupt, len(value))
	}
	return binary.LittleEndian.Uint64(value), nil
}

// ExpiryOf is when a key that begins to live at a time expires; the end of time if that cannot be
// said.
func ExpiryOf(from, ttl uint64) uint64 {
	if ttl > math.MaxUint64-from {
		return math.MaxUint64
	}
	return from + ttl
}

// getter is what Engine and Snapshot have in common.
type getter interface {
	Get(key []byte) (value []byte, found bool, err error)
}

// LoadExpiry reads when a key expires; 0 if never, or if it does not exist.
func LoadExpiry(g getter, cf CF, key []byte) (uint64, error) {
	value, found, err := g.Get(DataKey(cf.Expiry(), key))
	if err != nil || !found {
		return 0, err
	}
	return DecodeExpiry(value)
}

// ClearFamilies removes the user keys of [start, end) in all families, as ClearRange does. The
// families of expiry times, mostly empty, get range tombstones only if something is there.
func ClearFamilies(e Engine, start, end []byte) error {
	for _, cf := range AllCFs {
		lower, upper := DataKey(cf, start), DataEndKey(cf, end)
		if cf.HoldsExpiry() {
			empty, err := emptyRange(e, lower, upper)
			if err != nil {
				return err
			}
			if empty {
				continue
			}
		}
		if err := ClearRange(e, lower, upper); err != nil {
			return err
		}
	}
	return nil
}

func emptyRange(e Engine, lower, upper []byte) (bool, error) {
	snap := e.NewSnapshot()
	defer snap.Close()
	it := snap.NewIterator(lower, upper)
	defer it.Close()
	it.First()
	return !it.Valid(), it.Err()
}
