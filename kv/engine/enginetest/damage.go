package enginetest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tinykv/tinykv/kv/engine"
)

// Damage tests harm a copy of a store and open it in a child. Allowed: it refuses to open, a read
// answers with an error, or all is as it was. Forbidden: other data (WRONG), or less (LOSS), in
// silence.

// damageKeys and damageRounds make tables on several levels and leave some data in the log.
const (
	damageKeys  = 3000
	damageTail  = 200
	damageValue = 300
)

func damagePair(i int, key, value []byte) (k, v []byte) {
	key = fmt.Appendf(key[:0], "zd%06d", i)
	value = value[:0]
	rng := rand.New(rand.NewPCG(uint64(i), 3))
	for len(value) < damageValue {
		value = append(value, byte(rng.Uint32()))
	}
	return key, value
}

// buildDamageBase makes the store that is harmed: everything in it was synced.
func buildDamageBase(f Factory, dir, copyTo string) error {
	e, err := f.Open(dir)
	if err != nil {
		return err
	}
	if err := putPairs(e, 0, damageKeys); err != nil {
		return err
	}
	if err := e.Close(); err != nil {
		return err
	}
	if e, err = f.Open(dir); err != nil {
		return err
	}
	// What comes now stays in the log: the copy is taken from the open store.
	if err := putPairs(e, damageKeys, damageKeys+damageTail); err != nil {
		return err
	}
	if err := e.Sync(); err != nil {
		return err
	}
	return errors.Join(CopyDir(dir, copyTo), e.Close())
}

func putPairs(e engine.Engine, from, to int) error {
	b := e.NewBatch()
	var k, v []byte
	for i := from; i < to; i++ {
		k, v = damagePair(i, k, v)
		b.Put(k, v)
		if b.Len() == 20 {
			if err := e.Write(b, false); err != nil {
				return err
			}
			b.Reset()
		}
	}
	return e.Write(b, true)
}

