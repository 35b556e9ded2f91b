package config

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// TestLeaseOutlivesNoElection: a leader whose clock is slow does not serve reads by its lease once
// followers whose clocks are fast may have elected another one.
func TestLeaseOutlivesNoElection(t *testing.T) {
	r := &Default().Raftstore
	const slow, fast = 0.9, 1.1
	lease := float64(r.LeaseDuration()) / slow
	// The first tick may come right after the heartbeat.
	election := float64(r.TickInterval.Duration) * float64(r.ElectionTicks-1) / fast
	require.Less(t, lease, election)
}

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

// TestEveryKeyIsExplained: the sample has each key, and there is a comment for each and for no
// other one.
func TestEveryKeyIsExplained(t *testing.T) {
	keys := tomlfile.Keys(reflect.TypeFor[Config]())
	require.Greater(t, len(keys), 80)
	require.ElementsMatch(t, keys, slices.Collect(maps.Keys(comments())))
	for _, key := range keys {
		name := key[strings.LastIndexByte(key, '.')+1:]
		require.Regexp(t, `(?m)^# .*\n(#?`+name+` = |\[`+regexp.QuoteMeta(key)+`\])`, Sample(), key)
	}
}

func TestFaultsAreNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no scheduler":      {func(c *Config) { c.Scheduler = nil }, "scheduler"},
		"scheduler port":    {func(c *Config) { c.Scheduler = []string{"a:b:c"} }, "scheduler"},
		"addr":              {func(c *Config) { c.Addr = "x" }, "addr"},
		"advertise nowhere": {func(c *Config) { c.Addr = "0.0.0.0:1" }, "advertise-addr"},
		"status":            {func(c *Config) { c.StatusAddr = "x" }, "status-addr"},
		"addr in the clear": {func(c *Config) { c.Addr = "10.0.0.1:1" }, "--insecure"},
		"status in clear": {func(c *Config) {
			c.StatusAddr = "0.0.0.0:1"
			c.AdvertiseStatusAddr = "10.0.0.1:1"
		}, "--insecure"},
		"advertise any":  {func(c *Config) { c.AdvertiseAddr = "[::]:1" }, "advertise-addr"},
		"status nowhere": {func(c *Config) { c.StatusAddr = ":1" }, "advertise-status-addr"},
		"https and http": {func(c *Config) {
			c.Scheduler = []string{"https://a:1", "http://b:1"}
		}, "in the same way"},
		"no such CA": {func(c *Config) {
			c.Security.CAPath = "/does/not/exist"
		}, "no such file"},
		"CA without TLS": {func(c *Config) {
			c.Scheduler = []string{"http://a:1"}
			c.Security.CAPath = "x"
		}, "https://"},
		"other scheme": {func(c *Config) {
			c.Scheduler = []string{"ftp://a:1"}
		}, "neither http nor https"},
		"data dir": {func(c *Config) { c.DataDir = "" }, "data-dir"},
		"level":    {func(c *Config) { c.Log.Level = "loud" }, "log.level"},
		"format":   {func(c *Config) { c.Log.Format = "xml" }, "log.format"},
		"engine":   {func(c *Config) { c.Storage.Engine = "paper" }, "storage.engine"},
		"message size": {func(c *Config) {
			c.Server.GRPCMaxMessage = c.Raftstore.MaxEntry
		}, "grpc-max-message"},
		"key size": {func(c *Config) { c.Server.MaxKeySize = 1 * MiB }, "max-key-size"},
		"election": {func(c *Config) { c.Raftstore.ElectionTicks = 2 }, "election-ticks"},
		"tick": {func(c *Config) {
			c.Raftstore.TickInterval = Dur(0)
		}, "tick-interval"},
		"read mode": {func(c *Config) { c.Raftstore.ReadMode = "hope" }, "read-mode"},
		"drift": {func(c *Config) {
			c.Raftstore.LeaseDrift = 100
		}, "lease-drift-percent"},
		"split above max": {func(c *Config) {
			c.Raftstore.RegionSplitSize = c.Raftstore.RegionMaxSize + 1
		}, "region-max-size"},
		"negative heartbeat": {func(c *Config) {
			c.Raftstore.RegionHeartbeatInterval = Dur(-1)
		}, "region-heartbeat-interval"},
		"workers": {func(c *Config) { c.Raftstore.RaftWorkers = 0 }, "raft-workers"},
		"log gc":  {func(c *Config) { c.Raftstore.LogGCCountLimit = 0 }, "log-gc"},
		"segment": {func(c *Config) { c.RaftLog.SegmentSize = 1 }, "segment-size"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			tc.change(c)
			require.ErrorContains(t, c.Validate(), tc.want)
		})
	}
	open := Default()
	open.Addr, open.AdvertiseAddr, open.Security.Insecure = "0.0.0.0:1", "10.0.0.1:1", true
	require.NoError(t, open.Validate())
	require.Equal(t, []string{"0.0.0.0:1"}, open.InTheClear())
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
	require.ErrorContains(t, load("[raftstore]\ntick-intervall = \"1s\"\n"),
		`unknown key "raftstore.tick-intervall", did you mean "raftstore.tick-interval"?`)
	require.ErrorContains(t, load("\n\n  addr = 5\n"), "line 3, column 3: addr: incompatible types")
	require.ErrorContains(t, load("[raftstore]\ntick-interval = \"fast\"\n"),
		`line 2, column 18: "fast" is not a duration`)
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
