package arch

import (
	"flag"
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// flagWrap breaks the lines of documents that are too long.
var flagWrap = flag.Bool("wrap", false,
	"break the lines of documents that are longer than 120 columns")

// maxDocumentColumns is the width of a document's line. Tables, lines with links and blocks of code
// are not counted.
const maxDocumentColumns = 120

// TestDocumentLines: lines of documents fit into a window. go test ./tests/arch -run DocumentLines
// -args -wrap breaks those that do not. docs_allow.txt lists documents with how many lines exceed
// the width; it may only shrink.
func TestDocumentLines(t *testing.T) {
	e := readExceptions(t, "docs_allow.txt")
	for _, path := range documentPaths(t) {
		text := readText(t, path)
		if wrapped := wrapDocument(text); *flagWrap && wrapped != text {
			require.NoError(t, os.WriteFile(filepath.Join("../..", path), []byte(wrapped), 0o600))
			text = wrapped
		}
		if n := longLines(text); n > 0 {
			e.actual[path] = n
		}
	}
	e.check(t, "lines of more than 120 columns, see -wrap")
}

// maxReadmeLines is what a reader takes in at once.
const maxReadmeLines = 150

// TestReadmeIsShort: what is longer belongs into docs.
func TestReadmeIsShort(t *testing.T) {
	require.LessOrEqual(t, strings.Count(readText(t, "README.md"), "\n"), maxReadmeLines)
}

// vague matches words by which a text says that somebody learns something instead of what the code
// does. A bracket in each keeps this line from matching itself.
var vague = regexp.MustCompile(
	`(?i)\b((is|are|was|were|be|been|being) t[o]ld|in v[a]in|ow[e]s|who[e]ver|he[a]rs)\b`)

// TestPlainWords looks at documents, and at comments and messages of code. words_allow.txt lists
// files with how many lines have such words; it may only shrink.
func TestPlainWords(t *testing.T) {
	e := readExceptions(t, "words_allow.txt")
	paths := documentPaths(t)
	for _, s := range sources(t) {
		paths = append(paths, s.path)
	}
	for _, path := range paths {
		if n := vagueLines(readText(t, path)); n > 0 {
			e.actual[path] = n
		}
	}
	e.check(t, "lines with one of the words of TestPlainWords")
}

func vagueLines(text string) (n int) {
	for line := range strings.Lines(text) {
		if vague.MatchString(line) {
			n++
		}
	}
	return n
}

// maxMeanWords is how long the sentences of a document may be on average.
const maxMeanWords = 20

// TestSentencesAreShort: one idea a sentence.
func TestSentencesAreShort(t *testing.T) {
	for _, path := range documentPaths(t) {
		if mean := meanWords(readText(t, path)); mean > maxMeanWords {
			t.Errorf("%s: sentences have %.1f words on average, allowed: %d", path, mean,
				maxMeanWords)
		}
	}
}

var (
	fileInText = regexp.MustCompile("`((?:[a-z0-9_.-]+/)*[a-z0-9_-]+\\.go)`")
	nameInText = regexp.MustCompile("`(?:[A-Za-z]+\\.)?([A-Za-z]+)`")
	partOfFile = regexp.MustCompile(
		"`((?:[a-z0-9_-]+/)+[a-z0-9_-]+\\.go)`\\s\\(((?:`[A-Za-z.]+`,?\\s?)+)")
)

// TestPartsOfFilesExist: names in brackets behind the path of a file are in it.
func TestPartsOfFilesExist(t *testing.T) {
	parts := 0
	for _, path := range documentPaths(t) {
		for _, m := range partOfFile.FindAllStringSubmatch(readText(t, path), -1) {
			data, err := os.ReadFile(filepath.Join("../..", m[1]))
			if err != nil {
				continue // a path that begins elsewhere
			}
			for _, name := range nameInText.FindAllStringSubmatch(m[2], -1) {
				parts++
				if !strings.Contains(string(data), name[1]) {
					t.Errorf("%s: %s has no %s", path, m[1], name[1])
				}
			}
		}
	}
	require.Greater(t, parts, 5)
}

// TestFilesOfDocumentsExist: a file of code that a document names is there, under that path or
// behind some directory.
func TestFilesOfDocumentsExist(t *testing.T) {
	var all []string
	for _, s := range sources(t) {
		all = append(all, "/"+s.path)
	}
	named := 0
	for _, path := range documentPaths(t) {
		for _, m := range fileInText.FindAllStringSubmatch(readText(t, path), -1) {
			named++
			if !slices.ContainsFunc(all, func(p string) bool {
				return strings.HasSuffix(p, "/"+m[1])
			}) {
				t.Errorf("%s: there is no %s", path, m[1])
			}
		}
	}
	require.Greater(t, named, 50)
}

// TestWalksNameWhatExists: a row of a walk has a step, a file and functions of that file.
func TestWalksNameWhatExists(t *testing.T) {
	declared := map[string]map[string]bool{}
	for _, s := range sources(t) {
		declared[s.path] = functions(s.file)
	}
	rows := 0
	for _, path := range documentPaths(t) {
		n, faults := checkWalks(readText(t, path), declared)
		rows += n
		for _, f := range faults {
			t.Errorf("%s: %s", path, f)
		}
	}
	require.Greater(t, rows, 40)
}

// TestTestsOfDocumentsExist: a test that a document names is one of some package.
func TestTestsOfDocumentsExist(t *testing.T) {
	exists := testNames(t, "../..")
	for _, path := range documentPaths(t) {
		for _, m := range namedTest.FindAllStringSubmatch(readText(t, path), -1) {
			if !exists[m[1]] {
				t.Errorf("%s: there is no %s", path, m[1])
			}
		}
	}
}

var (
	makeInText = regexp.MustCompile("(?m)(?:^(?: {4})?|`)make ((?:[a-z0-9-]+ ?)+)")
	makeTarget = regexp.MustCompile(`(?m)^([a-z0-9-]+(?: [a-z0-9-]+)*):`)
)

// TestTargetsOfDocumentsExist: what a document has make do is a target of the Makefile.
func TestTargetsOfDocumentsExist(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range makeTarget.FindAllStringSubmatch(readText(t, "Makefile"), -1) {
		for name := range strings.FieldsSeq(m[1]) {
			targets[name] = true
		}
	}
	named := 0
	for _, path := range documentPaths(t) {
		for _, m := range makeInText.FindAllStringSubmatch(readText(t, path), -1) {
			for name := range strings.FieldsSeq(m[1]) {
				named++
				if !targets[name] {
					t.Errorf("%s: make has no target %s", path, name)
				}
			}
		}
	}
	require.Greater(t, named, 50)
}

// walkHead is the first line of the table of a walk.
const walkHead = "| step | file | functions |"

// checkWalks returns how many rows of walks a text has, and what they name that is not there.
func checkWalks(text string, declared map[string]map[string]bool) (rows int, faults []string) {
	inWalk := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		inWalk = line == walkHead || inWalk && strings.HasPrefix(line, "|")
		if !inWalk || line == walkHead || strings.HasPrefix(line, "|---") {
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			faults = append(faults, "a row of a walk has not three cells: "+line)
			continue
		}
		file := strings.Trim(strings.TrimSpace(cells[2]), "`")
		names := nameInText.FindAllStringSubmatch(cells[3], -1)
		if declared[file] == nil {
			faults = append(faults, "there is no "+file)
			continue
		}
		if len(names) == 0 {
			faults = append(faults, "a walk names no function of "+file)
		}
		rows++
		for _, n := range names {
			if !declared[file][n[1]] {
				faults = append(faults, file+" has no function "+n[1])
			}
		}
	}
	return rows, faults
}

