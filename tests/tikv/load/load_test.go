package load_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/rawkv"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/tests/tikv/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store of pairs. Its operations fail with fails, if that is set.
type memory struct {
	mu    sync.Mutex
	pairs map[string]string
	fails error
}

func (m *memory) Put(_ context.Context, key, value []byte, _ ...rawkv.RawOption) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pairs[string(key)] = string(value)
	return m.fails
}

func (m *memory) Get(_ context.Context, key []byte, _ ...rawkv.RawOption) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.pairs[string(key)]; ok {
		return []byte(v), m.fails
	}
	return nil, m.fails
}

// TestRun: puts have values of the size asked for and keys of the key space; what fails and what is
// missing is counted, and a load without one success is an error.
func TestRun(t *testing.T) {
	m := &memory{pairs: map[string]string{}}
	c := load.Config{
		Phase: "put", Workers: 3, Keys: 8, ValueSize: 33, Warmup: 5 * time.Millisecond,
		Duration: 50 * time.Millisecond,
		PIDs:     []int{os.Getpid()},
	}
	res, err := load.Run(t.Context(), m, c)
	require.NoError(t, err)
	require.Positive(t, res.Ops)
	require.Zero(t, res.Errors)
	require.InDelta(t, float64(res.Ops)/c.Duration.Seconds(), res.OpsPerS, 0.01)
	require.NotNil(t, res.ServerCPUPerKop)
	require.LessOrEqual(t, len(m.pairs), 8)
	for i := range uint64(8) {
		if v, ok := m.pairs[string(load.Key(i))]; ok {
			require.Len(t, v, 33)
			delete(m.pairs, string(load.Key(i)))
		}
	}
	require.Empty(t, m.pairs, "keys that are not of the key space")

	c.Phase = "get"
	_, err = load.Run(t.Context(), m, c)
	require.ErrorContains(t, err, "not there")
	m.pairs[string(load.Key(3))] = "v"
	res, err = load.Run(t.Context(), m, c)
	require.NoError(t, err)
	require.Positive(t, res.Errors)
	require.Positive(t, res.Ops)
	m.fails = errors.New("broken")
	_, err = load.Run(t.Context(), m, c)
	require.ErrorContains(t, err, "broken")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = load.Run(ctx, m, c)
	require.ErrorIs(t, err, context.Canceled)
	for _, bad := range []load.Config{
		{}, {Phase: "scan", Workers: 1, Keys: 1, ValueSize: 1, Duration: 1},
	} {
		_, err = load.Run(t.Context(), m, bad)
		require.Error(t, err)
	}
}
