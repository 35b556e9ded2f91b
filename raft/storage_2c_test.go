package raft

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

var errBroken = errors.New("broken disk")

// moody is a storage whose calls fail when the test asks for it: fails has an error by the name of
// a call, and short makes Entries return less than was asked for.
type moody struct {
	*MemoryStorage
	fails map[string]error
	short bool
}

func mkMoody(ents []eraftpb.Entry) *moody {
	return &moody{MemoryStorage: storageWith(ents), fails: map[string]error{}}
}

func (s *moody) InitialState() (eraftpb.HardState, eraftpb.ConfState, error) {
	hs, cs, err := s.MemoryStorage.InitialState()
	return hs, cs, errors.Join(err, s.fails["InitialState"])
}

func (s *moody) FirstIndex() (uint64, error) {
	i, err := s.MemoryStorage.FirstIndex()
	return i, errors.Join(err, s.fails["FirstIndex"])
}

func (s *moody) LastIndex() (uint64, error) {
	i, err := s.MemoryStorage.LastIndex()
	return i, errors.Join(err, s.fails["LastIndex"])
}

func (s *moody) Term(i uint64) (uint64, error) {
	if err := s.fails["Term"]; err != nil {
		return 0, err
	}
	return s.MemoryStorage.Term(i)
}

func (s *moody) Entries(lo, hi uint64) ([]eraftpb.Entry, error) {
	if err := s.fails["Entries"]; err != nil {
		return nil, err
	}
	ents, err := s.MemoryStorage.Entries(lo, hi)
	if s.short && len(ents) > 0 {
		ents = ents[1:]
	}
	return ents, err
}

// limited is a storage that can stop reading after some bytes; asked counts how often it had to.
type limited struct {
	*moody
	asked int
}

func (s *limited) EntriesLimited(lo, hi, maxBytes uint64) ([]eraftpb.Entry, error) {
	s.asked++
	ents, err := s.Entries(lo, hi)
	return limitBytes(ents, maxBytes), err
}

// A node does not start on a storage that it cannot read: without its log it must not take part.
func TestNoStartOnABrokenStorage2C(t *testing.T) {
	for _, call := range []string{"InitialState", "FirstIndex", "LastIndex", "Term", "Entries"} {
		for _, opts := range [][]option{nil, {production}} {
			if call == "Entries" && opts != nil {
				continue // nothing is read in advance
			}
			st := mkMoody(terms(1, 1, 2))
			st.fails[call] = errBroken
			_, err := NewRawNode(courseConfig(1, []uint64{1, 2}, st, opts...))
			if !errors.Is(err, errBroken) {
				t.Errorf("%s: %v", call, err)
			}
			if call != "InitialState" && opts == nil {
				mustPanic(t, call, errBroken.Error(), func() { newLog(st) })
			}
		}
	}
	mustPanic(t, "newRaft", "no config", func() { newRaft(nil) })
}

func mustPanic(t *testing.T, what, text string, f func()) {
	t.Helper()
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), text) {
			t.Errorf("%s: panic %v, want %q", what, p, text)
		}
	}()
	f()
}

// What the storage says it has and has not is lost: to hand out nothing and go on would be to
// forget it silently. An error that may pass is another matter: the next Ready tries again.
func TestLostCommittedEntriesAreNotSkipped2C(t *testing.T) {
	st := mkMoody(terms(1, 1, 1))
	_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 3})
	rn := mkRawOn(t, st, production)
	st.fails["Entries"] = errBroken
	equal(t, "committed entries", len(rn.Ready().CommittedEntries), 0)
	delete(st.fails, "Entries")
	st.short = true
	mustPanic(t, "fewer entries than there are", "are lost", func() { rn.Ready() })
	st.short = false
	for _, err := range []error{ErrCompacted, ErrUnavailable} {
		st.fails["Entries"] = err
		mustPanic(t, err.Error(), "are lost", func() { rn.Ready() })
	}
	delete(st.fails, "Entries")
	equal(t, "committed entries", len(rn.Ready().CommittedEntries), 3)
}

func mkRawOn(t *testing.T, st Storage, opts ...option) *RawNode {
	t.Helper()
	rn, err := NewRawNode(courseConfig(1, []uint64{1, 2, 3}, st, opts...))
	if err != nil {
		t.Fatal(err)
	}
	return rn
}

// leaderOn is a leader of term 2 with a log of three entries of term 1 on a storage, and a follower
// 2 that has told it has nothing.
func leaderOn(t *testing.T, st Storage) *Raft {
	t.Helper()
	rn := mkRawOn(t, st, production)
	r := rn.Raft
	r.Term = 1
	r.becomeCandidate()
	r.becomeLeader()
	take(r)
	r.Prs[2].answered, r.Prs[2].Next = true, 1
	return r
}