// functions are the names of a file's functions and methods.
func functions(f *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			names[fn.Name.Name] = true
		}
	}
	return names
}

var (
	picture = regexp.MustCompile("(?ms)^```mermaid\n(.*?)^```$")
	arrow   = regexp.MustCompile(`^(\w+)(?:-->>|->>|--x|-x)(\w+): .`)
	blockOf = regexp.MustCompile(`^(?:subgraph|alt|loop|opt|par) `)
	actor   = regexp.MustCompile(`^participant (\w+) as .`)
)

// TestPictures looks at the outline of pictures: their kind, blocks that end, and in sequences the
// actors.
func TestPictures(t *testing.T) {
	pictures := 0
	for _, path := range documentPaths(t) {
		for _, m := range picture.FindAllStringSubmatch(readText(t, path), -1) {
			pictures++
			if fault := pictureFault(m[1]); fault != "" {
				t.Errorf("%s: picture: %s", path, fault)
			}
		}
	}
	require.Greater(t, pictures, 15)
}

// pictureFault says what is wrong with a Mermaid picture; "" if nothing is seen.
func pictureFault(text string) string {
	kind, rest, _ := strings.Cut(text, "\n")
	kind, _, _ = strings.Cut(kind, " ")
	if !slices.Contains([]string{"flowchart", "sequenceDiagram", "stateDiagram-v2"}, kind) {
		return "unknown kind " + kind
	}
	open, actors := 0, map[string]bool{}
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		switch {
		case blockOf.MatchString(line):
			open++
		case line == "end":
			open--
		case kind != "sequenceDiagram" || strings.HasPrefix(line, "else "):
		case actor.MatchString(line):
			actors[actor.FindStringSubmatch(line)[1]] = true
		default:
			m := arrow.FindStringSubmatch(line)
			if m == nil || !actors[m[1]] || !actors[m[2]] || strings.ContainsAny(line, ";#") {
				return "not a message between its participants: " + line
			}
		}
	}
	if open != 0 {
		return "a block does not end"
	}
	return ""
}

