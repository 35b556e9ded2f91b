package raft

import (
	"fmt"
	"slices"
)

// ProgressState says how a leader sends to a follower.
type ProgressState uint64

const (
	// ProgressProbe: where the follower's log meets ours is not known; one append a round trip.
	ProgressProbe ProgressState = iota
	// ProgressReplicate: it is known; appends are pipelined, Next runs ahead of the answers.
	ProgressReplicate
	// ProgressSnapshot: a snapshot is on its way; no appends until it is there or given up.
	ProgressSnapshot
)

func (s ProgressState) String() string {
	switch s {
	case ProgressProbe:
		return "probe"
	case ProgressReplicate:
		return "replicate"
	case ProgressSnapshot:
		return "snapshot"
	}
	return fmt.Sprintf("ProgressState(%d)", uint64(s))
}

// Progress is what a leader knows of one member. Owner: the Raft that holds it; copies given out by
// RawNode are only to be read. The zero value is a voter that nothing is known of.
//
// Invariant: Match < Next once the node leads; PendingSnapshot != 0 only in ProgressSnapshot.
type Progress struct {
	// Match is the last index known to be on the follower's disk; Next is what is sent next.
	Match, Next uint64
	State       ProgressState
	// PendingSnapshot is the index of the snapshot on its way.
	PendingSnapshot uint64
	// RecentActive: a message came in since the last check-quorum.
	RecentActive bool
	// IsLearner: gets the log, has no vote.
	IsLearner bool

	// paused: a probe is out and was not answered; a heartbeat response allows another one.
	paused bool
	// answered: the node has spoken since it became a member or we became the leader. A snapshot is
	// costly and a node that does not exist yet cannot take it, so none is sent before.
	answered bool
	// toldCommit is the last commit index sent to the node in an append.
	toldCommit uint64
	// ackedRound is the last heartbeat round of this term that the node answered.
	ackedRound uint64
	// snapshotTicks counts the ticks in ProgressSnapshot.
	snapshotTicks int
	inflights     inflights
}

func (pr *Progress) String() string {
	s := fmt.Sprintf("%s match=%d next=%d", pr.State, pr.Match, pr.Next)
	if pr.IsLearner {
		s += " learner"
	}
	if pr.paused {
		s += " paused"
	}
	if pr.PendingSnapshot != 0 {
		s += fmt.Sprintf(" pending-snapshot=%d", pr.PendingSnapshot)
	}
	if n := pr.inflights.n; n > 0 {
		s += fmt.Sprintf(" inflight=%d", n)
	}
	return s
}

// Inflight returns how many appends are on their way, unanswered, and their bytes.
func (pr *Progress) Inflight() (msgs int, bytes uint64) {
	return pr.inflights.n, pr.inflights.bytes
}

func (pr *Progress) enter(state ProgressState) {
	pr.State = state
	pr.paused = false
	pr.PendingSnapshot = 0
	pr.snapshotTicks = 0
	pr.toldCommit = 0
	pr.inflights.reset()
}

// becomeProbe looks for the meeting point again. After a snapshot that may have arrived, probing
// starts behind it.
func (pr *Progress) becomeProbe() {
	next := pr.Match + 1
	if pr.State == ProgressSnapshot && pr.PendingSnapshot+1 > next {
		next = pr.PendingSnapshot + 1
	}
	pr.enter(ProgressProbe)
	pr.Next = next
}

func (pr *Progress) becomeReplicate() {
	told := pr.toldCommit
	pr.enter(ProgressReplicate)
	pr.toldCommit = told
	pr.Next = pr.Match + 1
}

func (pr *Progress) becomeSnapshot(index uint64) {
	pr.enter(ProgressSnapshot)
	pr.PendingSnapshot = index
}

// maybeUpdate takes an acknowledgement up to index and says whether it was news.
func (pr *Progress) maybeUpdate(index uint64) bool {
	news := index > pr.Match
	if news {
		pr.Match = index
		pr.paused = false
	}
	pr.Next = max(pr.Next, index+1)
	return news
}

