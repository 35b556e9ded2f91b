package arch

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// flagShrink rewrites the lists of what exceeds a limit with what does so now, where that is less.
var flagShrink = flag.Bool("shrink", false,
	"lower the numbers in the lists of exceptions to what they are")

// exceptions are names with how far each may exceed a limit; they may only shrink.
type exceptions struct {
	file    string
	allowed map[string]int
	actual  map[string]int
}

func readExceptions(t *testing.T, file string) *exceptions {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	e := &exceptions{file: file, allowed: map[string]int{}, actual: map[string]int{}}
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		var name string
		var n int
		if _, err := fmt.Sscan(sc.Text(), &name, &n); err != nil {
			t.Fatalf("%s: %q: %v", file, sc.Text(), err)
		}
		e.allowed[name] = n
	}
	return e
}

// check fails for what exceeds its number, and for numbers of what keeps the limit or is gone.
func (e *exceptions) check(t *testing.T, what string) {
	t.Helper()
	for name, n := range e.actual {
		if n > e.allowed[name] {
			t.Errorf("%s: %d %s, allowed: %d", name, n, what, e.allowed[name])
		}
	}
	for name := range e.allowed {
		if e.actual[name] == 0 && !*flagShrink {
			t.Errorf("%s: %s keeps the limit now: go test ./tests/arch -args -shrink", e.file, name)
		}
	}
	if !*flagShrink {
		return
	}
	var lines []string
	for name, n := range e.allowed {
		if n = min(n, e.actual[name]); n > 0 {
			lines = append(lines, fmt.Sprintf("%s %d\n", name, n))
		}
	}
	slices.Sort(lines)
	require.NoError(t, os.WriteFile(e.file, []byte(strings.Join(lines, "")), 0o600))
}

// maxPackageFiles is how many files a package may have, doc.go and tests not counted.
const maxPackageFiles = 15

// TestPackageSizes: a package with more files has several things in it.
func TestPackageSizes(t *testing.T) {
	files := map[string]int{}
	for _, s := range sources(t) {
		if !s.test && !strings.HasSuffix(s.path, "/doc.go") {
			files[s.dir]++
		}
	}
	e := readExceptions(t, "package_allow.txt")
	for dir, n := range files {
		if n > maxPackageFiles {
			e.actual[dir] = n
		}
	}
	e.check(t, "files")
}

// maxColumns is the width of a line of code, a tab being four columns. Documents have a test of their
// own, TestDocumentLines.
const maxColumns = 100

// TestLineLengths looks at hand-written code without its tests.
func TestLineLengths(t *testing.T) {
	e := readExceptions(t, "lines_allow.txt")
	for _, path := range texts(t) {
		if strings.HasSuffix(path, ".md") {
			continue
		}
		data, err := os.ReadFile(filepath.Join("../..", path))
		require.NoError(t, err)
		for line := range strings.Lines(string(data)) {
			if isLong(strings.TrimRight(line, "\n")) {
				e.actual[path]++
			}
		}
	}
	e.check(t, fmt.Sprintf("lines of more than %d columns", maxColumns))
}

func isLong(line string) bool {
	columns := 0
	for _, r := range line {
		columns++
		if r == '\t' {
			columns += 3
		}
	}
	return columns > maxColumns
}

// texts are the paths of code, without tests, and documents.
func texts(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, s := range sources(t) {
		if !s.test {
			out = append(out, s.path)
		}
	}
	for _, dir := range []string{"../..", "../../docs"} {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		out = append(out, documents(dir, entries)...)
	}
	return out
}

func documents(dir string, entries []fs.DirEntry) []string {
	var out []string
	for _, d := range entries {
		if strings.HasSuffix(d.Name(), ".md") {
			out = append(out,
				strings.TrimPrefix(filepath.ToSlash(filepath.Join(dir, d.Name())), "../../"))
		}
	}
	return out
}

// TestExportedNamesAreExplained: a comment on each exported name, or on the group that it is in.
// Methods that are named by an interface of another package say which one, or what they do.
func TestExportedNamesAreExplained(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			if unexplained(d) > 0 {
				t.Errorf("%s:%d: an exported name without a comment", s.path,
					s.fset.Position(d.Pos()).Line)
			}
		}
	}
}

// unexplained counts exported names of a declaration that have no comment.
func unexplained(d ast.Decl) (n int) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && isExportedReceiver(d.Recv) &&
			!isStandard(d.Name.Name) {
			n++
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if spec.Name.IsExported() && d.Doc == nil && spec.Doc == nil &&
					spec.Comment == nil {
					n++
				}
			case *ast.ValueSpec:
				exported := slices.ContainsFunc(spec.Names, func(id *ast.Ident) bool {
					return id.IsExported()
				})
				if exported && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
					n++
				}
			}
		}
	}
	return n
}

// isStandard tells whether a method's name says all: those of error, fmt.Stringer, sort.Interface
// and the encodings.
func isStandard(name string) bool {
	return slices.Contains([]string{
		"Error", "Unwrap", "Is", "String", "Len", "Less", "Swap", "Close", "MarshalText",
		"UnmarshalText", "MarshalJSON", "UnmarshalJSON",
	}, name)
}

func isExportedReceiver(recv *ast.FieldList) bool {
	return recv == nil || ast.IsExported(receiverName(recv))
}

// receiverName is the type of a method's receiver.
func receiverName(recv *ast.FieldList) string {
	t := recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if index, ok := t.(*ast.IndexExpr); ok {
		t = index.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// maxMethods is how many methods a type may have.
const maxMethods = 60

// TestMethodCounts: a type with more methods is several in one.
func TestMethodCounts(t *testing.T) {
	methods := map[string]int{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && !s.test && fn.Recv != nil {
				methods[s.dir+"."+receiverName(fn.Recv)]++
			}
		}
	}
	e := readExceptions(t, "methods_allow.txt")
	for name, n := range methods {
		if n > maxMethods {
			e.actual[name] = n
		}
	}
	e.check(t, "methods")
}
