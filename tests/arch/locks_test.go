package arch

import (
	"go/ast"
	"strings"
	"testing"
)

// TestLockedKeepsTheLock: a function named ...Locked is called with a lock and holds it until it
// returns. What gives it up in between is named ...Yielding, and is called by no function named
// ...Locked: what the caller of that has read under the lock would not hold any more.
func TestLockedKeepsTheLock(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || !strings.HasSuffix(fn.Name.Name, "Locked") {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if _, later := n.(*ast.FuncLit); later {
					return false
				}
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				f, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, _ := f.X.(*ast.Ident)
				own := x != nil && fn.Recv != nil && len(fn.Recv.List[0].Names) > 0 &&
					x.Name == fn.Recv.List[0].Names[0].Name
				sel, _ := f.X.(*ast.SelectorExpr)
				if sel != nil && sel.Sel.Name == "mu" {
					x, ok := sel.X.(*ast.Ident)
					own = ok && fn.Recv != nil && len(fn.Recv.List[0].Names) > 0 &&
						x.Name == fn.Recv.List[0].Names[0].Name
				}
				gives := (f.Sel.Name == "Unlock" || f.Sel.Name == "RUnlock") && own ||
					strings.HasSuffix(f.Sel.Name, "Yielding")
				if gives {
					t.Errorf("%s:%d: %s gives a lock up: name it ...Yielding", s.path,
						s.fset.Position(call.Pos()).Line, fn.Name.Name)
				}
				return true
			})
		}
	}
}
