package goruntime

import (
	"errors"
	"os"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLeast(t *testing.T) {
	of := func(n uint64) func() (uint64, error) { return func() (uint64, error) { return n, nil } }
	none := func() (uint64, error) { return 7, errors.New("no cgroup") }
	require.EqualValues(t, 5, least(of(9), of(5), of(1<<63-1)))
	require.EqualValues(t, 9, least(of(9), none, of(0)))
	require.Zero(t, least(none, of(0), of(1<<63-1)))
}

// TestMemory: GOMEMLIMIT counts, and without it the machine has some memory.
func TestMemory(t *testing.T) {
	if os.Getenv("GOMEMLIMIT") == "" {
		require.Greater(t, Memory(), uint64(64<<20))
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(64 << 20))
	require.EqualValues(t, 64<<20, Memory())
}
