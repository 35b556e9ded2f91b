package pebbleengine_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
)

// TestLatest: each Get, and each iterator, shows what was written by the moment at which it is
// made; a snapshot does not.
func TestLatest(t *testing.T) {
	e, err := factory.Open(t.TempDir())
	require.NoError(t, err)
	defer e.Close()
	put := func(value string) {
		b := e.NewBatch()
		b.Put([]byte("zk"), []byte(value))
		require.NoError(t, e.Write(b, false))
	}
	put("1")
	latest, snap := engine.LatestOf(e), e.NewSnapshot()
	before := latest.NewIterator([]byte("z"), nil)
	put("2")
	after := latest.NewIterator([]byte("z"), nil)
	for want, it := range map[string]engine.Iterator{"1": before, "2": after} {
		it.SeekGE([]byte("zk"))
		require.True(t, it.Valid())
		require.Equal(t, want, string(it.Value()))
		it.Close()
	}
	for want, view := range map[string]engine.Snapshot{"1": snap, "2": latest} {
		got, found, err := view.Get([]byte("zk"))
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, want, string(got))
	}
	snap.Close()
	require.NoError(t, e.Close())
	_, _, err = latest.Get([]byte("zk"))
	require.ErrorIs(t, err, engine.ErrClosed)
}
