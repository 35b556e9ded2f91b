package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/stretchr/testify/require"
)

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	c.EnsureDefaults()
	require.NoError(t, c.Validate())
	require.Equal(t, c.Addr, c.AdvertiseAddr)
	require.Equal(t, 500*time.Millisecond, c.Raftstore.ElectionTimeout())
	require.Less(t, c.Raftstore.LeaseDuration(), c.Raftstore.ElectionTimeout())
}

// TestSampleIsTheDefault: what --print-sample-config prints, read back, changes nothing.
func TestSampleIsTheDefault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(path, []byte(Sample()), 0o600))
	c := &Config{}
	require.NoError(t, c.LoadFile(path))
	require.Equal(t, Default(), c)
}

func TestFaultsAreNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no scheduler":       {func(c *Config) { c.Scheduler = nil }, "scheduler"},
		"scheduler port":     {func(c *Config) { c.Scheduler = []string{"a:b:c"} }, "scheduler"},
		"addr":               {func(c *Config) { c.Addr = "x" }, "addr"},
		"advertise nowhere":  {func(c *Config) { c.Addr = "0.0.0.0:1" }, "advertise-addr"},
		"status":             {func(c *Config) { c.StatusAddr = "x" }, "status-addr"},
		"data dir":           {func(c *Config) { c.DataDir = "" }, "data-dir"},
		"level":              {func(c *Config) { c.Log.Level = "loud" }, "log.level"},
		"format":             {func(c *Config) { c.Log.Format = "xml" }, "log.format"},
		"engine":             {func(c *Config) { c.Storage.Engine = "paper" }, "storage.engine"},
		"message size":       {func(c *Config) { c.Server.GRPCMaxMessage = c.Raftstore.MaxEntry }, "grpc-max-message"},
		"key size":           {func(c *Config) { c.Server.MaxKeySize = 1 * MiB }, "max-key-size"},
		"election":           {func(c *Config) { c.Raftstore.ElectionTicks = 2 }, "election-ticks"},
		"tick":               {func(c *Config) { c.Raftstore.TickInterval = Dur(0) }, "tick-interval"},
		"read mode":          {func(c *Config) { c.Raftstore.ReadMode = "hope" }, "read-mode"},
		"drift":              {func(c *Config) { c.Raftstore.LeaseDrift = 100 }, "lease-drift-percent"},
		"split above max":    {func(c *Config) { c.Raftstore.RegionSplitSize = c.Raftstore.RegionMaxSize + 1 }, "region-max-size"},
		"negative heartbeat": {func(c *Config) { c.Raftstore.RegionHeartbeatInterval = Dur(-1) }, "region-heartbeat-interval"},
		"workers":            {func(c *Config) { c.Raftstore.RaftWorkers = 0 }, "raft-workers"},
		"log gc":             {func(c *Config) { c.Raftstore.LogGCCountLimit = 0 }, "log-gc"},
		"segment":            {func(c *Config) { c.RaftLog.SegmentSize = 1 }, "segment-size"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			tc.change(c)
			require.ErrorContains(t, c.Validate(), tc.want)
		})
	}
	// All faults are reported at once.
	c := Default()
	c.DataDir, c.Storage.Engine = "", "paper"
	err := c.Validate()
	require.ErrorContains(t, err, "data-dir")
	require.ErrorContains(t, err, "storage.engine")
}

func TestFileErrorsSayWhere(t *testing.T) {
	load := func(text string) error {
		path := filepath.Join(t.TempDir(), "c.toml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return Default().LoadFile(path)
	}
	require.ErrorContains(t, load("[raftstore]\ntick-intervall = \"1s\"\n"), `unknown key "raftstore.tick-intervall"; did you mean "raftstore.tick-interval"?`)
	require.ErrorContains(t, load("\n\naddr = 5\n"), "line 3")
	require.ErrorContains(t, load("[raftstore]\ntick-interval = \"fast\"\n"), "fast")
	require.ErrorContains(t, load("[storage]\ncache-size = \"many\"\n"), "many")
	require.NoError(t, load("[labels]\nzone = \"a\"\n"))
	require.ErrorContains(t, Default().LoadFile("/does/not/exist"), "/does/not/exist")
}

func TestSizesReadBackExactly(t *testing.T) {
	for _, s := range []Size{0, 1, 1023, KiB, 3 * MiB / 2, 96 * MiB, GiB, GiB + 1} {
		text, err := s.MarshalText()
		require.NoError(t, err)
		var back Size
		require.NoError(t, back.UnmarshalText(text))
		require.Equal(t, s, back, string(text))
	}
	var s Size
	require.Error(t, s.UnmarshalText([]byte("-1MiB")))
}

// FuzzConfig: no text makes loading or validating panic.
func FuzzConfig(f *testing.F) {
	f.Add(Sample())
	f.Add("[raftstore]\nelection-ticks = -9223372036854775808\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := Default()
		if _, err := toml.Decode(text, c); err == nil {
			c.EnsureDefaults()
			_ = c.Validate()
		}
	})
}
