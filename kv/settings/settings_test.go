package settings_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/settings"
	"github.com/tinykv/tinykv/log"
)

// TestSet: a value that fits is applied, listed and logged once; one that does not changes nothing.
func TestSet(t *testing.T) {
	level := zap.NewAtomicLevel()
	core, lines := observer.New(level)
	start := config.Default()
	l := settings.New(start, zap.New(core))
	applied := 0
	for _, name := range []string{"region-max-size", "region-split-size"} {
		l.On("raftstore."+name, func(c *config.Config) {
			applied++
			require.LessOrEqual(t, c.Raftstore.RegionSplitSize, c.Raftstore.RegionMaxSize)
		})
	}
	l.On("log.level", func(c *config.Config) {
		to, err := log.ParseLevel(c.Log.Level)
		require.NoError(t, err)
		level.SetLevel(to)
	})
	s, err := l.Set("region-max-size", "200MiB")
	require.NoError(t, err)
	require.Equal(t, settings.Setting{
		Name: "raftstore.region-max-size", Value: "200MiB", Default: "144MiB", Before: "144MiB",
	}, s)
	require.Equal(t, map[string]any{
		"setting": "raftstore.region-max-size", "from": "144MiB", "to": "200MiB",
	}, lines.TakeAll()[0].ContextMap())

	for _, bad := range []struct{ name, value, says string }{
		{"raftstore.region-split-size", "1GiB", "region-max-size"},
		{"region-split-size", "much", "is not a size"},
		{"log.level", "loud", "is not one of"},
		{"cache-size", "1MiB", "is in several sections, as storage.cache-size"},
	} {
		_, err := l.Set(bad.name, bad.value)
		require.ErrorContains(t, err, bad.says)
	}
	_, err = l.Set("raftstore.none", "1")
	require.ErrorIs(t, err, settings.ErrUnknown)
	_, err = l.Set("raftstore", "1")
	require.ErrorIs(t, err, settings.ErrUnknown)
	_, err = l.Set("raftlog.cache-size", "1MiB")
	require.ErrorIs(t, err, settings.ErrNeedsRestart)
	require.Equal(t, 1, applied)
	require.Empty(t, lines.TakeAll())
	require.Equal(t, 200*config.MiB, l.Config().Raftstore.RegionMaxSize)
	require.Equal(t, *config.Default(), *start, "the configuration of the start is not changed")

	// A change of the level is logged if either level lets it through.
	for _, to := range []string{"error", "info", "warn", "warn", "debug"} {
		_, err := l.Set("level", to)
		require.NoError(t, err)
	}
	var logged []any
	for _, line := range lines.TakeAll() {
		logged = append(logged, line.ContextMap()["to"])
	}
	require.Equal(t, []any{"error", "info", "warn", "debug"}, logged)
}

// TestList: every option is there once, with what it takes to change it.
func TestList(t *testing.T) {
	cfg := config.Default()
	cfg.Labels = map[string]string{"zone": "b", "rack": "a"}
	cfg.Scheduler = []string{"h1:1", "h2:1"}
	l := settings.New(cfg, zap.NewNop())
	l.On("log.level", func(*config.Config) {})
	got := map[string]settings.Setting{}
	for _, s := range l.List() {
		require.NotContains(t, got, s.Name)
		require.Equal(t, s.Name != "log.level", s.NeedsRestart, s.Name)
		got[s.Name] = s
	}
	for _, name := range settings.Adjustable {
		require.Contains(t, got, name)
	}
	require.Equal(t, "rack=a,zone=b", got["labels"].Value)
	require.Equal(t, "h1:1,h2:1", got["scheduler"].Value)
	require.Equal(t, "127.0.0.1:2379", got["scheduler"].Default)
	require.Equal(t, "1s", got["server.slow-log-threshold"].Default)
	require.NotContains(t, got, "raftstore")
	require.NotContains(t, got, "log.file")
	require.Contains(t, got, "log.file.filename")
	require.Panics(t, func() { l.On("data-dir", func(*config.Config) {}) })
}
