// Package arch checks the code itself: who imports whom, sizes, and a few things that must not
// appear.
package arch

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/tinykv/tinykv/"

type source struct {
	path, dir string
	test      bool
	file      *ast.File
	fset      *token.FileSet
}

// sources are the hand-written Go files of the main module, parsed once for all tests, which must
// not change them.
func sources(t *testing.T) []source {
	t.Helper()
	out, err := parseAll()
	require.NoError(t, err)
	return out
}

var parseAll = sync.OnceValues(func() (out []source, err error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		if d.IsDir() &&
			(d.Name() == ".git" || d.Name() == "bin" || d.Name() == "testdata" ||
				rel == "proto/gen" || rel == "proto/pkg") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out,
			source{
				rel, filepath.ToSlash(filepath.Dir(rel)), strings.HasSuffix(rel, "_test.go"), f,
				fset,
			})
		return nil
	})
	return out, err
})

func imports(s source) []string {
	var out []string
	for _, i := range s.file.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		out = append(out, path)
	}
	return out
}

func under(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

// insideKV are the packages of this project that a part of kv may import, besides pkg, proto and
// log. A part that is not named may import any.
var insideKV = map[string][]string{
	"kv/raftstore/regions": {"kv/regionerr"},
	"kv/raftstore/message": {"kv/regionerr"},
	"kv/raftstore/meta":    {"kv/engine"},
	"kv/raftstore/snap":    {"kv/engine"},
	"kv/raftstore/runner": {
		"kv/engine", "kv/raftlog", "kv/raftstore/message", "kv/raftstore/regions",
	},
	"kv/raftstore/apply": {
		"kv/engine", "kv/raftstore/message", "kv/raftstore/meta", "kv/raftstore/regions",
		"kv/raftstore/runner", "kv/regionerr",
	},
	"kv/regionerr": {},
	"kv/settings":  {"kv/config"},
	"kv/raftlog":   {"kv/vfs"},
	"kv/engine":    {},
	"kv/transport": {"kv/raftstore/snap"},
	"kv/storage":   {"kv/engine", "kv/raftstore/message"},
	// Faces know storages and transactions, never the raftstore.
	"kv/server": {
		"kv/config", "kv/engine", "kv/raftstore/snap", "kv/regionerr", "kv/server/gate",
		"kv/server/rawops", "kv/settings", "kv/storage",
		"kv/transaction/commands", "kv/transaction/latches", "kv/transaction/mvcc", "kv/transport",
	},
	"kv/server/tikv": {
		"kv/config", "kv/engine", "kv/regionerr", "kv/server/gate", "kv/server/rawops",
		"kv/storage",
		"kv/transaction/commands", "kv/transaction/mvcc",
	},
	"kv/server/rawops": {"kv/engine", "kv/regionerr", "kv/storage"},
}

// mayImport tells whether a package may import another one of this project by the directions inside
// kv.
func mayImport(dir, own string) bool {
	allowed, named := insideKV[dir]
	if !named || !under(own, "kv") {
		return true
	}
	return slices.ContainsFunc(allowed, func(a string) bool { return own == a })
}

// TestImportsGoOneWay holds the allowed directions: leaves stay leaves, kv and scheduler meet
// only in scheduler/client, LSM libraries stay inside the engine, raft stays pure.
func TestImportsGoOneWay(t *testing.T) {
	testOnly := []string{
		"tests", "kv/faultfs", "kv/engine/memengine", "kv/engine/enginetest",
		"kv/engine/enginefault", "pkg/rpc/rpctest", "scheduler/sim", "raft/rafttest",
		"scheduler/server/servertest",
	}
	leaves := []string{"pkg/timing", "pkg/trace"} // they know no other package of this module
	for _, s := range sources(t) {
		for _, imp := range imports(s) {
			own, isOwn := strings.CutPrefix(imp, module)
			bad := ""
			switch {
			case s.dir == "raft" && !s.test && isOwn && own != "proto/pkg/eraftpb":
				bad = "raft imports its messages only"
			case s.dir == "raft" && !s.test && !isOwn &&
				(strings.Contains(imp, ".") ||
					slices.Contains([]string{
						"time", "log", "sync", "os", "math/rand", "math/rand/v2",
					}, imp)):
				bad = "raft is pure"
			case (under(s.dir, "proto") || s.dir == "log") && isOwn && !under(own, "proto") &&
				own != "pkg/redact":
				bad = "proto and log are leaves"
			case under(s.dir, "pkg/embed"):
				// A whole cluster; nothing imports it but tests of others.
			case isOwn && under(own, "pkg/embed") && !s.test:
				bad = "servers do not contain a cluster"
			case under(s.dir, "pkg") && isOwn && !under(own, "pkg") && !under(own, "proto") &&
				own != "log" && !s.test:
				bad = "pkg holds leaves that kv and scheduler share"
			case slices.Contains(leaves, s.dir) && isOwn && !s.test:
				bad = "it is a leaf"
			case under(s.dir, "pkg/rpc") && isOwn && !s.test && !under(own, "proto") &&
				!slices.Contains(leaves, own) &&
				(own != "pkg/rpc" || s.dir == "pkg/rpc"):
				bad = "the rooms of pkg/rpc know its core and leaves only, and the core knows neither room"
			case under(s.dir, "kv") && isOwn && under(own, "scheduler") &&
				own != "scheduler/client" && !s.test:
				bad = "kv knows scheduler/client only"
			case under(s.dir, "kv/transaction") && isOwn && !s.test &&
				!under(own, "kv/transaction") &&
				!under(own, "pkg") && !under(own, "proto") && own != "kv/storage" &&
				own != "kv/engine":
				bad = "transactions know storages only"
			case isOwn && !s.test && !mayImport(s.dir, own):
				bad = "not by the directions inside kv"
			case under(s.dir, "scheduler") && isOwn && under(own, "kv") && !s.test:
				bad = "the scheduler does not know kv"
			case (strings.Contains(imp, "pingcap/badger") ||
				strings.Contains(imp, "cockroachdb/pebble")) && !under(s.dir, "kv/engine"):
				bad = "only engine backends import an LSM library"
			case slices.Contains([]string{
				"github.com/pkg/errors", "github.com/pingcap/errors",
				"github.com/golang/protobuf/proto", "math/rand", "io/ioutil",
			}, imp):
				bad = "there is a better one"
			}
			if isOwn && !s.test &&
				!slices.ContainsFunc(testOnly, func(d string) bool { return under(s.dir, d) }) &&
				slices.ContainsFunc(testOnly, func(d string) bool { return under(own, d) }) {
				bad = "servers are not linked with test packages"
			}
			if bad != "" {
				t.Errorf("%s imports %s: %s", s.path, imp, bad)
			}
		}
	}
}

// TestNoExits: only main ends the process, and errors are not panics. raft's newRaft and newLog
// panic on what they cannot use because outside suites call them so; NewRawNode returns the error.
func TestNoExits(t *testing.T) {
	byContract := []string{"raft/log.go", "raft/raft.go"}
	for _, s := range sources(t) {
		if s.test || s.file.Name.Name == "main" || under(s.dir, "cmd") ||
			strings.Contains(s.dir, "/cmd/") || under(s.dir, "kv/engine/enginetest") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			name := ""
			switch f := call.Fun.(type) {
			case *ast.SelectorExpr:
				if x, ok := f.X.(*ast.Ident); ok {
					name = x.Name + "." + f.Sel.Name
				}
			case *ast.Ident:
				name = f.Name
			}
			at := s.fset.Position(call.Pos())
			if name == "os.Exit" || name == "log.Fatal" || name == "log.Fatalf" {
				t.Errorf("%s:%d: %s outside main", s.path, at.Line, name)
			}
			if name == "panic" && len(call.Args) == 1 {
				if id, ok := call.Args[0].(*ast.Ident); ok && id.Name == "err" &&
					!slices.Contains(byContract, s.path) {
					t.Errorf("%s:%d: panic(err): return it", s.path, at.Line)
				}
			}
			return true
		})
	}
}

