package undo

import (
	"errors"
	"io/fs"
	"os"

	"github.com/tinykv/tinykv/kv/vfs"
)

// FS tells the journal of all that is done through it. Below must be over the files of the system,
// as vfs.OS is.
func (j *Journal) FS(below vfs.FS) vfs.FS { return journaled{FS: below, j: j} }

type journaled struct {
	vfs.FS
	j *Journal
}

func (fsys journaled) Create(name string) (vfs.File, error) {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var f vfs.File
	err := fsys.j.Create(name, func() (err error) {
		f, err = fsys.FS.Create(name)
		return err
	})
	return fsys.wrap(f, true, err)
}

func (fsys journaled) Open(name string) (vfs.File, error) {
	f, err := fsys.FS.Open(name)
	return fsys.wrap(f, false, err)
}

func (fsys journaled) wrap(f vfs.File, fresh bool, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	raw, err := os.OpenFile(f.Name(), os.O_RDONLY, 0)
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

func (fsys journaled) Rename(oldName, newName string) error {
	return fsys.j.Rename(oldName, newName, func() error { return fsys.FS.Rename(oldName, newName) })
}

func (fsys journaled) Remove(name string) error {
	if _, err := os.Lstat(name); err != nil {
		return err // nothing to record
	}
	return fsys.j.Remove(name, func() error { return fsys.FS.Remove(name) })
}

func (fsys journaled) Mkdir(dir string) error {
	return fsys.j.Mkdir(dir, func() error { return fsys.FS.Mkdir(dir) })
}

func (fsys journaled) SyncDir(dir string) error {
	return fsys.j.SyncDir(dir, func() error { return fsys.FS.SyncDir(dir) })
}

// journaledFile reads what is to be overwritten through a descriptor of its own.
type journaledFile struct {
	vfs.File
	j   *Journal
	raw *os.File
}

func (f *journaledFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.j.Write(f.raw, off, int64(len(p)), func() error {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *journaledFile) Allocate(size int64) error {
	have, err := f.Size()
	if err != nil || have >= size {
		return err
	}
	return f.j.Write(f.raw, have, size-have, func() error { return f.File.Allocate(size) })
}

func (f *journaledFile) Sync() error { return f.j.Sync(f.raw, f.File.Sync) }

func (f *journaledFile) Close() error { return errors.Join(f.File.Close(), f.raw.Close()) }
