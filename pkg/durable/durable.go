// Package durable makes names durable. A file system may forget a name, of a file or of a
// directory, until the directory that holds it was synced; so a file whose content is synced can be
// gone after a power loss together with the directories above it.
//
// The package is a leaf that stores and the placement service share. It is not a file system: Dirs
// is the little that MkdirAll needs of one, so that the engine's and the tests' file systems can
// give it.
//
// Rule: each creation, renaming or removal is followed by a sync of the directory, before anything
// relies on the change.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Dirs is what MkdirAll needs of a file system.
type Dirs interface {
	// Exists tells whether dir is there.
	Exists(dir string) (bool, error)
	// Mkdir makes one directory. An existing one satisfies fs.ErrExist.
	Mkdir(dir string) error
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
}

// MkdirAll makes dir and what is missing above it, from the top, each durable before the next.
//
// It also syncs the directory above the lowest one that existed, even if nothing is missing. An
// earlier process may have been killed between its Mkdir and its sync. That can concern one
// directory only, because of the order.
func MkdirAll(d Dirs, dir string) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	existed, err := d.Exists(dir)
	if err != nil {
		return err
	}
	if !existed {
		if parent != dir {
			if err := MkdirAll(d, parent); err != nil {
				return err
			}
		}
		if err := d.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	err = d.SyncDir(parent)
	if existed && errors.Is(err, fs.ErrPermission) {
		// A directory above that this user cannot open was made by somebody else.
		return nil
	}
	if err != nil {
		return fmt.Errorf("make %s durable: %w", dir, err)
	}
	return nil
}

// OS is the system's file system; directories that it makes belong to their owner alone.
var OS Dirs = osDirs{}

type osDirs struct{}

func (osDirs) Exists(dir string) (bool, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case !info.IsDir():
		return false, &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	return true, nil
}

func (osDirs) Mkdir(dir string) error   { return os.Mkdir(dir, 0o700) }
func (osDirs) SyncDir(dir string) error { return SyncDir(dir) }

// SyncDir makes creations, renames and removals in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Rename replaces to, in the same directory as from or in another, and makes that durable.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if filepath.Dir(from) == filepath.Dir(to) {
		return nil
	}
	return SyncDir(filepath.Dir(from))
}

// WriteFile replaces the content of a file. After a crash there is the old or the new one, and the
// new one once WriteFile has returned. What is left of a failed attempt is named path + ".tmp".
func WriteFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return Rename(tmp, path)
}
