// Package meta defines the records that a store keeps about itself and its regions in the engine,
// and their initial values.
//
// All keys begin with 0x01, so no user key can touch them (seed 001). Integers are big-endian
// uint64. Entries and hard states are not here: they live in package raftlog. Part of the on-disk
// format; do not change:
//
//	01 01                     PrepareBootstrapKey  RegionLocalState
//	01 02                     StoreIdentKey        StoreIdent
//	01 02 region(8) 03        ApplyStateKey        RaftApplyState
//	01 03 region(8) 01        RegionStateKey       RegionLocalState
//	01 04 worker(8)           AppliedTableKey      (region uvarint, applied index uvarint)*
package meta

import (
	"encoding/binary"
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/pkg/redact"
)

const (
	regionRaftPrefix   = 0x02
	regionMetaPrefix   = 0x03
	appliedTablePrefix = 0x04
	applyStateSuffix   = 0x03
	regionStateSuffix  = 0x01
	regionKeyLen       = 11
)

// Keys of the records that exist once in a store.
var (
	PrepareBootstrapKey = []byte{engine.LocalPrefix, 0x01}
	StoreIdentKey       = []byte{engine.LocalPrefix, 0x02}
	// AddressBookKey holds the addresses of other stores as a metapb.Store each, in a
	// schedulerpb.GetAllStoresResponse.
	AddressBookKey = []byte{engine.LocalPrefix, 0x05}
)

// Bounds of all region states, half-open.
var (
	RegionMetaMinKey = []byte{engine.LocalPrefix, regionMetaPrefix}
	RegionMetaMaxKey = []byte{engine.LocalPrefix, regionMetaPrefix + 1}
)

func regionKey(prefix byte, regionID uint64, suffix byte) []byte {
	return appendRegionKey(make([]byte, 0, regionKeyLen), prefix, regionID, suffix)
}

func appendRegionKey(key []byte, prefix byte, regionID uint64, suffix byte) []byte {
	key = append(key, engine.LocalPrefix, prefix)
	key = binary.BigEndian.AppendUint64(key, regionID)
	return append(key, suffix)
}

// ApplyStateKey is the key of a region's RaftApplyState.
func ApplyStateKey(regionID uint64) []byte {
	return regionKey(regionRaftPrefix, regionID, applyStateSuffix)
}

// RegionStateKey is the key of a region's RegionLocalState.
func RegionStateKey(regionID uint64) []byte {
	return regionKey(regionMetaPrefix, regionID, regionStateSuffix)
}

// DecodeRegionStateKey returns the region of a key made by RegionStateKey.
func DecodeRegionStateKey(key []byte) (uint64, error) {
	if len(key) != regionKeyLen || key[0] != engine.LocalPrefix || key[1] != regionMetaPrefix ||
		key[regionKeyLen-1] != regionStateSuffix {
		return 0, fmt.Errorf("meta: %v is not a region state key", redact.Key(key))
	}
	return binary.BigEndian.Uint64(key[2:]), nil
}