// CopyDir copies a directory of files; holes stay holes.
func CopyDir(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := copyFile(filepath.Join(from, entry.Name()),
			filepath.Join(to, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// copyFile keeps holes: preallocated logs are large and mostly empty.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	off := int64(0)
	for {
		n, err := in.Read(buf)
		if strings.Trim(string(buf[:n]), "\x00") != "" {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return errors.Join(err, out.Close())
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(err, out.Close())
		}
	}
	return errors.Join(out.Truncate(off), out.Close())
}

// verifyDamage opens a harmed store and reads all of it, in order and one by one.
func verifyDamage(f Factory, dir string) string {
	e, err := f.Open(dir)
	if err != nil {
		return "refused"
	}
	defer func() { _ = e.Close() }()
	var k, v []byte
	readError := false
	s := e.NewSnapshot()
	it := s.NewIterator([]byte("zd"), []byte("ze"))
	i := 0
	for it.First(); it.Valid(); it.Next() {
		k, v = damagePair(i, k, v)
		if string(it.Key()) != string(k) {
			break
		}
		if string(it.Value()) != string(v) {
			it.Close()
			s.Close()
			return fmt.Sprintf("WRONG: iterator at %q: other value", it.Key())
		}
		i++
	}
	err = it.Err()
	it.Close()
	s.Close()
	if err != nil {
		readError = true
	} else if i != damageKeys+damageTail {
		return fmt.Sprintf("LOSS: iterator misses %q", k)
	}
	for i := 0; i < damageKeys+damageTail; i += 7 {
		k, v = damagePair(i, k, v)
		got, ok, err := e.Get(k)
		if err != nil {
			readError = true
			continue
		}
		if !ok {
			return fmt.Sprintf("LOSS: get does not find %q", k)
		}
		if string(got) != string(v) {
			return fmt.Sprintf("WRONG: get %q: other value", k)
		}
	}
	if readError {
		return "read error"
	}
	return "harmless"
}

// DamageClass is a class of files to harm.
type DamageClass struct {
	Name string
	Glob string
	// Used tells how much of a preallocated file is in use; nil: all of it.
	Used func(data []byte) int
}

// NonZero is the part of a preallocated file up to its last byte that is not zero.
func NonZero(data []byte) int {
	n := len(data)
	for n > 0 && data[n-1] == 0 {
		n--
	}
	return max(n, 1)
}

var damageKinds = []string{"flip", "flip", "flip", "zero-page", "truncate"}

// harm damages one file of the class, as the round's number decides.
func harm(c DamageClass, dir string, round int) error {
	rng := rand.New(rand.NewPCG(uint64(round), 17))
	names, err := filepath.Glob(filepath.Join(dir, c.Glob))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("no file %s: %w", c.Glob, err)
	}
	name := names[rng.IntN(len(names))]
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	used := len(data)
	if c.Used != nil {
		used = c.Used(data)
	}
	if used == 0 {
		return nil
	}
	at := rng.IntN(used)
	switch damageKinds[round%len(damageKinds)] {
	case "flip":
		data[at] ^= 1 << rng.IntN(8)
	case "zero-page":
		from := at &^ 4095
		clear(data[from:min(from+4096, len(data))])
	case "truncate":
		data = data[:at]
	}
	return os.WriteFile(name, data, 0o600)
}

// damageChild carries out the rounds from "from" on and reports each in a line.
func damageChild(f Factory, dir string, from int, spec string, out io.Writer) error {
	parts := strings.Split(spec, "|")
	c := DamageClass{Name: parts[0], Glob: parts[1]}
	if parts[2] == "nonzero" {
		c.Used = NonZero
	}
	var rounds int
	if _, err := fmt.Sscan(parts[3], &rounds); err != nil {
		return err
	}
	for round := from; round < rounds; round++ {
		work := filepath.Join(dir, fmt.Sprintf("work-%d", round))
		if err := CopyDir(filepath.Join(dir, "base"), work); err != nil {
			return err
		}
		if err := harm(c, work, round); err != nil {
			return err
		}
		outcome := verifyDamage(f, work)
		if _, err := fmt.Fprintf(out, "%d %s\n", round, outcome); err != nil {
			return err
		}
		if err := os.RemoveAll(work); err != nil {
			return err
		}
		if outcome == "read error" {
			os.Exit(0) // an engine that failed may hold on to goroutines: begin afresh
		}
	}
	return nil
}

// RunDamage harms each class of files "rounds" times and returns the outcomes. A child that dies is
// an outcome too: "died" is loud, but no way to go for a server.
func RunDamage(
	t *testing.T, f Factory, classes []DamageClass, rounds int,
) map[string]map[string]int {
	dir := t.TempDir()
	for try := 0; ; try++ {
		err := buildDamageBase(f, filepath.Join(dir, "origin", fmt.Sprint(try)),
			filepath.Join(dir, "base"))
		if err == nil {
			if got := verifyCopy(f, dir); got != "harmless" {
				err = fmt.Errorf("the undamaged copy: %s", got)
			}
		}
		if err == nil {
			break
		}
		// The engine's background work removes files while they are being copied, now and then.
		if try == 5 {
			t.Fatal(err)
		}
		must(t, os.RemoveAll(filepath.Join(dir, "base")))
	}
	outcomes := map[string]map[string]int{}
	for _, c := range classes {
		counts := map[string]int{}
		outcomes[c.Name] = counts
		used := "all"
		if c.Used != nil {
			used = "nonzero"
		}
		spec := fmt.Sprintf("%s|%s|%s|%d", c.Name, c.Glob, used, rounds)
		for round := 0; round < rounds; {
			ch, err := startChild("damage", dir, round, spec)
			must(t, err)
			for ch.lines.Scan() {
				n, outcome, _ := strings.Cut(ch.lines.Text(), " ")
				if n != fmt.Sprint(round) {
					t.Fatalf("round %d: child says %q", round, ch.lines.Text())
				}
				if word, _, forbidden := strings.Cut(outcome, ":"); forbidden {
					t.Logf("%s, round %d (%s): %s", c.Name, round,
						damageKinds[round%len(damageKinds)], outcome)
					outcome = word
				}
				counts[outcome]++
				round++
			}
			if log, err := ch.end(); err != nil {
				if round < rounds &&
					(strings.Contains(log, "panic") || strings.Contains(log, "fatal")) {
					counts["died"]++
					round++
					continue
				}
				t.Fatalf("%s, round %d: child: %v\n%.2000s", c.Name, round, err, log)
			}
		}
		t.Logf("%s, %s: %d damages: %v", f.Name, c.Name, rounds, counts)
	}
	return outcomes
}

func verifyCopy(f Factory, dir string) string {
	work := filepath.Join(dir, "check")
	if err := CopyDir(filepath.Join(dir, "base"), work); err != nil {
		return err.Error()
	}
	defer func() { _ = os.RemoveAll(work) }()
	return verifyDamage(f, work)
}
