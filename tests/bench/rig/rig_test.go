package rig

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKeysInside(t *testing.T) {
	keys := [][]byte{[]byte("b"), []byte("d"), []byte("f")}
	for _, c := range []struct {
		start, end    string
		inside, after int
	}{
		{"", "", 3, 0}, {"", "b", 0, 3}, {"b", "", 2, 0}, {"a", "e", 2, 1}, {"b", "f", 1, 1},
		{"x", "", 0, 0},
	} {
		inside, after := keysInside(keys, []byte(c.start), []byte(c.end))
		require.Len(t, inside, c.inside, c)
		require.Len(t, after, c.after, c)
	}
}

func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		not := errors.New("not yet")
		n := 0
		began := time.Now()
		require.NoError(t, poll(t.Context(), time.Second, func() error {
			if n++; n < 4 {
				return not
			}
			return nil
		}))
		require.Equal(t, 3*time.Second, time.Since(began))

		ctx, cancel := context.WithTimeout(t.Context(), 55*time.Second)
		defer cancel()
		n = 0
		err := poll(ctx, time.Second, func() error { n++; time.Sleep(2 * time.Second); return not })
		require.ErrorIs(t, err, not)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 5, n, "what takes 2 s is asked every 12 s")
	})
}

func TestBins(t *testing.T) {
	dir := t.TempDir()
	b := DefaultBins(dir)
	err := b.Check()
	for _, p := range []string{"tinykv-server", "tinyscheduler", "etcd", "ideal"} {
		require.ErrorContains(t, err, p)
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bench"), 0o755))
	for _, p := range []string{"tinykv-server", "tinyscheduler", "bench/etcd", "bench/ideal"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, p), nil, 0o755))
	}
	require.NoError(t, b.Check())
	s, err := NewTinyKV(b, 3, "")
	require.NoError(t, err)
	e, err := NewEtcd(b)
	require.NoError(t, err)
	i, err := NewIdeal(b, false)
	require.NoError(t, err)
	for dir, system := range map[string]System{s.dir: s, e.dir: e, i.dir: i} {
		require.DirExists(t, dir)
		require.Empty(t, system.PIDs())
		system.Stop()
		require.NoDirExists(t, dir)
	}
}
