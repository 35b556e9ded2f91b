package rafttest_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

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