// TestDirectoriesAreMadeDurably: what runs in a server makes directories and renames files through
// pkg/durable or a vfs.FS only, so that none is forgotten by a power loss.
func TestDirectoriesAreMadeDurably(t *testing.T) {
	for _, s := range sources(t) {
		server := (under(s.dir, "kv") || under(s.dir, "scheduler")) &&
			!under(s.dir, "kv/engine/enginetest") && !under(s.dir, "kv/vfs") &&
			!under(s.dir, "scheduler/server/servertest")
		if s.test || !server {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if ok && x.Name == "os" &&
				slices.Contains([]string{"Mkdir", "MkdirAll", "Rename", "WriteFile", "Create"},
					sel.Sel.Name) &&
				// its files count by their list, after which the directory is synced
				s.path != "kv/raftstore/snap/snap.go" {
				t.Errorf("%s:%d: os.%s is not durable; see pkg/durable", s.path,
					s.fset.Position(n.Pos()).Line, sel.Sel.Name)
			}
			return true
		})
	}
}

// TestEveryPackageSaysWhatItIs: a package comment everywhere.
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if s.test && !strings.HasPrefix(s.dir, "tests") {
			continue
		}
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

// TestSizes: functions of at most 70 lines and files of at most 800, comments not counted; what is
// longer stands in size_allow.txt with its length, and may only shrink.
func TestSizes(t *testing.T) {
	allowed := map[string]int{}
	f, err := os.Open("size_allow.txt")
	require.NoError(t, err)
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var name string
		var n int
		if _, err := fmt.Sscan(sc.Text(), &name, &n); err == nil {
			allowed[name] = n
		}
	}
	check := func(name string, lines, limit int) {
		if lines <= limit {
			return
		}
		if lines > allowed[name] {
			t.Errorf("%s has %d lines of code, the limit is %d (allowed: %d)", name, lines, limit,
				allowed[name])
		}
	}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		comment := map[int]bool{}
		for _, g := range s.file.Comments {
			for _, c := range g.List {
				for l := s.fset.Position(c.Pos()).Line; l <= s.fset.Position(c.End()).Line; l++ {
					if s.fset.Position(c.Pos()).Column <= 20 || l > s.fset.Position(c.Pos()).Line {
						comment[l] = true
					}
				}
			}
		}
		count := func(from, to token.Pos) int {
			n := 0
			for l := s.fset.Position(from).Line; l <= s.fset.Position(to).Line; l++ {
				if !comment[l] {
					n++
				}
			}
			return n
		}
		check(s.path, count(s.file.FileStart, s.file.FileEnd), 800)
		for _, d := range s.file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
				check(s.path+":"+fn.Name.Name, count(fn.Pos(), fn.End()), 70)
			}
		}
	}
}
