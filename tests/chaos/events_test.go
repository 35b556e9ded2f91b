package chaos

import (
	"bytes"
	"os"
	"regexp"
)

var splitLine = regexp.MustCompile(`split region.*"new-region-id": (\d+)`)

// events counts what the stores say in their logs, which outlive them.
type events struct{ Splits, Leaders, Snapshots, Destroyed int }

func (h *history) happened() events {
	var e events
	regions := map[string]bool{}
	for _, p := range h.c.Stores {
		data, err := os.ReadFile(p.LogFile)
		if err != nil {
			continue // not started yet
		}
		for _, m := range splitLine.FindAllSubmatch(data, -1) {
			regions[string(m[1])] = true // every replica says so
		}
		e.Leaders += bytes.Count(data, []byte("became leader"))
		e.Snapshots += bytes.Count(data, []byte("installed raft snapshot"))
		e.Destroyed += bytes.Count(data, []byte("destroyed peer"))
	}
	e.Splits = len(regions)
	return e
}
