package enginetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/engine"
)

// Some tests need a process to kill, or one that damage may bring down. They run the test binary
// again; Main turns such a run into the child.
const (
	envMode = "ENGINETEST_MODE"
	envDir  = "ENGINETEST_DIR"
	envFrom = "ENGINETEST_FROM"
	envSpec = "ENGINETEST_SPEC"
)

// Main is to be called in TestMain, in the place of m.Run's caller: it runs the tests and checks
// that no goroutine is left, or does a child's work.
func Main(m *testing.M, f Factory) {
	mode := os.Getenv(envMode)
	if mode == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if mode == "test" {
		os.Exit(m.Run()) // a test of its own process may leave goroutines of a failed engine
	}
	from, _ := strconv.Atoi(os.Getenv(envFrom))
	out := os.NewFile(3, "pipe")
	var err error
	switch mode {
	case "write":
		err = writeUntilKilled(f, os.Getenv(envDir), from, out)
	case "damage":
		err = damageChild(f, os.Getenv(envDir), from, os.Getenv(envSpec), out)
	default:
		err = fmt.Errorf("unknown mode %q", mode)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a running child and the lines it writes.
type child struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	pipe  io.Closer
	log   *strings.Builder
}

func startChild(mode, dir string, from int, spec string) (*child, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &child{
		cmd: exec.Command(os.Args[0]), lines: bufio.NewScanner(r), pipe: r, log: &strings.Builder{},
	}
	c.cmd.Env = append(os.Environ(), envMode+"="+mode, envDir+"="+dir,
		envFrom+"="+strconv.Itoa(from), envSpec+"="+spec)
	c.cmd.ExtraFiles = []*os.File{w}
	c.cmd.Stdout, c.cmd.Stderr = io.Discard, c.log
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	return c, w.Close()
}

// end waits for the child and returns what it said.
func (c *child) end() (output string, err error) {
	err = errors.Join(c.cmd.Wait(), c.pipe.Close())
	return c.log.String(), err
}

// InChild runs the calling test again in a process of its own and returns false, or returns true if
// this is that process. For tests after which an engine is left failed, with goroutines that no one
// can end.
func InChild(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envMode) == "test" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), envMode+"=test")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("%s", out)
	}
	t.Logf("%s", out)
	return false
}

// killKeys is how many keys each batch of the writer has, beside the counter.
const killKeys = 5

// NumberedBatch fills b with the i-th batch of a sequence that CheckNumbered can verify.
func NumberedBatch(b engine.Batch, i int) {
	b.Reset()
	for k := range killKeys {
		b.Put(fmt.Appendf(nil, "zd%08d/%d", i, k),
			fmt.Appendf(make([]byte, 0, 900), "%d-%d-%0800d", i, k, i))
	}
	b.Put([]byte("zlast"), fmt.Append(nil, i))
}

// writeUntilKilled writes batches and tells, for each, that it was acknowledged and whether it was
// synced.
func writeUntilKilled(f Factory, dir string, from int, out io.Writer) error {
	e, err := f.Open(dir)
	if err != nil {
		return err
	}
	b := e.NewBatch()
	for i := from; ; i++ {
		NumberedBatch(b, i)
		sync := i%5 == 0
		if err := e.Write(b, sync); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, i, sync); err != nil {
			return err
		}
	}
}

// RunKill kills a writing process again and again: what it had synced is there, batches are whole,
// and what is there is a prefix of what was written.
func RunKill(t *testing.T, f Factory, rounds int) {
	dir := t.TempDir()
	next, synced, acked, lost := 1, 0, 0, 0
	for round := range rounds {
		c, err := startChild("write", dir, next, "")
		must(t, err)
		// How far it gets before it dies is different in each round.
		last := next - 1
		for n := 20 + round*37%200; n > 0 && c.lines.Scan(); n-- {
			var isSynced bool
			if _, err := fmt.Sscan(c.lines.Text(), &last, &isSynced); err != nil {
				t.Fatal(err)
			}
			if isSynced {
				synced = last
			}
			acked++
		}
		must(t, c.cmd.Process.Kill())
		if log, err := c.end(); err != nil && !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d: %v\n%s", round, err, log)
		}
		e, err := f.Open(dir)
		if err != nil {
			t.Fatalf("round %d: open after kill: %v", round, err)
		}
		got := CheckNumbered(t, e)
		if got < synced {
			t.Fatalf("round %d: %d batches, but %d was synced", round, got, synced)
		}
		lost += max(0, last-got)
		next = got + 1
		must(t, e.Close())
	}
	t.Logf("%s: %d kills, %d acknowledged batches, 0 synced ones lost, %d unsynced ones lost",
		f.Name, rounds, acked, lost)
}

// CheckNumbered verifies that whole batches 1 to n are there and returns n.
func CheckNumbered(t testing.TB, e engine.Engine) int {
	t.Helper()
	n := 0
	if v, ok, err := e.Get([]byte("zlast")); err != nil {
		t.Fatal(err)
	} else if ok {
		n, _ = strconv.Atoi(string(v))
	}
	s := e.NewSnapshot()
	defer s.Close()
	it := s.NewIterator([]byte("zd"), []byte("ze"))
	defer it.Close()
	i := 0
	for it.First(); it.Valid(); it.Next() {
		batch, k := i/killKeys+1, i%killKeys
		if want := fmt.Sprintf("zd%08d/%d", batch, k); string(it.Key()) != want {
			t.Fatalf("found %q, want %q; last is %d", it.Key(), want, n)
		}
		if want := fmt.Sprintf("%d-%d-%0800d", batch, k, batch); string(it.Value()) != want {
			t.Fatalf("%q: wrong value", it.Key())
		}
		i++
	}
	must(t, it.Err())
	if i != n*killKeys {
		t.Fatalf("%d keys, want %d of %d batches", i, n*killKeys, n)
	}
	return n
}
