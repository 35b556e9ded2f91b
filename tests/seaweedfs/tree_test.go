package seaweedfs

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func keysOf(tr tree) iter.Seq[string] { return maps.Keys(tr) }

// inParallel calls do for all names, by 8 goroutines that have ended when it returns.
func inParallel(t *testing.T, names []string, do func(name string) error) {
	t.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, len(names))
	for range 8 {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(names)); i = next.Add(1) - 1 {
				if err := do(names[i]); err != nil {
					errs <- err
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
}

// restart kills a store and starts it again.
func (c *cluster) restart(t *testing.T, i int) {
	t.Helper()
	c.stores[i].kill()
	c.stores[i].start(t)
}

// Through two filers that share a cluster of three stores, one of which commits in one phase and
// one in two: a tree of files is written while a store is killed, directories are listed, moved and
// deleted while others are, and every listing and every byte is what it should be, at both filers.
// A filer that dies while it moves a directory has moved all of it or nothing.
func TestTree(t *testing.T) {
	c := startCluster(t, 3)
	filers := []*filer{newFiler(c.filers[0].addr), newFiler(c.filers[1].addr)}
	const root = "/tree"
	want := tree{}
	for i := range files {
		name := fmt.Sprintf("%s/d%02d/größe %d%%/file-%d.bin", root, i%23, i%3, i)
		want[name] = seedOf(name, 1)
	}

	// Two puts that make the same directory at once are in conflict, which the filer passes on. So
	// each directory gets one file first.
	first, rest := perDirectory(want)
	for _, name := range first {
		require.NoError(t, filers[0].put(name, content(want[name])))
	}
	upload(t, c, filers, rest, want, 0)
	for i, f := range filers {
		f.check(t, root, want, 7+500*i)
	}

	t.Log("some are overwritten, while another store is killed")
	again := slices.Sorted(keysOf(want))[:files/10]
	for _, name := range again {
		want[name] = seedOf(name, 2)
	}
	upload(t, c, filers, again, want, 1)

	t.Log("directories are moved, while a store is killed")
	killed := make(chan struct{})
	for i := range 8 {
		from, to := fmt.Sprintf("%s/d%02d", root, i), fmt.Sprintf("%s/moved/e%02d", root, i)
		if i == 2 {
			go func() { // ends with the kill
				defer close(killed)
				c.stores[2].kill()
			}()
		}
		moveAll(t, filers[i%2], from, to, want.under(from)[0], to+want.under(from)[0][len(from):])
		want.move(from, to)
	}
	<-killed
	c.stores[2].start(t)
	for i, f := range filers {
		f.check(t, root, want, 11+300*i)
	}

	moveAndDie(t, c, filers, root, want)

	t.Log("directories are deleted, while a store is killed")
	for i := range 6 {
		dir := fmt.Sprintf("%s/d%02d", root, 10+i)
		if i == 1 {
			c.restart(t, 0)
		}
		require.NoError(t, removeAll(filers[i%2], dir))
		for _, name := range want.under(dir) {
			delete(want, name)
		}
	}
	for i, f := range filers {
		f.check(t, root, want, 1000-i)
	}
	require.NoError(t, filers[0].remove(root))
	for _, f := range filers {
		_, err := f.do(http.MethodGet, root+"/", "", nil, "Accept", "application/json")
		var status *statusError
		require.ErrorAs(t, err, &status)
		require.Equal(t, http.StatusNotFound, status.status)
	}
}

// files is how many there are in the tree.
const files = 2000

// perDirectory has one file of each directory, and the others.
func perDirectory(tr tree) (first, rest []string) {
	seen := map[string]bool{}
	for _, name := range slices.Sorted(keysOf(tr)) {
		if dir := path.Dir(name); !seen[dir] {
			seen[dir] = true
			first = append(first, name)
		} else {
			rest = append(rest, name)
		}
	}
	return first, rest
}

// upload puts the files, by both filers. Meanwhile a store is killed, and starts again when another
// third is there. A file is put again only if its transaction may have been committed or not:
// nothing else of the kill reaches the filers' users.
func upload(t *testing.T, c *cluster, filers []*filer, names []string, want tree, store int) {
	t.Helper()
	var done, failed atomic.Int64
	began := time.Now()
	third, twoThirds := int64(len(names)/3), int64(2*len(names)/3)
	var nemesis sync.WaitGroup
	atThird, atTwoThirds := make(chan struct{}), make(chan struct{})
	nemesis.Go(func() {
		<-atThird
		c.stores[store].kill()
		<-atTwoThirds
		c.stores[store].start(t)
	})
	inParallel(t, names, func(name string) error {
		var err error
		for range 3 {
			err = filers[want[name]%2].put(name, content(want[name]))
			if err == nil || !strings.Contains(err.Error(), "undetermined") {
				break
			}
			failed.Add(1)
			t.Logf("put %s: %v", name, err)
		}
		switch done.Add(1) {
		case third:
			close(atThird)
		case twoThirds:
			close(atTwoThirds)
		}
		return err
	})
	nemesis.Wait()
	t.Logf("%d files in %v, %d puts of unknown outcome", len(names),
		time.Since(began).Round(time.Millisecond), failed.Load())
}

// moveAll moves a directory. Without a success it looks at one of its files, which tells where all
// of them are.
func moveAll(t *testing.T, f *filer, from, to, before, after string) {
	t.Helper()
	for range 5 {
		err := f.move(from, to)
		if err == nil {
			return
		}
		t.Logf("move %s: %v", from, err)
		if exists(t, f, after) {
			return
		}
		require.True(t, exists(t, f, before))
	}
	t.Fatalf("%s was not moved", from)
}

func removeAll(f *filer, dir string) (err error) {
	for range 5 {
		if err = f.remove(dir); err == nil {
			return nil
		}
	}
	return err
}

func exists(t *testing.T, f *filer, name string) bool {
	t.Helper()
	_, err := f.do(http.MethodGet, name, "", nil)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusNotFound {
		return false
	}
	require.NoError(t, err)
	return true
}

// moveAndDie kills a filer while it moves a directory, later in each round. The other filer finds
// all files at one of the two places.
func moveAndDie(t *testing.T, c *cluster, filers []*filer, root string, want tree) {
	t.Helper()
	from, to := root+"/moved", root+"/again"
	began := time.Now()
	require.NoError(t, filers[1].move(from, to))
	took := time.Since(began)
	want.move(from, to)
	t.Logf("a directory of %d files is moved in %v", len(want.under(to)),
		took.Round(time.Millisecond))
	for i := range 6 {
		from, to = to, from
		names := want.under(from)
		var dies sync.WaitGroup
		dies.Go(func() { // the nemesis has a clock, the check has none
			time.Sleep(took * time.Duration(3+3*i) / 10)
			c.filers[1].kill()
		})
		err := filers[1].move(from, to)
		dies.Wait()
		moved := exists(t, filers[0], to+names[0][len(from):])
		t.Logf("round %d: %v, moved: %v", i, err, moved)
		if moved {
			want.move(from, to)
		} else {
			require.Error(t, err, "a move that has succeeded is lost")
			from, to = to, from
		}
		filers[0].check(t, root, want, 1000)
		c.filers[1].start(t)
		c.filers[1].serving(t)
	}
}
