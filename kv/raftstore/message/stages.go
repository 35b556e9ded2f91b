package message

import "time"

// Stages are the moments at which an entry passed its stages on the store of the leader that
// proposed it, as times since the store was made. One that it has not come to is 0.
//
// An entry is appended once the leader's own raft log has it on disk, and committed once a
// majority's have; which of the two is first is open. Both are needed before it is applied.
type Stages struct {
	// Came is when the first of the entry's commands came to the store, Proposed when raft took the
	// entry.
	Came, Proposed time.Duration
	// Appended is when the leader's log was synced, Committed when the entry was given to be
	// applied.
	Appended, Committed time.Duration
	// Begun is when the apply worker began with the batch that has the entry, Applied when the
	// engine had that.
	Begun, Applied time.Duration
}

// Appended notes when the entries from an index on were in the log of the peer that proposed them,
// of proposals in order.
func Appended(props []Proposal, from uint64, at time.Duration) {
	for i := len(props) - 1; i >= 0 && props[i].index >= from; i-- {
		props[i].Stages.Appended = at
	}
}

// with is an answer that says as well when the entry passed its stages.
func (a *Answer) with(st Stages) *Answer {
	var out Answer
	if a != nil {
		out = *a
	}
	out.Stages = &st
	return &out
}
