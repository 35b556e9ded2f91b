package pebbleengine

import (
	"errors"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// dirs lets durable.MkdirAll make directories in a file system of pebble's.
type dirs struct{ vfs.FS }

func (d dirs) Exists(dir string) (bool, error) {
	_, err := d.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (d dirs) Mkdir(dir string) error { return d.MkdirAll(dir, 0o700) }

func (d dirs) SyncDir(dir string) error {
	f, err := d.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
