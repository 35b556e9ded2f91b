// Command plantraft writes an overlay for the go command that builds package raft with known bugs
// in it, to be switched on one at a time by sim.Plant. The package's own sources know nothing of
// them. It prints the path of the overlay.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// edit puts a bug into a file: old stands there exactly once.
type edit struct{ file, old, new string }

var edits = []edit{
	{ // B2: an entry of an older term is committed by counting
		"replication.go", "	if !r.RaftLog.matchTerm(index, r.Term) {\n",
		"	if !r.RaftLog.matchTerm(index, r.Term) && planted != \"B2\" {\n",
	},
	{ // B3: the commit index in a heartbeat is not bounded by the match
		"replication.go",
		"	if match := r.Prs[to].Match; match > r.RaftLog.committed && to != r.id {\n",
		"	if planted == \"B3\" {\n		m.Commit = r.RaftLog.committed\n	}\n	if match := r.Prs[to].Match; match > r.RaftLog.committed && to != r.id {\n",
	},
	{ // B7: reads are answered before a commit of the own term
		"read.go", "	if !r.committedOwnTerm() {\n		r.reads.waiting",
		"	if !r.committedOwnTerm() && planted != \"B7\" {\n		r.reads.waiting",
	},
	{ // B8: two conf changes in flight
		"replication.go", "r.PendingConfIndex > r.RaftLog.applied {\n",
		"r.PendingConfIndex > r.RaftLog.applied && planted != \"B8\" {\n",
	},
	{ // B9: a campaign with an unapplied conf change
		"election.go", "	if r.RaftLog.hasUnappliedConfChange() {\n",
		"	if planted != \"B9\" && r.RaftLog.hasUnappliedConfChange() {\n",
	},
	{ // B18: the log is truncated in place
		"log.go",
		"		keep = append(make([]eraftpb.Entry, 0, len(keep)+4), keep...)\n		l.dead = 0\n",
		"		if planted != \"B18\" {\n			keep = append(make([]eraftpb.Entry, 0, len(keep)+4), keep...)\n			l.dead = 0\n		}\n",
	},
}

// hooks is added to the package: the switch.
const hooks = `package raft

// planted is the bug that is switched on, "" for none.
var planted string

// SetPlanted switches one planted bug on.
func SetPlanted(id string) { planted = id }
`

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: plantraft DIR-OF-RAFT DIR-FOR-OVERLAY")
		os.Exit(2)
	}
	path, err := overlay(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "plantraft:", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

// overlay writes the changed files and the overlay that puts them in place, and returns its path.
func overlay(raft, dir string) (string, error) {
	raft, err := filepath.Abs(raft)
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	texts := map[string]string{"planted_hooks.go": hooks}
	for _, e := range edits {
		text, known := texts[e.file]
		if !known {
			data, err := os.ReadFile(filepath.Join(raft, e.file))
			if err != nil {
				return "", err
			}
			text = string(data)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return "", fmt.Errorf("%s: the place of a bug is there %d times: %q", e.file, n, e.old)
		}
		texts[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	replace := map[string]string{}
	for name, text := range texts {
		to := filepath.Join(dir, name+".planted")
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(raft, name)] = to
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, data, 0o600)
}
