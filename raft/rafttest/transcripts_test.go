package rafttest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/raft/rafttest"
)

func TestTranscripts(t *testing.T) {
	paths, err := filepath.Glob("../testdata/*.txt")
	if err != nil || len(paths) < 30 {
		t.Fatalf("%d transcripts, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			env := rafttest.New()
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				out := env.Handle(d)
				if strings.Contains(out, "BROKEN") {
					t.Errorf("%s: a Ready breaks its contract: %s", d.Pos, out)
				}
				return out
			})
		})
	}
}

var (
	trapRow  = regexp.MustCompile(`(?m)^\| ([A-FQ]-?[0-9]+)[^|]* \|[^|]*\|[^|]*\|([^|]*)\|$`)
	inCode   = regexp.MustCompile("`([A-Za-z0-9_]+)`")
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
)

// TestTrapsAreShown: the table of the traps in docs/traps.md names transcripts and tests that
// exist, for each trap that is raft's.
func TestTrapsAreShown(t *testing.T) {
	exists := map[string]bool{}
	for _, pattern := range []string{"../*_test.go", "*/*_test.go", "../../tests/*_test.go"} {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
				exists[m[1]] = true
			}
		}
	}
	transcripts, err := filepath.Glob("../testdata/*.txt")
	require.NoError(t, err)
	for _, path := range transcripts {
		exists[strings.TrimSuffix(filepath.Base(path), ".txt")] = true
	}
	doc, err := os.ReadFile("../../docs/traps.md")
	require.NoError(t, err)
	rows := map[string]bool{}
	for _, row := range trapRow.FindAllStringSubmatch(string(doc), -1) {
		rows[row[1]] = true
		shown := 0
		for _, name := range inCode.FindAllStringSubmatch(row[2], -1) {
			require.True(t, exists[name[1]], "%s: no %s", row[1], name[1])
			shown++
		}
		require.True(t, shown > 0 || strings.Contains(row[2], "I"), "nothing shows %s", row[1])
	}
	stores := map[string]bool{"C10": true, "C11": true, "C18": true, "D1": true, "D9": true,
		"D10": true,
		"D11": true, "D12": true, "D13": true, "E7": true, "E8": true, "E9": true}
	for prefix, last := range map[string]int{"A": 12, "B-": 14, "C": 18, "D": 14, "E": 10} {
		for i := 1; i <= last; i++ {
			trap := fmt.Sprintf("%s%d", prefix, i)
			require.NotEqual(t, stores[trap], rows[trap], "%s is in the table, or the store's",
				trap)
		}
	}
}