// While the storage cannot be read a leader sends a follower nothing, and goes on when it can (trap
// D7); when the log was truncated in between, the follower gets a snapshot (trap D14).
func TestAppendNeedsAReadableStorage2C(t *testing.T) {
	st := mkMoody(terms(1, 1, 1))
	log := &lines{}
	r := leaderOn(t, st)
	r.logger = log
	st.fails["Entries"] = errBroken
	equal(t, "sent", r.sendAppend(2), false)
	equal(t, "logged", log.have("cannot read entries from 1 for 2"), true)
	delete(st.fails, "Entries")
	equal(t, "sent", r.sendAppend(2), true)
	equal(t, "entries", len(take(r)[0].Entries), 4)

	r = leaderOn(t, st)
	_, _ = st.CreateSnapshot(3, &eraftpb.ConfState{Nodes: []uint64{1, 2, 3}}, nil)
	st.fails["Entries"] = ErrCompacted
	equal(t, "sent", r.sendAppend(2), true)
	equal(t, "instead of entries", take(r)[0].MsgType, tSnap)

	r = leaderOn(t, st)
	r.Prs[2].Next = 2
	delete(st.fails, "Entries")
	st.fails["Term"] = ErrCompacted
	equal(t, "sent", r.sendAppend(2), true)
	equal(t, "without the term before", take(r)[0].MsgType, tSnap)
}

// lines is a Logger that keeps what it gets.
type lines struct{ text string }

func (l *lines) add(format string, args ...any)    { l.text += fmt.Sprintf(format, args...) + "\n" }
func (l *lines) Debugf(format string, args ...any) { l.add(format, args...) }
func (l *lines) Infof(format string, args ...any)  { l.add(format, args...) }
func (l *lines) Warnf(format string, args ...any)  { l.add(format, args...) }
func (l *lines) Errorf(format string, args ...any) { l.add(format, args...) }
func (l *lines) have(text string) bool             { return strings.Contains(l.text, text) }

// Changes of role are logged, if there is a logger.
func TestLoggerHearsOfRoles2AA(t *testing.T) {
	log := &lines{}
	r := mkRaft(1, []uint64{1}, func(c *Config) { c.Logger = log })
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	equal(t, "leads", log.have("1 became leader at term 1"), true)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartbeat, From: 2, Term: 9})
	equal(t, "follows", log.have("1 became follower of 2 at term 9"), true)
}

// A storage that can stop after some bytes is asked to, and one that gives nothing has lost
// something.
func TestStorageThatStopsEarly2C(t *testing.T) {
	st := &limited{moody: mkMoody(terms(1, 1, 1))}
	r := leaderOn(t, st)
	r.maxSizePerMsg = 2 * entrySize(&terms(1)[0])
	equal(t, "sent", r.sendAppend(2), true)
	equal(t, "asked", st.asked, 1)
	equal(t, "entries", len(take(r)[0].Entries), 2)
	_, err := r.RaftLog.slice(1, 3, 1)
	equal(t, "one at least", err, nil)
	st.fails["Entries"] = errBroken
	_, err = r.RaftLog.slice(1, 3, 1)
	equal(t, "error", errors.Is(err, errBroken), true)
	_, err = (&RaftLog{storage: &nothing{st}, base: 3, first: 1}).readStorage(1, 3, 9)
	equal(t, "nothing", err, ErrUnavailable)
}

type nothing struct{ *limited }

func (s *nothing) EntriesLimited(uint64, uint64, uint64) ([]eraftpb.Entry, error) {
	return nil, nil
}

// What cannot be read may be a conf change: a node whose storage fails does not campaign.
func TestUnreadableLogMayHoldAConfChange3A(t *testing.T) {
	st := mkMoody(terms(1, 1, 1))
	_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 2})
	rn := mkRawOn(t, st, production)
	equal(t, "readable", rn.Raft.mayCampaign(), true)
	st.fails["Entries"] = errBroken
	equal(t, "unreadable", rn.Raft.mayCampaign(), false)
}

// Memory follows the storage no further than what is applied and persisted, and not at all where
// the storage fails.
func TestCompactToGoesNoFurtherThanApplied2C(t *testing.T) {
	st := mkMoody(terms(1, 1, 1))
	_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 3})
	rn := mkRawOn(t, st)
	rn.Advance(rn.Ready())
	equal(t, "applied", rn.Applied(), uint64(3))
	for _, tc := range []struct{ index, first uint64 }{{0, 1}, {2, 3}, {1, 3}, {9, 4}} {
		rn.CompactTo(tc.index)
		equal(t, fmt.Sprintf("first after %d", tc.index), rn.Status().FirstIndex, tc.first)
	}
	rn = mkRawOn(t, st, production)
	rn.Advance(rn.Ready())
	rn.AppliedTo(3)
	st.fails["Term"] = errBroken
	rn.CompactTo(2)
	equal(t, "first when the term cannot be read", rn.Status().FirstIndex, uint64(1))
}
