package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDefencesHaveTests: each test that docs/security.md names for a defence exists.
func TestDefencesHaveTests(t *testing.T) {
	page, err := os.ReadFile("../../docs/security.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(page), "\n## Attack, defence, test\n")
	require.True(t, ok)
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
	exists := map[string]bool{}
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, f := range declared.FindAllSubmatch(text, -1) {
			exists[string(f[1])] = true
		}
		return err
	})
	require.NoError(t, err)
	named := regexp.MustCompile("`(?:[a-z]+\\.)?((?:Test|Fuzz)[A-Za-z0-9_]+)`").
		FindAllStringSubmatch(table, -1)
	require.Greater(t, len(named), 60)
	for _, n := range named {
		require.True(t, exists[n[1]], "docs/security.md names the test %s, which is not there", n[1])
	}
}
