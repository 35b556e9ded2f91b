package engine

import (
	"fmt"
	"strings"
)

// Physical keys, part of the on-disk format; do not change:
//
//	'z' | CF byte | user key     users' data (seed 001: data keys begin with 'z')
//	'z' | 'D' 'W' or 'L' | key   when a key of the family in lower case expires (Expiry)
//	0x01 | ...                   the store's own records (package meta)
//
// So no user key can touch a local record, and no key begins with '!', which badger's iterators
// hide.
const (
	dataPrefix  = 'z'
	LocalPrefix = 0x01
)

// CF is a column family. The same user key in two families is two items.
type CF string

// The column families, in the order in which snapshot files list them.
const (
	CFDefault CF = "default"
	CFWrite   CF = "write"
	CFLock    CF = "lock"
)

// CFs lists all column families in snapshot-file order.
var CFs = []CF{CFDefault, CFWrite, CFLock}

// The families of expiry times. A key of one says until when the same key of the family in its name
// lives. Requests do not name them.
const (
	cfDefaultExpiry CF = "default-expiry"
	cfWriteExpiry   CF = "write-expiry"
	cfLockExpiry    CF = "lock-expiry"
)

// AllCFs lists the column families and then the families of their expiry times, in snapshot-file
// order.
var AllCFs = []CF{CFDefault, CFWrite, CFLock, cfDefaultExpiry, cfWriteExpiry, cfLockExpiry}

// Families lists what a region may have data in: AllCFs if its keys may expire, else CFs.
func Families(expiring bool) []CF {
	if expiring {
		return AllCFs
	}
	return CFs
}

// Expiry is the family of the expiry times of a column family.
func (cf CF) Expiry() CF {
	switch cf {
	case CFDefault:
		return cfDefaultExpiry
	case CFWrite:
		return cfWriteExpiry
	case CFLock:
		return cfLockExpiry
	}
	panic(fmt.Sprintf("engine: column family %q has no expiry times", string(cf)))
}

// HoldsExpiry tells whether the family is one of expiry times.
func (cf CF) HoldsExpiry() bool {
	return cf == cfDefaultExpiry || cf == cfWriteExpiry || cf == cfLockExpiry
}

// ParseCF turns a request's column family into a CF; the empty name means default.
func ParseCF(name string) (CF, error) {
	switch name {
	case "", string(CFDefault):
		return CFDefault, nil
	case string(CFWrite):
		return CFWrite, nil
	case string(CFLock):
		return CFLock, nil
	}
	// A copy, so that name does not escape: callers pass bytes of a request as a string, for each
	// of them.
	return "",
		fmt.Errorf("engine: unknown column family %q (default, write, lock)", strings.Clone(name))
}

func (cf CF) tag() byte {
	switch cf {
	case CFDefault:
		return 'd'
	case CFWrite:
		return 'w'
	case CFLock:
		return 'l'
	case cfDefaultExpiry:
		return 'D'
	case cfWriteExpiry:
		return 'W'
	case cfLockExpiry:
		return 'L'
	}
	panic(fmt.Sprintf("engine: unknown column family %q", string(cf)))
}

// DataKey is the physical key of a user key.
func DataKey(cf CF, key []byte) []byte {
	return AppendDataKey(make([]byte, 0, len(key)+2), cf, key)
}

// AppendDataKey appends the physical key to buf.
func AppendDataKey(buf []byte, cf CF, key []byte) []byte {
	return append(append(buf, dataPrefix, cf.tag()), key...)
}

// DataEndKey is the physical end of a range whose user end key is end; empty means unbounded.
func DataEndKey(cf CF, end []byte) []byte {
	if len(end) == 0 {
		return []byte{dataPrefix, cf.tag() + 1}
	}
	return DataKey(cf, end)
}

// UserKey strips the prefix of a physical data key. The result aliases the argument.
func UserKey(physical []byte) []byte { return physical[2:] }
