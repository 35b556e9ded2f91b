package undo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

const journalFile = "journal"

// Kinds of records.
const (
	kindFresh   = "fresh" // a new file, whose inode may have been another's
	kindWrite   = "write"
	kindSync    = "sync"
	kindCreate  = "create"
	kindMkdir   = "mkdir"
	kindRename  = "rename"
	kindRemove  = "remove"
	kindSyncDir = "sync-dir"
)

// record is a line of the journal. Inode names a file whatever it is called at the moment.
type record struct {
	Seq   uint64 `json:"seq"`
	Kind  string `json:"kind"`
	Inode uint64 `json:"inode,omitempty"`
	Path  string `json:"path,omitempty"`
	To    string `json:"to,omitempty"` // new name
	// link that keeps what was removed or replaced; none if nothing was
	Aside string `json:"aside,omitempty"`
	// Of a write: where, how long, how long the file was, and what of it lay in the range.
	Off  int64  `json:"off,omitempty"`
	Len  int64  `json:"len,omitempty"`
	Size int64  `json:"size,omitempty"`
	Old  []byte `json:"old,omitempty"`
	// Of a sync: what had happened before it began.
	UpTo uint64 `json:"up_to,omitempty"`
}

// Journal belongs to one process at a time; its methods may be called by any goroutine.
type Journal struct {
	dir string

	mu    sync.Mutex // held over record and deed, so that their order is the same
	f     *os.File
	seq   uint64
	names []record // not durable yet, of this process: to drop their asides
}

// Open continues the journal in dir, or begins one. Everything that it records must be on dir's
// file system.
func Open(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	recs, err := read(dir)
	if err != nil {
		return nil, err
	}
	j := &Journal{dir: dir}
	if len(recs) > 0 {
		j.seq = recs[len(recs)-1].Seq
	}
	j.f, err = os.OpenFile(filepath.Join(dir, journalFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND,
		0o600)
	return j, err
}

// read returns the records of a journal, none if there is no journal. A torn last line was not
// acted on.
func read(dir string) ([]record, error) {
	f, err := os.Open(filepath.Join(dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var recs []record
	for r := bufio.NewReaderSize(f, 1<<20); ; {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 { // so that the next record begins a line of its own
				err = os.Truncate(f.Name(), offset(f, r)-int64(len(line)))
			} else {
				err = nil
			}
			return recs, err
		}
		if err != nil {
			return nil, err
		}
		var rec record
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("%s: record %d: %w", f.Name(), len(recs), err)
		}
		recs = append(recs, rec)
	}
}

func offset(f *os.File, r *bufio.Reader) int64 {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0
	}
	return at - int64(r.Buffered())
}

// add appends a record. The lock must be held.
func (j *Journal) add(rec record) (uint64, error) {
	j.seq++
	rec.Seq = j.seq
	var line bytes.Buffer
	if err := json.NewEncoder(&line).Encode(rec); err != nil {
		return 0, err
	}
	_, err := j.f.Write(line.Bytes())
	return rec.Seq, err
}

// Fresh says that f has just been created.
func (j *Journal) Fresh(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err = j.add(record{Kind: kindFresh, Inode: inode(info)})
	return err
}

// Write lets do write n bytes at off into the file f, which must be readable.
func (j *Journal) Write(f *os.File, off, n int64, do func() error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	rec := record{Kind: kindWrite, Inode: inode(info), Off: off, Len: n, Size: info.Size()}
	if have := min(off+n, info.Size()) - off; have > 0 {
		rec.Old = make([]byte, have)
		if _, err := f.ReadAt(rec.Old, off); err != nil && err != io.EOF {
			return err
		}
	}
	if _, err := j.add(rec); err != nil {
		return err
	}
	return do()
}

// Sync lets do make everything durable that was written to f before.
func (j *Journal) Sync(f *os.File, do func() error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	j.mu.Lock()
	upTo := j.seq
	j.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err = j.add(record{Kind: kindSync, Inode: inode(info), UpTo: upTo})
	return err
}

// SyncDir lets do make all names in dir durable.
func (j *Journal) SyncDir(dir string, do func() error) error {
	j.mu.Lock()
	upTo := j.seq
	j.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.add(record{
		Kind: kindSyncDir, Path: filepath.Clean(dir), UpTo: upTo,
	}); err != nil {
		return err
	}
	left := j.names[:0]
	for _, rec := range j.names {
		switch {
		case rec.Seq > upTo || filepath.Dir(rec.Path) != filepath.Clean(dir):
			left = append(left, rec)
		case rec.Aside != "":
			if err := os.Remove(filepath.Join(j.dir, rec.Aside)); err != nil {
				return err
			}
		}
	}
	j.names = left
	return nil
}

// Create lets do create path. What exists there must have been removed before.
func (j *Journal) Create(path string, do func() error) error {
	return j.name(record{Kind: kindCreate, Path: filepath.Clean(path)}, "", do)
}

// Mkdir lets do make the directory path, which must not exist.
func (j *Journal) Mkdir(path string, do func() error) error {
	return j.name(record{Kind: kindMkdir, Path: filepath.Clean(path)}, "", do)
}

// Remove lets do remove path.
func (j *Journal) Remove(path string, do func() error) error {
	return j.name(record{Kind: kindRemove, Path: filepath.Clean(path)}, path, do)
}

// Rename lets do rename path, within one directory.
func (j *Journal) Rename(path, to string, do func() error) error {
	return j.name(record{Kind: kindRename, Path: filepath.Clean(path), To: filepath.Clean(to)}, to,
		do)
}

// name records a change of names, and keeps the file called lost, if there is one.
func (j *Journal) name(rec record, lost string, do func() error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if lost != "" {
		aside := fmt.Sprintf("aside-%d", j.seq+1)
		switch err := os.Link(lost, filepath.Join(j.dir, aside)); {
		case err == nil:
			rec.Aside = aside
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	var err error
	if rec.Seq, err = j.add(rec); err != nil {
		return err
	}
	j.names = append(j.names, rec)
	return do()
}

func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// Variable names the directory of the process's journal in its environment.
const Variable = "TINYKV_CHAOS_UNDO"

// OfProcess is the journal that the environment asks for, nil if it asks for none.
var OfProcess = sync.OnceValues(func() (*Journal, error) {
	dir := os.Getenv(Variable)
	if dir == "" {
		return nil, nil
	}
	return Open(dir)
})
