package raftlog_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

const (
	envKillDir  = "RAFTLOG_TEST_DIR"
	envKillFrom = "RAFTLOG_TEST_FROM"
)

// TestMain runs the tests, or is the process that TestKill kills.
func TestMain(m *testing.M) {
	dir := os.Getenv(envKillDir)
	if dir == "" {
		goleak.VerifyTestMain(m)
		return
	}
	from, _ := strconv.ParseUint(os.Getenv(envKillFrom), 10, 64)
	if err := writeUntilKilled(dir, from, os.NewFile(3, "pipe")); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

func killOptions() raftlog.Options { return raftlog.Options{SegmentSize: 256 << 10} }

// killRegions get an entry each in every batch, so that batches show whether they are whole.
const killRegions = 4

func killEntry(region, index uint64) eraftpb.Entry {
	return eraftpb.Entry{
		Term: index / 7, Index: index, Data: fmt.Appendf(nil, "%d/%d/%0300d", region, index, index),
	}
}

func writeUntilKilled(dir string, from uint64, out io.Writer) error {
	l, err := raftlog.Open(dir, killOptions())
	if err != nil {
		return err
	}
	var b raftlog.Batch
	for i := from; ; i++ {
		b.Clear()
		for r := uint64(1); r <= killRegions; r++ {
			b.Append(r, []eraftpb.Entry{killEntry(r, i)})
			b.SetHardState(r, eraftpb.HardState{Term: i, Commit: i})
			if i > 100 && i%20 == 0 {
				b.Truncate(r, i-50, (i-50)/7)
			}
		}
		if err := l.Write(&b, i%3 == 0); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, i); err != nil {
			return err
		}
	}
}

// TestKill kills a writing process again and again. The page cache survives, so whatever was
// acknowledged must be there, synced or not.
func TestKill(t *testing.T) {
	rounds := 10
	if *long {
		rounds = 200
	}
	dir := t.TempDir()
	acked := uint64(0)
	for round := range rounds {
		r, w, err := os.Pipe()
		must(t, err)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envKillDir+"="+dir, envKillFrom+"="+fmt.Sprint(acked+1))
		cmd.ExtraFiles = []*os.File{w}
		var log strings.Builder
		cmd.Stderr = &log
		must(t, cmd.Start())
		must(t, w.Close())
		lines := bufio.NewScanner(r)
		for n := 30 + round*97%400; n > 0 && lines.Scan(); n-- {
			acked, err = strconv.ParseUint(lines.Text(), 10, 64)
			must(t, err)
		}
		must(t, cmd.Process.Kill())
		for lines.Scan() { // what it still said before it died
			acked, err = strconv.ParseUint(lines.Text(), 10, 64)
			must(t, err)
		}
		_ = cmd.Wait()
		must(t, r.Close())
		if log.Len() > 0 {
			t.Fatalf("round %d: %s", round, log.String())
		}
		acked = verifyKilled(t, dir, acked)
	}
	t.Logf("%d kills, %d batches, none lost", rounds, acked)
}

// verifyKilled checks the log and returns the last batch in it.
func verifyKilled(t *testing.T, dir string, acked uint64) uint64 {
	t.Helper()
	l := mustOpen(t, dir, killOptions())
	last := uint64(0)
	for r := uint64(1); r <= killRegions; r++ {
		must(t, l.Damaged(r))
		s, _ := l.State(r)
		if r == 1 {
			last = s.Last
		}
		if s.Last < acked || s.Last > acked+1 || s.Last != last || s.HardState.Commit != last {
			t.Fatalf("region %d: %+v, %d acknowledged", r, s, acked)
		}
		ents, err := l.Entries(r, s.First, s.Last+1, 1<<30)
		must(t, err)
		for i := range ents {
			want := killEntry(r, s.First+uint64(i))
			sameEntries(t, ents[i:i+1], []eraftpb.Entry{want})
		}
	}
	must(t, l.Close())
	return last
}
