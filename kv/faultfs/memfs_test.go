package faultfs_test

import (
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/pkg/durable"
)

func write(t *testing.T, m *faultfs.MemFS, name string) {
	t.Helper()
	f, err := m.Create(name)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
}

// TestDirectoriesAreForgotten: a synced file in a synced directory is gone when the name of a
// directory above it was not durable.
func TestDirectoriesAreForgotten(t *testing.T) {
	m := faultfs.NewMemFS(nil)
	_, err := m.Create("a/f")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, m.Mkdir("a/b"), fs.ErrNotExist)
	require.NoError(t, m.Mkdir("a"))
	require.ErrorIs(t, m.Mkdir("a"), fs.ErrExist)
	require.NoError(t, m.Mkdir("a/b"))
	write(t, m, "a/b/f")
	require.NoError(t, m.SyncDir("a/b"))
	require.NoError(t, m.SyncDir("a"))
	left := m.Crash(faultfs.DropAll, nil, nil)
	_, err = left.Open("a/b/f")
	require.ErrorIs(t, err, fs.ErrNotExist)
	there, err := left.Exists("a")
	require.NoError(t, err)
	require.False(t, there)

	require.NoError(t, m.SyncDir("."))
	left = m.Crash(faultfs.DropAll, nil, nil)
	_, err = left.Open("a/b/f")
	require.NoError(t, err)
	there, err = left.Exists("a/b")
	require.NoError(t, err)
	require.True(t, there)
	_, err = left.Open("a/b")
	require.Error(t, err, "a directory is no file")
}

// TestMkdirAllIsDurable also when the process was killed at each of its operations before.
func TestMkdirAllIsDurable(t *testing.T) {
	for k := int64(1); k <= 8; k++ {
		ctl := &faultfs.Controller{}
		ctl.Set(faultfs.CrashAt(k))
		m := faultfs.NewMemFS(ctl)
		first := durable.MkdirAll(m, "a/b/c")
		// only the process died; what was not synced stays so
		m = m.Crash(faultfs.KeepAll, nil, nil)
		if first != nil {
			require.NoError(t, durable.MkdirAll(m, "a/b/c"))
		}
		write(t, m, "a/b/c/f")
		require.NoError(t, m.SyncDir("a/b/c"))
		_, err := m.Crash(faultfs.DropAll, nil, nil).Open("a/b/c/f")
		require.NoError(t, err, "killed at operation %d", k)
	}
}

// TestTornNames: every prefix of what was not synced is possible, directories first.
func TestTornNames(t *testing.T) {
	m := faultfs.NewMemFS(nil)
	require.NoError(t, m.Mkdir("a"))
	write(t, m, "a/f")
	seen := map[int]bool{}
	for seed := range uint64(50) {
		left := m.Crash(faultfs.Torn, rand.New(rand.NewPCG(seed, 0)), nil)
		n := 0
		if there, _ := left.Exists("a"); there {
			n++
		}
		if _, err := left.Open("a/f"); err == nil {
			n += 2
		}
		require.NotEqual(t, 2, n, "a file without its directory")
		seen[n] = true
	}
	require.Len(t, seen, 3)
}
