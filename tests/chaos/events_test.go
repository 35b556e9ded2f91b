package chaos

import (
	"bytes"
	"os"
	"regexp"
)

var splitLine = regexp.MustCompile(`split region.*"new-region-id": (\d+)`)

var mergeLine = regexp.MustCompile(`merged region.*"source-region-id": (\d+)`)

// events counts what the stores say in their logs, which outlive them.
type events struct{ Splits, Merges, Leaders, Snapshots, Destroyed int }

func (h *history) happened() events {
	var e events
	regions, merged := map[string]bool{}, map[string]bool{}
	for _, p := range h.c.Stores {
		data, err := os.ReadFile(p.LogFile)
		if err != nil {
			continue // not started yet
		}
		for _, m := range splitLine.FindAllSubmatch(data, -1) {
			regions[string(m[1])] = true // every replica says so
		}
		for _, m := range mergeLine.FindAllSubmatch(data, -1) {
			merged[string(m[1])] = true
		}
		e.Leaders += bytes.Count(data, []byte("became leader"))
		e.Snapshots += bytes.Count(data, []byte("installed raft snapshot"))
		e.Destroyed += bytes.Count(data, []byte("destroyed peer"))
	}
	e.Splits, e.Merges = len(regions), len(merged)
	return e
}
