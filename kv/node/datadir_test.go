package node

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDataDirectory(t *testing.T) {
	dir := t.TempDir()
	d, err := OpenDataDir(dir)
	require.NoError(t, err)
	m, err := d.ReadMarker()
	require.NoError(t, err)
	require.Nil(t, m, "new")
	_, err = OpenDataDir(dir)
	require.ErrorContains(t, err, "in use by another process")

	require.NoError(t, d.WriteMarker(Marker{Engine: "pebble", Mode: "raft", ClusterID: 1<<63 - 1, StoreID: 3}))
	m, err = d.ReadMarker()
	require.NoError(t, err)
	require.Equal(t, &Marker{Format: formatVersion, Engine: "pebble", Mode: "raft", ClusterID: 1<<63 - 1, StoreID: 3}, m)
	require.NoError(t, m.check(dir, "pebble", "raft"))
	require.ErrorContains(t, m.check(dir, "badger", "raft"), "storage.engine")
	require.ErrorContains(t, m.check(dir, "pebble", "standalone"), "storage.raft")
	require.NoError(t, m.checkIdent(dir, 1<<63-1, 3))
	require.ErrorContains(t, m.checkIdent(dir, 9, 3), "cluster 9")
	require.ErrorContains(t, m.checkIdent(dir, 1<<63-1, 4), "store 4")

	for text, want := range map[string]string{
		"format = 2\n":            "format 2",
		"format = \"one\"\n":      "damaged",
		"":                        "damaged",
		"format = 1\nstore-id = ": "damaged",
	} {
		require.NoError(t, os.WriteFile(d.Sub(markerFile), []byte(text), 0o600))
		_, err = d.ReadMarker()
		require.ErrorContains(t, err, want, "%q", text)
	}
	require.NoError(t, os.Remove(d.Sub(markerFile)))
	require.NoError(t, os.WriteFile(d.Sub("holiday.jpg"), nil, 0o600))
	_, err = d.ReadMarker()
	require.ErrorContains(t, err, "holiday.jpg")
	require.NoError(t, d.Close())
	d, err = OpenDataDir(dir)
	require.NoError(t, err, "unlocked")
	require.NoError(t, d.Close())
}
