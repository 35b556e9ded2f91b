package undo

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

const pageSize = 4096

// Lost counts what Lose has taken away.
type Lost struct {
	Names int // creations, renamings and removals
	Bytes int64
	Files int // that lost bytes
}

func (l Lost) String() string {
	return fmt.Sprintf("%d bytes of %d files and %d names", l.Bytes, l.Files, l.Names)
}

// Lose takes a random part of what was not durable away from the files below data, and ends the
// journal in dir. No process may use either.
func Lose(dir, data string, rng *rand.Rand) (Lost, error) {
	var lost Lost
	recs, err := read(dir)
	if err != nil {
		return lost, err
	}
	names, writes := unsynced(recs)
	// Half of the time all names are kept: then more is lost in the files that they name.
	if len(names) > 0 && rng.IntN(2) == 0 {
		keep := rng.IntN(len(names) + 1)
		for _, rec := range slices.Backward(names[keep:]) {
			if err := undoName(dir, rec); err != nil {
				return lost, fmt.Errorf("undo %s of %s: %w", rec.Kind, rec.Path, err)
			}
			lost.Names++
		}
	}
	paths, err := byInode(data)
	if err != nil {
		return lost, err
	}
	inodes := make([]uint64, 0, len(writes))
	for ino := range writes {
		inodes = append(inodes, ino)
	}
	// the seed decides, not the map
	slices.SortFunc(inodes, func(a, b uint64) int {
		return int(writes[a][0].Seq) - int(writes[b][0].Seq)
	})
	for _, ino := range inodes {
		path, ok := paths[ino]
		if !ok {
			continue // removed since
		}
		n, err := undoWrites(path, writes[ino], rng)
		if err != nil {
			return lost, fmt.Errorf("undo writes of %s: %w", path, err)
		}
		if n > 0 {
			lost.Bytes += n
			lost.Files++
		}
	}
	return lost, os.RemoveAll(dir)
}

// unsynced returns the changes of names that are not durable, in order, and the writes by file.
func unsynced(recs []record) (names []record, writes map[uint64][]record) {
	writes = map[uint64][]record{}
	for _, rec := range recs {
		switch rec.Kind {
		case kindFresh:
			delete(writes, rec.Inode)
		case kindWrite:
			writes[rec.Inode] = append(writes[rec.Inode], rec)
		case kindSync:
			writes[rec.Inode] = slices.DeleteFunc(writes[rec.Inode], func(w record) bool {
				return w.Seq <= rec.UpTo
			})
			if len(writes[rec.Inode]) == 0 {
				delete(writes, rec.Inode)
			}
		case kindSyncDir:
			names = slices.DeleteFunc(names, func(n record) bool {
				return n.Seq <= rec.UpTo && filepath.Dir(n.Path) == rec.Path
			})
		default:
			names = append(names, rec)
		}
	}
	return names, writes
}

// undoName takes a change of a name back. The process may have been killed between the record and
// the deed, so that there is nothing to undo.
func undoName(dir string, rec record) error {
	aside := filepath.Join(dir, rec.Aside)
	missing := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	back := func(to string) error {
		if rec.Aside == "" {
			return nil
		}
		// the same file still, when the deed was not done
		if err := missing(os.Remove(to)); err != nil {
			return err
		}
		return os.Link(aside, to)
	}
	switch rec.Kind {
	case kindCreate:
		return missing(os.Remove(rec.Path))
	case kindMkdir:
		return os.RemoveAll(rec.Path) // and what is in it, synced or not
	case kindRemove:
		return back(rec.Path)
	case kindRename:
		if _, err := os.Lstat(rec.Path); err == nil {
			return nil // not done
		}
		if err := missing(os.Rename(rec.To, rec.Path)); err != nil {
			return err
		}
		return back(rec.To)
	default:
		return fmt.Errorf("not a change of a name")
	}
}

func byInode(root string) (map[uint64]string, error) {
	paths := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		paths[inode(info)] = path
		return nil
	})
	return paths, err
}

// undoWrites leaves each page of the file in the state after one of its writes, or before all of
// them, and returns how many bytes it changed or cut.
func undoWrites(path string, writes []record, rng *rand.Rand) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// keep says how many of the writes page p still shows: for the file as a whole, where a write
	// may end in the middle, or for each page.
	cut := rng.IntN(len(writes) + 1)
	torn := cut < len(writes) && rng.IntN(2) == 0
	var tornAt int64 // pages of the write after the cut before this one are kept
	if torn {
		w := writes[cut]
		tornAt = w.Off/pageSize + rng.Int64N(w.Len/pageSize+2)
	}
	keep := func(page int64) int {
		if torn && page < tornAt {
			return cut + 1
		}
		return cut
	}
	if rng.IntN(2) == 0 {
		drawn := map[int64]int{}
		keep = func(page int64) int {
			n, ok := drawn[page]
			if !ok {
				n = rng.IntN(len(writes) + 1)
				drawn[page] = n
			}
			return n
		}
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	// What was durable, and what is kept beyond it.
	size, have := writes[0].Size, info.Size()
	var changed int64
	for i, w := range slices.Backward(writes) {
		for from := w.Off; from < w.Off+w.Len; {
			page := from / pageSize
			to := min(w.Off+w.Len, (page+1)*pageSize)
			if i < keep(page) {
				size = max(size, to)
			} else {
				n, err := restore(f, w, from, min(to, have))
				if err != nil {
					return changed, err
				}
				changed += n
			}
			from = to
		}
	}
	size = min(size, have) // the last write may not have been done, or in part
	if size < have && rng.IntN(2) == 0 {
		changed += have - size
		err = f.Truncate(size)
	}
	return changed, err
}

// restore writes what was at [from, to) before the write w: its old bytes, zeros beyond them.
func restore(f *os.File, w record, from, to int64) (int64, error) {
	if from >= to {
		return 0, nil
	}
	old := make([]byte, to-from)
	if at := from - w.Off; at < int64(len(w.Old)) {
		copy(old, w.Old[at:])
	}
	_, err := f.WriteAt(old, from)
	return to - from, err
}
