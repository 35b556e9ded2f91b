package arch

import (
	"go/ast"
	"go/token"
	"regexp"
	"testing"
)

var hexVerb = regexp.MustCompile(`%[ .+-]*[xX]`)

// TestKeysAreMarked: what runs in a server writes keys into texts as redact.Key, so that a log with
// redact-keys finds them. Hashes have a width (%016x).
func TestKeysAreMarked(t *testing.T) {
	for _, s := range sources(t) {
		server := under(s.dir, "kv") && !under(s.dir, "kv/engine/enginetest") ||
			under(s.dir, "scheduler") || under(s.dir, "pkg/recovery")
		if s.test || !server {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING &&
				hexVerb.MatchString(lit.Value) {
				t.Errorf("%s:%d: %s: write keys with %%v and redact.Key", s.path,
					s.fset.Position(n.Pos()).Line, lit.Value)
			}
			return true
		})
	}
}
