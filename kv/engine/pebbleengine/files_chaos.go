//go:build chaos

package pebbleengine

import (
	"errors"
	"io/fs"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tinykv/tinykv/kv/vfs/undo"
)

// files tells the journal of the process, if it keeps one, of all that is done.
func files() (vfs.FS, error) {
	j, err := undo.OfProcess()
	if err != nil || j == nil {
		return vfs.Default, err
	}
	return journaled{FS: vfs.Default, j: j}, nil
}

type journaled struct {
	vfs.FS
	j *undo.Journal
}

func (fsys journaled) Unwrap() vfs.FS { return fsys.FS }

func (fsys journaled) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var f vfs.File
	err := fsys.j.Create(name, func() (err error) {
		f, err = fsys.FS.Create(name, c)
		return err
	})
	return fsys.wrap(name, f, true, err)
}

func (fsys journaled) Link(oldName, newName string) error {
	return fsys.j.Create(newName, func() error { return fsys.FS.Link(oldName, newName) })
}

func (fsys journaled) OpenReadWrite(
	name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption,
) (vfs.File, error) {
	var f vfs.File
	open := func() (err error) {
		f, err = fsys.FS.OpenReadWrite(name, c, opts...)
		return err
	}
	if _, err := os.Lstat(name); err == nil {
		err := open()
		return fsys.wrap(name, f, false, err)
	}
	err := fsys.j.Create(name, open)
	return fsys.wrap(name, f, true, err)
}

// ReuseForWrite is a renaming and a file whose old content shows where a write is lost.
func (fsys journaled) ReuseForWrite(
	oldName, newName string, c vfs.DiskWriteCategory,
) (vfs.File, error) {
	if err := fsys.Rename(oldName, newName); err != nil {
		return nil, err
	}
	return fsys.OpenReadWrite(newName, c)
}

func (fsys journaled) Rename(oldName, newName string) error {
	return fsys.j.Rename(oldName, newName, func() error { return fsys.FS.Rename(oldName, newName) })
}

func (fsys journaled) Remove(name string) error {
	if _, err := os.Lstat(name); err != nil {
		return err // nothing to record
	}
	return fsys.j.Remove(name, func() error { return fsys.FS.Remove(name) })
}

// MkdirAll is called for one directory whose parent exists.
func (fsys journaled) MkdirAll(dir string, perm os.FileMode) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil // nothing to record
	}
	return fsys.j.Mkdir(dir, func() error { return fsys.FS.MkdirAll(dir, perm) })
}

func (fsys journaled) OpenDir(name string) (vfs.File, error) {
	f, err := fsys.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return journaledDir{File: f, name: name, j: fsys.j}, nil
}

type journaledDir struct {
	vfs.File
	name string
	j    *undo.Journal
}

func (d journaledDir) Sync() error     { return d.j.SyncDir(d.name, d.File.Sync) }
func (d journaledDir) SyncData() error { return d.Sync() }

func (fsys journaled) wrap(name string, f vfs.File, fresh bool, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	raw, err := os.Open(name)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if fresh {
		if err := fsys.j.Fresh(raw); err != nil {
			return nil, errors.Join(err, f.Close(), raw.Close())
		}
	}
	return &journaledFile{File: f, j: fsys.j, raw: raw}, nil
}

// journaledFile counts where the next Write goes: a file is written by one goroutine, and not read
// meanwhile.
type journaledFile struct {
	vfs.File
	j   *undo.Journal
	raw *os.File
	at  int64
}

func (f *journaledFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	f.at += int64(n)
	return n, err
}

func (f *journaledFile) Write(p []byte) (n int, err error) {
	err = f.j.Write(f.raw, f.at, int64(len(p)), func() error {
		n, err = f.File.Write(p)
		return err
	})
	f.at += int64(n)
	return n, err
}

func (f *journaledFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.j.Write(f.raw, off, int64(len(p)), func() error {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *journaledFile) Sync() error     { return f.j.Sync(f.raw, f.File.Sync) }
func (f *journaledFile) SyncData() error { return f.j.Sync(f.raw, f.File.SyncData) }

// SyncTo starts writing at most: it promises nothing.
func (f *journaledFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	if full && err == nil {
		return true, f.SyncData()
	}
	return full, err
}

// Fd gives no descriptor away, past which writes could go.
func (f *journaledFile) Fd() uintptr { return vfs.InvalidFd }

func (f *journaledFile) Close() error { return errors.Join(f.File.Close(), f.raw.Close()) }
