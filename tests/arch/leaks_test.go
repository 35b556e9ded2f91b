package arch

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// TestGoroutinesAreWatched: a package that starts goroutines has tests that fail if one is left.
func TestGoroutinesAreWatched(t *testing.T) {
	// They start for tests, which watch; or end with their process.
	exempt := []string{
		"scheduler/server/servertest", "kv/engine/enginetest", "pkg/goruntime", "tests/cluster",
		"tests/bench",
	}
	starts, watched := map[string]string{}, map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			watched[s.dir] = watched[s.dir] || slices.ContainsFunc(imports(s), func(i string) bool {
				return i == "go.uber.org/goleak" || strings.HasSuffix(i, "kv/engine/enginetest")
			})
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if _, ok := n.(*ast.GoStmt); ok {
				starts[s.dir] = s.path
			}
			return true
		})
	}
	for dir, path := range starts {
		if !watched[dir] &&
			!slices.ContainsFunc(exempt, func(e string) bool { return under(dir, e) }) {
			t.Errorf("%s starts a goroutine, and no test of %s uses goleak", path, dir)
		}
	}
}
