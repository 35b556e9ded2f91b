// Package memcomparable encodes keys so that what is appended to them does not change their order:
// user keys of a transactional cluster are stored this way, with a timestamp behind. It is TiKV's
// encoding.
//
// A key is cut into groups of eight bytes. The last one, which may be empty, is filled up with
// zeros. Behind each group stands a marker: 0xFF minus the number of zeros. Part of the on-disk
// format; do not change.
package memcomparable

import (
	"errors"
	"fmt"
)

const (
	group  = 8
	marker = 0xFF
	// tsSize is the length of a timestamp behind an encoded key.
	tsSize = 8
)

// ErrInvalid is wrapped by the errors of Decode.
var ErrInvalid = errors.New("memcomparable: not an encoded key")

// Append appends the encoded key to dst.
func Append(dst, key []byte) []byte {
	for {
		n := min(len(key), group)
		dst = append(dst, key[:n]...)
		for range group - n {
			dst = append(dst, 0)
		}
		dst = append(dst, marker-byte(group-n))
		if n < group {
			return dst
		}
		key = key[group:]
	}
}

// Size is the length of a key of n bytes after encoding.
func Size(n int) int { return (n/group + 1) * (group + 1) }

// Encode returns the encoded key.
func Encode(key []byte) []byte { return Append(make([]byte, 0, Size(len(key))+tsSize), key) }

// Decode reads an encoded key from the front of data and returns what follows it. The key is a
// copy.
func Decode(data []byte) (key, rest []byte, err error) {
	key = make([]byte, 0, len(data)/(group+1)*group)
	for {
		if len(data) < group+1 {
			return nil, nil, fmt.Errorf("%w: it ends within a group", ErrInvalid)
		}
		pad := int(marker - data[group])
		if pad > group {
			return nil, nil, fmt.Errorf("%w: marker %#x", ErrInvalid, data[group])
		}
		key = append(key, data[:group-pad]...)
		for _, b := range data[group-pad : group] {
			if b != 0 {
				return nil, nil, fmt.Errorf("%w: padding of %#x", ErrInvalid, b)
			}
		}
		data = data[group+1:]
		if pad > 0 {
			return key, data, nil
		}
	}
}

// CutTimestamp removes the timestamp behind an encoded key. ok is false for what is neither an
// encoded key nor one with a timestamp.
func CutTimestamp(data []byte) (encoded []byte, ok bool) {
	_, rest, err := Decode(data)
	if err != nil || (len(rest) != 0 && len(rest) != tsSize) {
		return nil, false
	}
	return data[:len(data)-len(rest)], true
}
