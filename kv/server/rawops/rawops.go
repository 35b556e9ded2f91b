// Package rawops is what both faces of a store do alike with raw keys: it knows storage, and no
// wire messages.
package rawops

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc64"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// MaxKeys bounds the keys of one request.
const MaxKeys = 1 << 16

// CheckCount refuses more keys than one request may have.
func CheckCount(n int) error {
	if n > MaxKeys {
		return fmt.Errorf("%d keys in one request, at most %d", n, MaxKeys)
	}
	return nil
}

// TTLs finds out the life of each of n pairs, in seconds: none, one for all, or one for each. all
// is for those of no list.
func TTLs(n int, all uint64, list []uint64) (func(i int) uint64, error) {
	switch len(list) {
	case 0:
		return func(int) uint64 { return all }, nil
	case 1:
		return func(int) uint64 { return list[0] }, nil
	case n:
		return func(i int) uint64 { return list[i] }, nil
	}
	return nil, fmt.Errorf("%d TTLs for %d pairs", len(list), n)
}

// Within refuses a key that a view does not show.
func Within(r storage.Reader, regionID uint64, key []byte) error {
	start, end := r.Range()
	if bytes.Compare(key, start) >= 0 && (len(end) == 0 || bytes.Compare(key, end) < 0) {
		return nil
	}
	return &regionerr.KeyNotInRegionError{
		Key: key, Region: &metapb.Region{Id: regionID, StartKey: start, EndKey: end},
	}
}

// BatchGet calls visit with those of the keys that exist, in order, until it returns false or an
// error. A key of another region is an error.
func BatchGet(
	r storage.Reader, regionID uint64, cf engine.CF, keys [][]byte,
	visit func(i int, value []byte) (bool, error),
) error {
	for i, key := range keys {
		if err := Within(r, regionID, key); err != nil {
			return err
		}
		value, found, err := r.Get(cf, key)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if more, err := visit(i, value); err != nil || !more {
			return err
		}
	}
	return nil
}

// crcXZ is the polynomial of CRC-64/XZ, by which TiKV sums up pairs.
var crcXZ = crc64.MakeTable(crc64.ECMA)

// Sum sums up pairs: the CRC-64/XZ of each key followed by its value, exclusive or.
type Sum struct{ Checksum, Pairs, Bytes uint64 }

// Add adds the pairs of [start, end) that the view shows. An error leaves a part added.
func (s *Sum) Add(ctx context.Context, r storage.Reader, cf engine.CF, start, end []byte) error {
	it := r.Iterate(cf, start, end)
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		if s.Pairs%1024 == 1023 && ctx.Err() != nil {
			break
		}
		key, value := it.Key(), it.Value()
		s.Checksum ^= crc64.Update(crc64.Checksum(key, crcXZ), crcXZ, value)
		s.Pairs++
		s.Bytes += uint64(len(key) + len(value))
	}
	if err := it.Err(); err != nil {
		return err
	}
	return ctx.Err()
}

// CheckTTL refuses a TTL that is too long, or that the storage cannot keep; 0 is none.
func CheckTTL(st storage.Storage, seconds uint64) error {
	if seconds == 0 {
		return nil
	}
	if _, ok := st.(storage.Expirer); !ok {
		return errNoTTL
	}
	return storage.CheckTTL(seconds)
}

// errNoTTL refuses TTLs where the storage has none.
var errNoTTL = fmt.Errorf("this store has no TTL: it is not replicated")

// TTL is how many seconds a key has left; 0 if it does not expire. found is false if it does not
// exist.
func TTL(
	ctx context.Context, st storage.Storage, c *kvrpcpb.Context, cf engine.CF, key []byte,
) (seconds uint64, found bool, err error) {
	if e, ok := st.(storage.Expirer); ok {
		return e.TTL(ctx, c, cf, key)
	}
	_, found, err = st.Get(ctx, c, cf, key)
	return 0, found, err
}
