package vfs

import (
	"errors"
	"fmt"
	"os"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/pkg/durable"
)

// OS is the real file system.
var OS FS = osFS{}

type osFS struct{}

func (osFS) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Open(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Rename(oldName, newName string) error { return os.Rename(oldName, newName) }
func (osFS) Remove(name string) error             { return os.Remove(name) }
func (osFS) Exists(dir string) (bool, error)      { return durable.OS.Exists(dir) }
func (osFS) Mkdir(dir string) error               { return durable.OS.Mkdir(dir) }
func (osFS) SyncDir(dir string) error             { return durable.SyncDir(dir) }

func (osFS) List(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	sort.Strings(names)
	return names, err
}

type osFile struct{ *os.File }

func (f osFile) Sync() error {
	for {
		// fdatasync spares the inode's time stamps; os.File.Sync would write them each time.
		err := unix.Fdatasync(int(f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.File.Name(), Err: err}
		}
		return nil
	}
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Allocate writes zeros instead of leaving it at fallocate: extents that are allocated but never
// written need a metadata update at their first sync, which is what allocation is to spare.
func (f osFile) Allocate(size int64) error {
	have, err := f.Size()
	if err != nil {
		return err
	}
	if have >= size {
		return nil
	}
	// One contiguous extent if the file system can; not all can (tmpfs does, some refuse).
	if err := unix.Fallocate(int(f.Fd()), 0, have, size-have); err != nil &&
		!errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINTR) {
		return &os.PathError{Op: "fallocate", Path: f.File.Name(), Err: err}
	}
	zeros := make([]byte, min(size-have, 256<<10))
	for off := have; off < size; {
		n := min(size-off, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return fmt.Errorf("allocate %d bytes: %w", size, err)
		}
		off += n
	}
	return nil
}
