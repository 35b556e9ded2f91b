package undo_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/kv/vfs/undo"
)

const page = 4096

// versions is a file of the model: what it held after each write since the last sync, that one
// first. Contents are unique for each page and write.
type versions [][]byte

func (v versions) last() []byte { return v[len(v)-1] }

// allows tells whether each page of got is one that the file has had, and got is no shorter than
// what was synced.
func (v versions) allows(got []byte) error {
	if len(got) < len(v[0]) || len(got) > len(v.last()) {
		return fmt.Errorf("%d bytes, from %d to %d are allowed", len(got), len(v[0]), len(v.last()))
	}
	for at := 0; at < len(got); at += page {
		want := got[at:min(at+page, len(got))]
		ok := false
		for _, c := range v {
			have := make([]byte, len(want)) // zeros where this version was shorter
			if at < len(c) {
				copy(have, c[at:])
			}
			ok = ok || bytes.Equal(have, want)
		}
		if !ok {
			return fmt.Errorf("page %d is none that was written", at/page)
		}
	}
	return nil
}

// TestLose writes, syncs and renames at random, loses, and compares with what a disk may show.
// Later rounds go on with what is left, as a process that is started again would.
func TestLose(t *testing.T) {
	lostBytes, lostNames := int64(0), 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		root := t.TempDir()
		data, dir := filepath.Join(root, "data"), filepath.Join(root, "undo")
		require.NoError(t, os.Mkdir(data, 0o700))
		model := map[string]versions{} // files whose names are durable
		for range 3 {
			j, err := undo.Open(dir)
			require.NoError(t, err)
			fs := j.FS(vfs.OS)
			for range rng.IntN(30) {
				step(t, rng, fs, data, model)
			}
			lost, err := undo.Lose(dir, data, rng)
			require.NoError(t, err)
			lostBytes += lost.Bytes
			lostNames += lost.Names
			for name, v := range model {
				got, err := os.ReadFile(filepath.Join(data, name))
				require.NoError(t, err, "seed %d", seed)
				require.NoError(t, v.allows(got), "seed %d: %s", seed, name)
				model[name] = versions{got}
			}
			require.NoDirExists(t, dir)
		}
	}
	require.Positive(t, lostBytes)
	require.Positive(t, lostNames)
	t.Logf("lost %d bytes and %d names", lostBytes, lostNames)
}

var fill byte

func step(t *testing.T, rng *rand.Rand, fs vfs.FS, data string, model map[string]versions) {
	name := fmt.Sprintf("f%d", rng.IntN(4))
	path := filepath.Join(data, name)
	v, exists := model[name]
	if !exists {
		// Created, named and made durable at once; what becomes of names is for the test below.
		f, err := fs.Create(path + ".tmp")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, fs.Rename(path+".tmp", path))
		require.NoError(t, fs.SyncDir(data))
		model[name] = versions{nil}
		return
	}
	f, err := fs.Open(path)
	require.NoError(t, err)
	defer f.Close()
	switch rng.IntN(4) {
	case 0:
		require.NoError(t, f.Sync())
		model[name] = versions{v.last()}
	case 1:
		// A name that is not durable, and is undone or not.
		g, err := fs.Create(filepath.Join(data, fmt.Sprintf("x%d", rng.IntN(3))))
		require.NoError(t, err)
		require.NoError(t, g.Close())
	default:
		fill++
		p := bytes.Repeat([]byte{fill}, 1+rng.IntN(3*page))
		off := rng.IntN(len(v.last()) + page)
		next := make([]byte, max(len(v.last()), off+len(p)))
		copy(next, v.last())
		copy(next[off:], p)
		_, err := f.WriteAt(p, int64(off))
		require.NoError(t, err)
		model[name] = append(v, next)
	}
}

// TestNames: what was renamed over or removed comes back, up to some point in time, and only if the
// directory was not synced.
func TestNames(t *testing.T) {
	left := map[string]int{}
	for seed := range uint64(200) {
		root := t.TempDir()
		data, dir := filepath.Join(root, "data"), filepath.Join(root, "undo")
		require.NoError(t, os.Mkdir(data, 0o700))
		j, err := undo.Open(dir)
		require.NoError(t, err)
		fs := j.FS(vfs.OS)
		write := func(name, content string) {
			f, err := fs.Create(filepath.Join(data, name))
			require.NoError(t, err)
			_, err = f.WriteAt([]byte(content), 0)
			require.NoError(t, err)
			require.NoError(t, f.Sync())
			require.NoError(t, f.Close())
		}
		write("current", "old")
		write("gone", "here")
		require.NoError(t, fs.SyncDir(data))
		write("tmp", "new")
		require.NoError(t, fs.Rename(filepath.Join(data, "tmp"), filepath.Join(data, "current")))
		require.NoError(t, fs.Remove(filepath.Join(data, "gone")))
		if seed%4 == 0 {
			require.NoError(t, fs.SyncDir(data))
		}
		_, err = undo.Lose(dir, data, rand.New(rand.NewPCG(seed, 2)))
		require.NoError(t, err)
		state := ""
		for _, name := range []string{"tmp", "current", "gone"} {
			f, err := os.Open(filepath.Join(data, name))
			if err != nil {
				state += name + ":none "
				continue
			}
			content, err := io.ReadAll(f)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			state += name + ":" + string(content) + " "
		}
		if seed%4 == 0 {
			require.Equal(t, "tmp:none current:new gone:none ", state, "seed %d", seed)
		}
		left[state]++
	}
	// Each prefix of create, rename, remove; nothing else.
	want := []string{
		"tmp:none current:old gone:here ", "tmp:new current:old gone:here ",
		"tmp:none current:new gone:here ", "tmp:none current:new gone:none ",
	}
	for _, state := range want {
		require.Positive(t, left[state], "%q of %v", state, left)
	}
	require.Len(t, left, len(want), "%v", left)
}