var (
	relativeLink = regexp.MustCompile(`\]\(([^)\s:]+)\)`)
	heading      = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchor  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinksOfDocumentsResolve: files and headings that documents point to are there.
func TestLinksOfDocumentsResolve(t *testing.T) {
	links := 0
	for _, path := range documentPaths(t) {
		for _, m := range relativeLink.FindAllStringSubmatch(readText(t, path), -1) {
			links++
			if fault := deadLink(t, path, m[1]); fault != "" {
				t.Errorf("%s: %s", path, fault)
			}
		}
	}
	require.Greater(t, links, 100)
}

// deadLink says what a link of a document misses; "" if nothing.
func deadLink(t *testing.T, from, link string) string {
	t.Helper()
	file, anchor, _ := strings.Cut(link, "#")
	target := from
	if file != "" {
		target = filepath.ToSlash(filepath.Join(filepath.Dir(from), file))
	}
	if _, err := os.Stat(filepath.Join("../..", target)); err != nil {
		return "there is no " + target
	}
	if anchor == "" || slices.Contains(anchors(readText(t, target)), anchor) {
		return ""
	}
	return target + " has no heading for #" + anchor
}

// anchors are the names under which a forge reaches a document's headings.
func anchors(text string) (out []string) {
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		out = append(out,
			strings.ReplaceAll(
				notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), ""), " ",
				"-"))
	}
	return out
}

// TestDocumentChecksJudge: each of the checks above finds a planted fault.
func TestDocumentChecksJudge(t *testing.T) {
	long := strings.Repeat("word ", 30) + "end\n"
	require.Equal(t, 1, longLines("# T\n\n"+long))
	require.Zero(t, longLines("```\n"+long+"```\n| "+long+"\n[a](b) "+long),
		"code, tables and links")
	require.Equal(t, 3,
		vagueLines("a peer is "+"told\nWho"+"ever sends\n// he"+"ars, ow"+"es\nhe"+"arsLeader\n"))
	require.InDelta(t, 4,
		meanWords(
			"One two three four. Five six\nseven eight.\n\n| a b c d e f g |\n\n- nine ten eleven twelve\n"), 0.01)
	declared := map[string]map[string]bool{"kv/a.go": {"run": true}}
	rows, faults := checkWalks("| step | a | b |\n|---|---|---|\n| it | `kv/c.go` | |\n\n"+walkHead+
		"\n|---|---|---|\n"+
		"| it runs | `kv/a.go` | `run` |\n| it | `kv/a.go` | `worker.stop` |\n| it | `kv/b.go` | `run` |\n", declared)
	require.Equal(t, 2, rows)
	require.Equal(t, []string{"kv/a.go has no function stop", "there is no kv/b.go"}, faults)
	require.Equal(t, "there is no docs/nothing.md", deadLink(t, "docs/raft.md", "nothing.md"))
	require.Equal(t, "docs/raft.md has no heading for #nothing",
		deadLink(t, "README.md", "docs/raft.md#nothing"))
	require.Empty(t, deadLink(t, "docs/raft.md", "#invariants"))
	require.Empty(t,
		pictureFault("sequenceDiagram\n  participant A as a\n  loop x\n  A->>A: b\n  end\n"))
	for _, wrong := range []string{
		"pie\n", "flowchart LR\nsubgraph x\n", "sequenceDiagram\nA->>B: c\n",
		"sequenceDiagram\nparticipant A as a\nA->>A: b; c\n",
	} {
		require.NotEmpty(t, pictureFault(wrong), wrong)
	}
}

// documentPaths are the paths of all documents.
func documentPaths(t *testing.T) (out []string) {
	t.Helper()
	for _, path := range texts(t) {
		if strings.HasSuffix(path, ".md") {
			out = append(out, path)
		}
	}
	require.NotEmpty(t, out)
	return out
}

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", path))
	require.NoError(t, err)
	return string(data)
}
