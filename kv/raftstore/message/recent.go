package message

import (
	"slices"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// maxRecent bounds the identities and entries that are remembered.
const maxRecent = 1024

// RecentWrites holds the identities of all writes in (from, to] of a region's log. Where entries
// are large, the limit on the size of the log leaves few of them: after a change of leadership most
// retries would look for a log that is gone, and to read the rest takes a raft worker as long as an
// election timeout. The identities themselves are small.
//
// Invariant: each entry with an identity that the log had, or has, in (from, to] is in entries;
// what a new leader has replaced is not. It is lost with the process, as a cache of the log is.
type RecentWrites struct {
	from, to uint64
	entries  []recentEntry // by index
	ids      int           // in all entries
	// Large is when the last large entry came; its owner keeps it.
	Large time.Time
}

// recentEntry is what has to be known of an entry to tell what became of its writes.
type recentEntry struct {
	index, version uint64
	// decided: a compare-and-swap, which is decided when it is applied.
	decided bool
	ids     []WriteID
}

// Covers tells whether all of (from, to] is known. Nil knows nothing.
func (r *RecentWrites) Covers(from, to uint64) bool {
	return r != nil && r.from <= from && to <= r.to
}

// Add notes an entry and forgets those that it replaces. False: the memory is of no use any more.
func (r *RecentWrites) Add(e *eraftpb.Entry) bool {
	if e.Index <= r.from || e.Index > r.to+1 {
		return false
	}
	for n := len(r.entries); n > 0 && r.entries[n-1].index >= e.Index; n-- {
		r.ids -= len(r.entries[n-1].ids)
		r.entries = r.entries[:n-1]
	}
	r.to = e.Index
	if e.EntryType != eraftpb.EntryType_EntryNormal || len(e.Data) == 0 {
		return true
	}
	cmd, err := DecodeEntry(e.Data)
	if err != nil {
		return false
	}
	noted := recentEntry{
		index: e.Index, version: cmd.Header.GetRegionEpoch().GetVersion(), decided: cmd.IsSwap(),
	}
	if cmd.Admin == nil {
		cmd.VisitIDs(func(id WriteID) { noted.ids = append(noted.ids, id) })
	}
	if len(noted.ids) == 0 {
		return true
	}
	r.entries, r.ids = append(r.entries, noted), r.ids+len(noted.ids)
	if r.ids > maxRecent {
		r.forget()
	}
	return true
}

// forget drops the older half.
func (r *RecentWrites) forget() {
	n := 0
	for n < len(r.entries)-1 && r.ids > maxRecent/2 {
		r.ids -= len(r.entries[n].ids)
		n++
	}
	if n > 0 {
		r.from = r.entries[n-1].index
		r.entries = slices.Delete(r.entries, 0, n)
	}
}

// NewRecentWrites knows of the entries behind an index, of which none is there yet.
func NewRecentWrites(index uint64) *RecentWrites { return &RecentWrites{from: index, to: index} }

// Clone is a copy that does not change with r. Nil of nil.
func (r *RecentWrites) Clone() *RecentWrites {
	if r == nil {
		return nil
	}
	c := *r
	c.entries = slices.Clone(r.entries)
	return &c
}

// Visit calls f with each entry in (from, to] that has the write; decided says that it is a
// compare-and-swap. The caller ensures that r covers (from, to].
func (r *RecentWrites) Visit(
	id WriteID, from, to uint64, f func(index, version uint64, decided bool),
) {
	for i := range r.entries {
		if e := &r.entries[i]; e.index > from && e.index <= to && slices.Contains(e.ids, id) {
			f(e.index, e.version, e.decided)
		}
	}
}