// maybeDecrTo takes the rejection of an append at index rejected; hint is where the logs may meet.
// It says whether the rejection was news: late ones, of appends sent before the last move, must not
// move Next again (trap B-9).
//
// A hint below Match was given before Match was acknowledged, so it is late. Without that check,
// each of a window full of appends that were overtaken by one another starts the whole window over.
func (pr *Progress) maybeDecrTo(rejected, hint uint64) bool {
	if hint < pr.Match {
		return false
	}
	switch pr.State {
	case ProgressReplicate:
		if rejected <= pr.Match {
			return false
		}
		pr.Next = pr.Match + 1
		return true
	case ProgressProbe:
		if pr.Next != rejected+1 {
			return false
		}
		pr.Next = max(min(rejected, hint+1), pr.Match+1)
		pr.paused = false
		return true
	case ProgressSnapshot:
		// A log that needs a snapshot rejects everything; that is no news.
	}
	return false
}

// isPaused says whether entries may not be sent now.
func (pr *Progress) isPaused(maxMsgs int, maxBytes uint64) bool {
	switch pr.State {
	case ProgressProbe:
		return pr.paused
	case ProgressReplicate:
		return pr.inflights.full(maxMsgs, maxBytes)
	case ProgressSnapshot:
		return true
	}
	return true
}

// sent notes that entries up to last, of bytes bytes, went out.
func (pr *Progress) sent(last, bytes uint64, hasEntries bool) {
	switch pr.State {
	case ProgressReplicate:
		if hasEntries {
			pr.Next = last + 1
			pr.inflights.add(last, bytes)
		}
	case ProgressProbe:
		pr.paused = true
	case ProgressSnapshot:
	}
}

// inflights is the window of appends sent and not answered, oldest first, by last index. A FIFO in
// a slice whose front moves; the zero value is empty. The limits are the caller's, so that a
// Progress made by hand works.
//
// Invariant: n == len(buf) - head, but for copies, which leave buf out.
type inflights struct {
	buf   []inflight
	head  int
	n     int
	bytes uint64
}

type inflight struct{ index, bytes uint64 }

func (in *inflights) full(maxMsgs int, maxBytes uint64) bool {
	return maxMsgs > 0 && in.n >= maxMsgs || maxBytes > 0 && in.bytes >= maxBytes
}

func (in *inflights) reset() { in.buf, in.head, in.n, in.bytes = in.buf[:0], 0, 0, 0 }

func (in *inflights) add(index, bytes uint64) {
	if in.head > 0 && len(in.buf) == cap(in.buf) {
		n := copy(in.buf, in.buf[in.head:])
		in.buf, in.head = in.buf[:n], 0
	}
	in.buf = append(in.buf, inflight{index, bytes})
	in.bytes += bytes
	in.n++
}

// freeTo drops the appends whose entries are all acknowledged.
func (in *inflights) freeTo(index uint64) {
	for in.head < len(in.buf) && in.buf[in.head].index <= index {
		in.bytes -= in.buf[in.head].bytes
		in.head++
		in.n--
	}
	if in.head == len(in.buf) {
		in.reset()
	}
}

// freeFirst makes room for one append.
func (in *inflights) freeFirst() {
	if in.head < len(in.buf) {
		in.freeTo(in.buf[in.head].index)
	}
}

// quorum is the size of a majority of n voters.
func quorum(n int) int { return n/2 + 1 }

// quorumValue returns the largest value that a majority of the given ones reaches: the commit index
// from match indexes, the confirmed round from acknowledged ones. It sorts values in place.
func quorumValue(values []uint64) uint64 {
	if len(values) == 0 {
		// No voter, no majority: nothing may be committed by an empty group.
		return 0
	}
	slices.Sort(values)
	return values[len(values)-quorum(len(values))]
}
