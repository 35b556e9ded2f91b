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

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// TestSampleIsTheDefault: a member that starts with the sample is the one that starts without a
// file. It used to have another name, thus another data directory, and began a new cluster.
func TestSampleIsTheDefault(t *testing.T) {
	text, err := Sample()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	empty, fromFile, plain := &Config{}, Default(), Default()
	require.NoError(t, empty.LoadFile(path))
	require.Equal(t, Default(), empty, "every key is there")
	require.NoError(t, fromFile.LoadFile(path))
	require.NoError(t, fromFile.Adjust())
	require.NoError(t, plain.Adjust())
	require.Equal(t, plain, fromFile)
	require.True(t, strings.HasPrefix(fromFile.Name, "pd-"), fromFile.Name)
}

// TestEveryKeyIsExplained: the sample has each key, and there is a comment for each and for no
// other one.
func TestEveryKeyIsExplained(t *testing.T) {
	text, err := Sample()
	require.NoError(t, err)
	keys := tomlfile.Keys(reflect.TypeFor[Config]())
	require.Greater(t, len(keys), 80)
	require.ElementsMatch(t, keys, slices.Collect(maps.Keys(comments())))
	for _, key := range keys {
		name := key[strings.LastIndexByte(key, '.')+1:]
		require.Regexp(t, `(?m)^# .*\n(#?`+name+` = |\[+`+regexp.QuoteMeta(key)+`\])`, text, key)
	}
}

func TestFileErrorsSayWhere(t *testing.T) {
	for text, want := range map[string]string{
		"[schedule]\n  max-store-downtime = \"1m\"\n": `line 2, column 3: unknown key "schedule.max-store-downtime"`,
		"lease-ttl = \"soon\"\n":                      `line 1, column 14: "soon" is not a duration`,
		"name = 5\n":                                  "line 1, column 1: name: incompatible types",
		"name =\n":                                    "line 1, column 7: ",
	} {
		require.ErrorContains(t, Default().Load(text), want)
	}
	require.NoError(t, Default().Load("[[schedule.schedulers]]\ntype = \"merge\"\nany = 1\n"))
}
