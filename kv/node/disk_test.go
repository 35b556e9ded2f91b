package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSlowDiskIsNoticed(t *testing.T) {
	w := newDiskWatch(100 * time.Millisecond)
	clock := time.Unix(1000, 0)
	w.now = func() time.Time { return clock }
	w.began = clock
	sync := func(takes time.Duration) {
		require.NoError(t, w.around(func() error { clock = clock.Add(takes); return nil }))
	}
	for range 20 {
		sync(time.Millisecond)
	}
	require.False(t, w.slow())
	sync(200 * time.Millisecond)
	require.False(t, w.slow(), "one slow sync of 21 is an exception")
	sync(200 * time.Millisecond)
	sync(200 * time.Millisecond)
	require.True(t, w.slow())
	clock = clock.Add(diskWindow)
	require.True(t, w.slow(), "the last window was slow")
	sync(time.Millisecond)
	clock = clock.Add(diskWindow)
	require.False(t, w.slow())
}

func TestHangingSyncIsSlowBeforeItReturns(t *testing.T) {
	w := newDiskWatch(100 * time.Millisecond)
	clock := time.Unix(1000, 0)
	w.now = func() time.Time { return clock }
	w.began = clock
	broken := errors.New("broken")
	require.ErrorIs(t, w.around(func() error {
		require.False(t, w.slow())
		clock = clock.Add(time.Second)
		require.True(t, w.slow())
		return broken
	}), broken)
	require.False(t, newDiskWatch(0).slow())
}

func TestCapacityCountsWhatIsInTheDirectory(t *testing.T) {
	dir := t.TempDir()
	g, err := newSpaceGuard(dir, spaceOptions{reserve: 1 << 20, capacity: 8 << 20})
	require.NoError(t, err)
	total, free := g.disk()
	require.Equal(t, uint64(8<<20), total)
	require.Greater(t, free, uint64(7<<20))
	require.False(t, g.full())
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	ballast := filepath.Join(dir, "sub", "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 8<<20), 0o600))
	require.NoError(t, g.measure())
	require.True(t, g.full())
	require.NoError(t, os.Remove(ballast))
	require.NoError(t, g.measure())
	require.False(t, g.full())
}
