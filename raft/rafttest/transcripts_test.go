package rafttest_test

import (
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/tinykv/tinykv/raft/rafttest"
)

func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "../testdata", func(t *testing.T, path string) {
		env := rafttest.New()
		datadriven.RunTest(t, path, func(_ *testing.T, d *datadriven.TestData) string {
			return env.Handle(d)
		})
	})
}
