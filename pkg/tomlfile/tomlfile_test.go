package tomlfile

import (
	"errors"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

type file struct {
	Name  string            `toml:"name"`
	Tags  []string          `toml:"tags"`
	Map   map[string]string `toml:"map"`
	Table struct {
		Size int      `toml:"size"`
		Ways []string `toml:"ways"`
	} `toml:"table"`
	Rows []row `toml:"rows"`
	No   int   `toml:"-"`
}

type row struct {
	Kind string `toml:"kind"`
}

func TestErrorsHaveTheirPlace(t *testing.T) {
	free := func(key string) bool { return key == "free" }
	for text, want := range map[string]string{
		"name = 5\n":                          "line 1, column 1: name: incompatible types",
		"\n[table]\n  size = \"x\"\n":         "line 3, column 3: table.size: incompatible types",
		"free = 1\nnmae = \"x\"\n":            `line 2, column 1: unknown key "nmae", did you mean "name"?`,
		"[table]\n\n    siez = 1\n":           `line 3, column 5: unknown key "table.siez", did you mean "table.size"?`,
		"table = { size = 1, way = 2 }\n":     `line 1, column 1: unknown key "table.way"`,
		"[tabel]\nsize = 1\n":                 `line 1, column 1: unknown key "tabel"`,
		"table . \"siez\" = 1\n":              `line 1, column 1: unknown key "table.siez"`,
		"name = \"\"\"\nx = 1\n\"\"\"\nx=2\n": `line 4, column 1: unknown key "x"`,
		"name = x\n":                          "line 1, column 8: ",
		"name = \"a\"\nname = \"b\"\n":        "line 2, column 1: Key 'name' has already",
		"\n[table\n":                          "line 2, column 7: ",
		"[[rows]]\nkind = \"a\"\nkin = 1\n":   `line 3, column 1: unknown key "rows.kin"`,
	} {
		require.ErrorContains(t, Decode(text, &file{}, free), want, text)
	}
	var f file
	require.NoError(t, Decode("free = 1\n[table]\nsize = 3\n", &f, free))
	require.Equal(t, 3, f.Table.Size)
}

func TestPlace(t *testing.T) {
	text := "name = \"x\"\n[table]\nsize = 1\n"
	err := errors.Join(errors.New("name: bad"), errors.New("table.size: bad"),
		errors.Join(errors.New("table.ways: bad"), errors.New("tags: bad")),
		errors.New("unrelated"))
	require.EqualError(t, Place(err, "f", text, func(key string) bool { return key == "name" }),
		"name: bad\n"+
			"config file f, line 3, column 1: table.size: bad\nconfig file f, line 2, column 1: table.ways: bad\ntags: bad\nunrelated")
	require.NoError(t, Place(nil, "f", text, nil))
}

func TestSample(t *testing.T) {
	f := &file{Name: "n", Map: map[string]string{}, Rows: []row{{"a"}, {"b"}}}
	comments := map[string]string{
		"name": "The name.", "tags": "Tags.", "map": "A map.", "table": "A table.",
		"table.size": "Size.", "table.ways": "Ways.",
		"rows": "Rows.", "rows.kind": "Kind.",
	}
	got, err := Sample("Title.", f, comments)
	require.NoError(t, err)
	require.Equal(t, `# Title.

# The name.
name = "n"
# Tags.
#tags = []

# A map.
[map]

# A table.
[table]
# Size.
size = 0
# Ways.
#ways = []

# Rows.
[[rows]]
# Kind.
kind = "a"

[[rows]]
kind = "b"
`, got)
	delete(comments, "table.ways")
	_, err = Sample("Title.", f, comments)
	require.ErrorContains(t, err, "table.ways has no comment")
	var back file
	require.NoError(t, Decode(got, &back, func(string) bool { return false }))
	require.Equal(t, f, &back)
	require.Equal(t,
		[]string{"name", "tags", "map", "table", "table.size", "table.ways", "rows", "rows.kind"},
		Keys(reflect.TypeFor[file]()))
}
