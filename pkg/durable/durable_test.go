package durable_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/durable"
)

// recorder notes what MkdirAll does to a file system that begins with some directories.
type recorder struct {
	have []string
	did  []string
	deny string // SyncDir of it is not permitted
}

func (r *recorder) Exists(dir string) (bool, error) { return slices.Contains(r.have, dir), nil }

func (r *recorder) Mkdir(dir string) error {
	switch {
	case slices.Contains(r.have, dir):
		return &fs.PathError{Op: "mkdir", Path: dir, Err: fs.ErrExist}
	case !slices.Contains(r.have, filepath.Dir(dir)):
		return &fs.PathError{Op: "mkdir", Path: dir, Err: fs.ErrNotExist}
	}
	r.have = append(r.have, dir)
	r.did = append(r.did, "mkdir "+dir)
	return nil
}

func (r *recorder) SyncDir(dir string) error {
	if dir == r.deny {
		return &fs.PathError{Op: "open", Path: dir, Err: syscall.EACCES}
	}
	r.did = append(r.did, "sync "+dir)
	return nil
}

// TestMkdirAllSyncsUpToTheFirstThatExisted: each directory is durable before the next is made, and
// the first that existed is made durable too, because a process killed in between may have made it.
func TestMkdirAllSyncsUpToTheFirstThatExisted(t *testing.T) {
	r := &recorder{have: []string{"/", "/a"}}
	require.NoError(t, durable.MkdirAll(r, "/a/b/c/"))
	require.Equal(t, []string{"sync /", "mkdir /a/b", "sync /a", "mkdir /a/b/c", "sync /a/b"},
		r.did)
	r.did = nil
	require.NoError(t, durable.MkdirAll(r, "/a/b/c"))
	require.Equal(t, []string{"sync /a/b"}, r.did)

	r = &recorder{have: []string{"."}}
	require.NoError(t, durable.MkdirAll(r, "x"))
	require.Equal(t, []string{"sync .", "mkdir x", "sync ."}, r.did)
}

// TestMkdirAllAboveForeignDirectories: a directory that existed is not this user's to make durable;
// one that was made is.
func TestMkdirAllAboveForeignDirectories(t *testing.T) {
	r := &recorder{have: []string{"/", "/a"}, deny: "/"}
	require.NoError(t, durable.MkdirAll(r, "/a/b"))
	require.Equal(t, []string{"mkdir /a/b", "sync /a"}, r.did)
	r = &recorder{have: []string{"/", "/a"}, deny: "/a"}
	require.ErrorIs(t, durable.MkdirAll(r, "/a/b"), fs.ErrPermission)
}

func TestOnRealFiles(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a", "b")
	require.NoError(t, durable.MkdirAll(durable.OS, dir))
	require.NoError(t, durable.MkdirAll(durable.OS, dir))
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	file := filepath.Join(dir, "f")
	require.NoError(t, durable.WriteFile(file, []byte("one")))
	require.NoError(t, durable.WriteFile(file, []byte("two")))
	require.NoError(t, durable.Rename(file, filepath.Join(root, "a", "g")))
	data, err := os.ReadFile(filepath.Join(root, "a", "g"))
	require.NoError(t, err)
	require.Equal(t, "two", string(data))
	require.ErrorIs(t, durable.MkdirAll(durable.OS, filepath.Join(root, "a", "g")), syscall.ENOTDIR)
	require.ErrorIs(t, durable.MkdirAll(durable.OS, filepath.Join(root, "a", "g", "h")),
		syscall.ENOTDIR)
}
