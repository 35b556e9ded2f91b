package vfs_test

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/pkg/durable"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	must(t, durable.MkdirAll(vfs.OS, dir))
	name := filepath.Join(dir, "f")
	if _, err := vfs.OS.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("open of nothing: %v", err)
	}
	f, err := vfs.OS.Create(name)
	must(t, err)
	_, err = f.WriteAt([]byte("hello"), 100)
	must(t, err)
	must(t, f.Allocate(1<<20))
	must(t, f.Allocate(10)) // never shorter
	must(t, f.Sync())
	size, err := f.Size()
	must(t, err)
	if size != 1<<20 {
		t.Fatalf("size %d", size)
	}
	buf := make([]byte, 1<<20)
	_, err = f.ReadAt(buf, 0)
	must(t, err)
	want := make([]byte, 1<<20)
	copy(want[100:], "hello")
	if !bytes.Equal(buf, want) {
		t.Fatal("allocation changed the content or did not write zeros")
	}
	must(t, f.Close())
	must(t, vfs.OS.Rename(name, filepath.Join(dir, "g")))
	must(t, vfs.OS.SyncDir(dir))
	names, err := vfs.OS.List(dir)
	must(t, err)
	if !slices.Equal(names, []string{"g"}) {
		t.Fatalf("%v", names)
	}
	must(t, vfs.OS.Remove(filepath.Join(dir, "g")))
}
