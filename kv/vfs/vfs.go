// Package vfs is the small part of a file system that the project's own file formats need, as an
// interface, so that tests can put a file system under them that loses what was not synced, fails
// at the k-th operation or runs out of space (package faultfs).
package vfs

import "io"

// FS names files by path, as package os does. Implementations are safe for concurrent use.
type FS interface {
	// Create makes an empty file for reading and writing; an existing one is emptied.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing. Absence satisfies fs.ErrNotExist.
	Open(name string) (File, error)
	// Rename replaces newName if it exists. Durable after SyncDir of the directory.
	Rename(oldName, newName string) error
	Remove(name string) error
	// List returns the names (not paths) in a directory, sorted.
	List(dir string) ([]string, error)
	// Exists tells whether a directory is there.
	Exists(dir string) (bool, error)
	// Mkdir makes one directory; durable.MkdirAll is how to use it. An existing one satisfies
	// fs.ErrExist.
	Mkdir(dir string) error
	// SyncDir makes creations, renames and removals in dir durable, those of directories too.
	SyncDir(dir string) error
}

// File is an open file. Reads and writes go by position; there is no cursor to share.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the content durable, and the size if it changed (fdatasync).
	Sync() error
	// Allocate makes the file at least size bytes long, the new part written with zeros, so that
	// a later Sync of data within it has no metadata to write.
	Allocate(size int64) error
	Size() (int64, error)
	// Name is the path given to Create or Open.
	Name() string
}
