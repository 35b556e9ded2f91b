package snap

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// TestPace: building and installing keep to the limit, and go on at once when it is lifted.
func TestPace(t *testing.T) {
	e := memengine.New()
	b := e.NewBatch()
	const size = 8 * paceBytes
	b.Put(engine.DataKey(engine.CFDefault, []byte("k")), make([]byte, size))
	require.NoError(t, e.Write(b, true))
	view := e.NewSnapshot()
	defer view.Close()
	m, err := Open(t.TempDir(), 1)
	require.NoError(t, err)
	build := func(index uint64) (Key, error) {
		key := Key{RegionID: 1, Term: 6, Index: index}
		_, _, err := m.Build(view, key, &metapb.Region{StartKey: []byte("a"), EndKey: []byte("z")})
		return key, err
	}
	// least is how long work takes at a limit that is held; the first part is free.
	least := func(limit int) time.Duration {
		return time.Duration(float64(size-paceBytes) / float64(limit) * float64(time.Second))
	}

	const limit = 2 << 20
	m.Pace(limit)
	began := time.Now()
	key, err := build(1)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), least(limit)*9/10)

	meta, err := m.readMeta(prefixBuilt, key)
	require.NoError(t, err)
	r, err := m.OpenBuilt(key, meta)
	require.NoError(t, err)
	defer r.Close()
	in, err := m.Receive(key, meta)
	require.NoError(t, err)
	defer in.Close()
	buf := make([]byte, size/4)
	for left := int(totalSize(meta)); left > 0; {
		n, err := r.Read(buf)
		require.NoError(t, err)
		_, err = in.Write(buf[:n])
		require.NoError(t, err)
		left -= n
	}
	require.NoError(t, in.Finish())
	began = time.Now()
	require.NoError(t, m.Read(key, meta, func(_, _ []byte) error { return nil }))
	require.GreaterOrEqual(t, time.Since(began), least(limit)*9/10)

	// 17 s at this limit, but 2.5 s for one part only once it is lifted.
	m.Pace(size / 20)
	done := make(chan error, 1)
	go func() { _, err := build(2); done <- err }() // ends when the limit is lifted
	require.Eventually(t, func() bool {
		return m.builds.Tokens() < 0
	}, 20*time.Second, time.Millisecond)
	m.Pace(0)
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(12 * time.Second):
		t.Fatal("still at the old limit")
	}
}
