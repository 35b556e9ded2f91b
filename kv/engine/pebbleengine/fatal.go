package pebbleengine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble does not survive some errors, and does not return them. It calls Logger.Fatalf and relies
// on it not to return; or it panics, often with its mutex unlocked below functions that will unlock
// it when the panic passes, which ends the process with a dump and without the cause. So nothing
// may unwind through pebble: the error is reported (db.fail), and the goroutine that met it stops
// there for good, with whatever locks it holds. Where a caller of ours may be that goroutine, the
// work is done by another one (detached), which is left behind. The engine is of no use any more,
// and its owner learns it from Options.OnFailure.

// stop reports err and never returns.
func (d *db) stop(err error) {
	_ = d.fail(err) // it is the answer of every later call
	select {}
}

// logger sends pebble's messages where ours go.
type logger struct{ d *db }

func (l *logger) Infof(format string, args ...any) {
	l.d.opts.Logger.Debug(fmt.Sprintf(format, args...))
}

func (l *logger) Errorf(format string, args ...any) {
	l.d.opts.Logger.Warn(fmt.Sprintf(format, args...))
}

// Fatalf must not return, and does not unwind.
func (l *logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	for _, a := range args {
		if cause, ok := a.(error); ok {
			err = fmt.Errorf("%s: %w",
				strings.TrimSuffix(fmt.Sprintf(format, args...), cause.Error()), cause)
		}
	}
	l.d.stop(err)
}

// detached runs f, which calls pebble, in a goroutine of its own. It returns when f does, or with
// the engine's failure; then f may never end.
func (d *db) detached(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- d.guard(f) }() // ends with f, or with the process
	select {
	case err := <-done:
		return err
	case <-d.failedCh:
	}
	select {
	case err := <-done: // an error that f returned says more than that of another goroutine
		return err
	default:
		return d.failure()
	}
}

// write applies a batch without sync. It does so detached where the write may have to begin a new
// log, or may stall: if the flush keeps failing, a stalled write never comes back.
func (d *db) write(b *pebble.Batch) error {
	apply := func() error { return d.p.Apply(b, pebble.NoSync) }
	fits, behind := d.room.take(b), d.pacer.immutable.Load() >= nearStall
	if d.room.reached(behind) {
		apply = func() error { return errors.Join(d.p.Apply(b, pebble.NoSync), d.flushEarly()) }
	} else if fits && !behind {
		return d.guard(apply)
	}
	return d.detached(apply)
}

// rimFS stops, once the engine is open, the goroutines that meet an error of a file which pebble
// answers with a panic: those of its log, and the sync of its directory. While it opens, errors are
// returned.
type rimFS struct {
	vfs.FS
	d *db
}

func (fs rimFS) Unwrap() vfs.FS { return fs.FS }

func isLog(name string) bool { return strings.HasSuffix(name, ".log") }

// check returns err while the engine opens, and else only if there is none.
func (fs rimFS) check(err error) error {
	if err != nil && fs.d.armed.Load() {
		fs.d.stop(fmt.Errorf("write-ahead log: %w", err))
	}
	return err
}

func (fs rimFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, category)
	return fs.wrap(name, f, err)
}

func (fs rimFS) ReuseForWrite(
	oldName, newName string, category vfs.DiskWriteCategory,
) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(oldName, newName, category)
	return fs.wrap(newName, f, err)
}

func (fs rimFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if !isLog(name) {
		return f, err
	}
	if fs.check(err) != nil {
		return nil, err
	}
	return rimFile{f, fs}, nil
}

func (fs rimFS) OpenDir(name string) (vfs.File, error) {
	f, err := fs.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return rimFile{f, fs}, nil
}

// rimFile is a file of the log, or the directory.
type rimFile struct {
	vfs.File
	fs rimFS
}

func (f rimFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.check(err)
}

func (f rimFile) Sync() error     { return f.fs.check(f.File.Sync()) }
func (f rimFile) SyncData() error { return f.fs.check(f.File.SyncData()) }
func (f rimFile) Close() error    { return f.fs.check(f.File.Close()) }

func (f rimFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.fs.check(err)
}

func (f rimFile) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	return info, f.fs.check(err)
}
