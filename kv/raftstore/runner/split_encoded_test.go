package runner

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// TestVersionsStayTogether: in a cluster of transactions a region is split between two keys, never
// among the versions of one, wherever the middle falls; a region of one key is not split.
func TestVersionsStayTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := memengine.New()
		b := e.NewBatch()
		keys := map[string]bool{}
		for range rapid.IntRange(1, 30).Draw(t, "n") {
			user := rapid.SampledFrom([]string{"a", "aaaaaaaa", "b", "c"}).Draw(t, "key")
			keys[user] = true
			key := memcomparable.Encode([]byte(user))
			cf := rapid.SampledFrom(engine.CFs).Draw(t, "cf")
			if cf != engine.CFLock {
				key = binary.BigEndian.AppendUint64(key, ^rapid.Uint64Range(1, 9).Draw(t, "ts"))
			}
			b.Put(engine.DataKey(cf, key), []byte("value"))
		}
		require.NoError(t, e.Write(b, false))
		view := e.NewSnapshot()
		defer view.Close()
		m, err := Measure(view, &metapb.Region{Id: 1}, rapid.Uint64Range(1, 500).Draw(t, "split"),
			true)
		require.NoError(t, err)
		if m.SplitKey == nil {
			return
		}
		key, rest, err := memcomparable.Decode(m.SplitKey)
		require.NoError(t, err)
		require.Empty(t, rest)
		require.True(t, keys[string(key)])
		before := 0
		for k := range keys {
			if bytes.Compare([]byte(k), key) < 0 {
				before++
			}
		}
		require.Positive(t, before, "nothing is left of the split")
	})
}
