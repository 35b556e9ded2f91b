package runner_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tinykv/tinykv/kv/raftstore/runner"
)

// TestClockLimit: a clock that is behind, or a little ahead, counts; one that is far ahead counts
// as the reference and what is allowed, also while the reference cannot be asked; the answer's way
// makes the limit later, never earlier.
func TestClockLimit(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	const takes = 300 * time.Millisecond
	reference := time.UnixMilli(1_800_000_000_000)
	now, broken := reference.Add(-time.Hour), error(nil)
	pass := func(d time.Duration) { now, reference = now.Add(d), reference.Add(d) }
	l := runner.NewClockLimit(func() time.Time {
		return now
	}, func(context.Context) (time.Time, error) {
		pass(takes)
		asked := reference
		pass(takes)
		return asked, broken
	}, zap.New(core))

	require.False(t, l.Known())
	require.Equal(t, now, l.Now(), "nothing is known: the clock counts")
	broken = errors.New("no answer")
	require.Error(t, l.Check(t.Context()))
	require.False(t, l.Known())
	broken = nil
	require.NoError(t, l.Check(t.Context()))
	require.True(t, l.Known())
	require.Equal(t, now, l.Now(), "the clock is behind")
	require.Zero(t, logs.Len())

	now = reference.Add(runner.MaxClockAhead)
	require.NoError(t, l.Check(t.Context()))
	require.Equal(t, now, l.Now(), "as far ahead as it may be")

	now = reference.Add(3 * time.Hour)
	require.NoError(t, l.Check(t.Context()))
	require.Equal(t, reference.Add(runner.MaxClockAhead+takes).UnixMilli(), l.Now().UnixMilli())
	require.NoError(t, l.Check(t.Context()))
	require.Equal(t, 1, logs.Len(), "one line while it lasts")
	broken = errors.New("no answer")
	require.Error(t, l.Check(t.Context()))
	pass(time.Hour)
	require.Equal(t, reference.Add(runner.MaxClockAhead+takes).UnixMilli(), l.Now().UnixMilli(),
		"time passes without the service")
	broken, now = nil, reference
	require.NoError(t, l.Check(t.Context()))
	require.Equal(t, now, l.Now())
	require.Equal(t, 2, logs.Len())

	none := runner.NewClockLimit(func() time.Time { return now }, nil, zap.NewNop())
	require.NoError(t, none.Check(t.Context()))
	require.True(t, none.Known())
	require.Equal(t, now, none.Now())
}
