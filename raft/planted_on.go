//go:build planted

package raft

// planted is the bug that is switched on, "" for none.
var planted string

// SetPlanted switches one planted bug on. It exists only under the build tag "planted".
func SetPlanted(id string) { planted = id }

func plantB2() bool  { return planted == "B2" }  // commit an entry of an older term by counting
func plantB3() bool  { return planted == "B3" }  // heartbeat commit not bounded by match
func plantB7() bool  { return planted == "B7" }  // read index before a commit of the own term
func plantB8() bool  { return planted == "B8" }  // two conf changes in flight
func plantB9() bool  { return planted == "B9" }  // campaign with an unapplied conf change
func plantB18() bool { return planted == "B18" } // truncation in place
