//go:build !chaos

package pebbleengine

import "github.com/cockroachdb/pebble/v2/vfs"

// files is the file system that Open uses; the tests that take away what was not synced wrap it
// (build tag chaos).
func files() (vfs.FS, error) { return vfs.Default, nil }
