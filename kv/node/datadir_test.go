package node

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/feature"
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

	require.NoError(t,
		d.WriteMarker(Marker{Engine: "pebble", Mode: "raft", ClusterID: 1<<63 - 1, StoreID: 3}))
	m, err = d.ReadMarker()
	require.NoError(t, err)
	require.Equal(t,
		&Marker{Format: 2, Engine: "pebble", Mode: "raft", ClusterID: 1<<63 - 1, StoreID: 3}, m)
	require.NoError(t, m.check(dir, "pebble", "raft"))
	require.ErrorContains(t, m.check(dir, "badger", "raft"), "storage.engine")
	require.ErrorContains(t, m.check(dir, "pebble", "standalone"), "storage.raft")
	require.NoError(t, m.checkIdent(dir, 1<<63-1, 3))
	require.ErrorContains(t, m.checkIdent(dir, 9, 3), "cluster 9")
	require.ErrorContains(t, m.checkIdent(dir, 1<<63-1, 4), "store 4")

	for text, want := range map[string]string{
		"format = 4\n":            "format 4",
		"format = \"one\"\n":      "damaged",
		"":                        "damaged",
		"format = 1\nstore-id = ": "damaged",
	} {
		require.NoError(t, os.WriteFile(d.Sub(markerFile), []byte(text), 0o600))
		_, err = d.ReadMarker()
		require.ErrorContains(t, err, want, "%q", text)
	}
	require.NoError(t,
		os.WriteFile(d.Sub(markerFile),
			[]byte(
				"format = 1\nengine = \"pebble\"\nmode = \"raft\"\ncluster-id = 8\nstore-id = 3\n"),
			0o600))
	m, err = d.ReadMarker()
	require.NoError(t, err)
	require.NoError(t, d.Upgrade(m, 0))
	m, err = d.ReadMarker()
	require.NoError(t, err)
	require.Equal(t, &Marker{Format: 2, Engine: "pebble", Mode: "raft", ClusterID: 8, StoreID: 3},
		m)
	require.NoError(t, d.Upgrade(m, feature.ConditionalOps))
	m, err = d.ReadMarker()
	require.NoError(t, err)
	require.Equal(t, &Marker{
		Format: 3, Engine: "pebble", Mode: "raft", ClusterID: 8, StoreID: 3,
		Features: []string{"conditional-ops"},
	}, m, "a program without features refuses the directory")
	require.NoError(t, m.CheckFeatures(dir, feature.ConditionalOps|feature.Transactions))
	require.ErrorContains(t, m.CheckFeatures(dir, feature.Transactions), "conditional-ops")
	m.FeaturesOn = []string{"holidays"}
	require.ErrorContains(t, m.CheckFeatures(dir, feature.ConditionalOps), "holidays")
	require.NoError(t, os.Remove(d.Sub(markerFile)))
	require.NoError(t, os.WriteFile(d.Sub("holiday.jpg"), nil, 0o600))
	_, err = d.ReadMarker()
	require.ErrorContains(t, err, "holiday.jpg")
	require.NoError(t, d.Close())
	d, err = OpenDataDir(dir)
	require.NoError(t, err, "unlocked")
	require.NoError(t, d.Close())
}

// TestDamagedMarker flips every bit of the marker, cuts it at every byte and zeroes every part of
// it: a start refuses and names the directory, or the store is the same as before. The lock file's
// content means nothing. What the marker says of the identity is compared with the engine's record;
// a marker that has lost its ids says nothing, and the record counts.
func TestDamagedMarker(t *testing.T) {
	dir := t.TempDir()
	d, err := OpenDataDir(dir)
	require.NoError(t, err)
	const cluster, store = 7412356789, 42
	require.NoError(t, d.WriteMarker(Marker{
		Engine: "pebble", Mode: "raft", ClusterID: cluster, StoreID: store,
		Features:   []string{"conditional-ops", "transactions"},
		FeaturesOn: []string{"conditional-ops"},
	}))
	good, err := os.ReadFile(d.Sub(markerFile))
	require.NoError(t, err)
	counts := map[string]int{}
	try := func(data []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(d.Sub(markerFile), data, 0o600))
		m, err := d.ReadMarker()
		if err == nil {
			require.NotNil(t, m, "taken for a new directory: %q", data)
			err = errors.Join(m.check(dir, "pebble", "raft"),
				m.CheckFeatures(dir, feature.ConditionalOps|feature.Transactions))
		}
		if err == nil {
			require.True(t, feature.ConditionalOps.Has(m.inForce()),
				"damage puts nothing in force: %q", data)
		}
		if err == nil && m.ClusterID != 0 && m.ClusterID != cluster {
			counts["refused beside the placement service"]++
			return
		}
		if err == nil && m.StoreID != 0 {
			err = m.checkIdent(dir, cluster, store)
		}
		if err != nil {
			require.ErrorContains(t, err, dir)
			counts["refused"]++
			return
		}
		counts["the same store"]++
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			try(bad)
		}
		try(good[:i])
		bad := bytes.Clone(good)
		clear(bad[i:])
		try(bad)
	}
	try(make([]byte, 4096))
	t.Logf("marker: %d damages: %v",
		counts["refused"]+counts["the same store"]+counts["refused beside the placement service"],
		counts)
	require.NoError(t, os.WriteFile(d.Sub(markerFile), good, 0o600))
	require.NoError(t, d.Close())
	for _, lock := range [][]byte{nil, {0}, bytes.Repeat([]byte{0xff}, 5000)} {
		require.NoError(t, os.WriteFile(d.Sub(lockFile), lock, 0o600))
		d, err = OpenDataDir(dir)
		require.NoError(t, err)
		_, err = OpenDataDir(dir)
		require.ErrorContains(t, err, "in use by another process")
		require.NoError(t, d.Close())
	}
}

// FuzzMarker: a marker of any bytes is read or refused.
func FuzzMarker(f *testing.F) {
	f.Add(
		[]byte("format = 1\nengine = \"pebble\"\nmode = \"raft\"\ncluster-id = 7\nstore-id = 3\n"))
	f.Add([]byte("format = 99999999999999999999"))
	f.Add([]byte("[format]\n"))
	f.Add([]byte("store-id = -1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &DataDir{Path: t.TempDir()}
		if err := os.WriteFile(d.Sub(markerFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := d.ReadMarker()
		if (m == nil) != (err != nil) {
			t.Fatalf("%v, %v", m, err)
		}
		if m != nil && (m.Format < 1 || m.Format > formatVersion) {
			t.Fatalf("format %d", m.Format)
		}
	})
}
