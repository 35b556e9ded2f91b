package tso_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/scheduler/server/storage"
	"github.com/tinykv/tinykv/scheduler/server/tso"
)

// While nobody asks for timestamps no bound is saved; who asks then gets the time of day, not what
// is left below the old bound.
func TestBoundIsLeftBehindWhileNobodyAsks(t *testing.T) {
	const key, window = "/timestamp", 3 * time.Second
	mem := storage.NewMemory()
	_, err := mem.Txn(t.Context(), nil, []storage.Op{storage.Put("/leader", []byte("1"))})
	require.NoError(t, err)
	fence := storage.ValueIs("/leader", []byte("1"))
	clock := time.UnixMilli(1_700_000_000_000)
	o := tso.New(mem, key, window, func() time.Time { return clock })
	require.NoError(t, o.Start(t.Context(), fence))
	revision := func() int64 {
		kv, err := mem.Get(t.Context(), key)
		require.NoError(t, err)
		return kv.ModRevision
	}
	pass := func(d time.Duration) {
		for range d / time.Second {
			clock = clock.Add(time.Second)
			require.NoError(t, o.Extend(t.Context(), fence))
		}
	}
	generate := func() (int64, int64) {
		physical, logical, err := o.Generate(t.Context(), fence, 1)
		require.NoError(t, err)
		return physical, logical
	}

	pass(time.Minute)
	left := revision()
	pass(time.Minute)
	require.Equal(t, left, revision(), "nobody asked")

	physical, _ := generate()
	require.Equal(t, clock.UnixMilli(), physical)
	again, logical := generate()
	require.Equal(t, physical, again)
	require.EqualValues(t, 1, logical)

	for range 10 { // asked for all the time, the bound stays ahead: no caller waits for a save
		generate()
		saved := revision()
		pass(time.Second)
		physical, _, ok, err := o.Get(1)
		require.True(t, ok && err == nil)
		require.Equal(t, clock.UnixMilli(), physical)
		require.Greater(t, revision(), saved-1)
	}
}
