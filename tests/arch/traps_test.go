package arch

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	storeTrap = regexp.MustCompile(`(?m)^\| ([F-O]-?[0-9]+) [^|]*\|[^|]*\|([^|]*)\|$`)
	namedTest = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
)

// testNames are the tests of all packages under dir.
func testNames(t *testing.T, dir string) map[string]bool {
	names := map[string]bool{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
		}
		return err
	}))
	return names
}

var (
	anyTrap    = regexp.MustCompile(`(?m)^\| ([A-Q]-?[0-9]+)[ |]`)
	comment    = regexp.MustCompile(`//(.*)`)
	inBrackets = regexp.MustCompile(`\(([^()]*)\)`)
	afterWord  = regexp.MustCompile(`\btraps? ([A-Q]-?[0-9]{1,2})\b`)
	code       = regexp.MustCompile(`\b[A-Q]-?[0-9]{1,2}\b`)
)

// TestTrapsHaveRows: each code of a trap that a comment names, in brackets or behind the word trap,
// has its row in docs/traps.md; so have invariants (I1 to I15) and planted bugs in
// docs/testing-raft.md.
func TestTrapsHaveRows(t *testing.T) {
	rows := map[string]bool{}
	for _, page := range []string{"traps.md", "testing-raft.md"} {
		doc, err := os.ReadFile("../../docs/" + page)
		require.NoError(t, err)
		for _, m := range anyTrap.FindAllStringSubmatch(string(doc), -1) {
			rows[m[1]] = true
		}
	}
	require.Greater(t, len(rows), 100)
	for _, s := range sources(t) {
		text, err := os.ReadFile(filepath.Join("../..", s.path))
		require.NoError(t, err)
		for _, c := range comment.FindAllStringSubmatch(string(text), -1) {
			var named []string
			for _, in := range inBrackets.FindAllStringSubmatch(c[1], -1) {
				named = append(named, code.FindAllString(in[1], -1)...)
			}
			for _, m := range afterWord.FindAllStringSubmatch(c[1], -1) {
				named = append(named, m[1])
			}
			for _, name := range named {
				if !rows[name] {
					t.Errorf("%s names %s, which has no row in docs/traps.md", s.path, name)
				}
			}
		}
	}
}

// TestStoreTrapsAreShown: the table of docs/traps.md has each trap of the store once, and the tests
// that it names exist.
func TestStoreTrapsAreShown(t *testing.T) {
	exists := testNames(t, "../..")
	doc, err := os.ReadFile("../../docs/traps.md")
	require.NoError(t, err)
	rows := map[string]int{}
	for _, row := range storeTrap.FindAllStringSubmatch(string(doc), -1) {
		rows[row[1]]++
		named := namedTest.FindAllStringSubmatch(row[2], -1)
		require.NotEmpty(t, named, "nothing shows %s", row[1])
		for _, name := range named {
			require.True(t, exists[name[1]], "%s: there is no %s", row[1], name[1])
		}
	}
	for prefix, last := range map[string]int{
		"F-": 15, "G": 17, "H": 14, "I-": 13, "M": 11, "O": 11,
	} {
		for i := 1; i <= last; i++ {
			require.Equal(t, 1, rows[fmt.Sprint(prefix, i)], "rows of %s%d", prefix, i)
		}
	}
}
