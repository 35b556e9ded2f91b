package badgerengine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/internal/syncmark"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func valueLogPath(dir string, fid uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%06d.vlog", fid))
}

// allocated is what a file really takes on the disk.
func allocated(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Blocks) * 512
	}
	return uint64(info.Size())
}

// syncLog makes the value log durable and notes how far. The library writes a transaction to the
// value log before Commit returns, so what has to be synced is in those files. Files that rotation
// closed were synced by it.
func (d *db) syncLog() error {
	commit, position := d.seen.Load(), d.b.GetVLogOffset()
	for fid := d.mark.State().Position >> 32; fid <= position>>32; fid++ {
		if err := fdatasync(valueLogPath(d.opts.Dir, fid)); err != nil &&
			!errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("engine: sync: %w", err)
		}
	}
	return d.mark.Set(syncmark.State{Commit: commit, Position: position}, false)
}

func fdatasync(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fdatasync(int(f.Fd()))
	return errors.Join(err, f.Close())
}

// verifyValueLog reads the value-log files before the library does: all but the last must be whole
// records to their very end, or the library would skip what follows the damage.
func verifyValueLog(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	for i, name := range names { // sorted
		if i == len(names)-1 {
			return nil
		}
		end, size, err := scanValueLog(name)
		if err != nil {
			return err
		}
		if end != size {
			return fmt.Errorf("%w: %s is damaged at offset %d of %d", engine.ErrCorrupt, name, end,
				size)
		}
	}
	return nil
}

// scanValueLog returns where the valid records of a value-log file end.
//
//	record | ^meta u8 | key len u32 | value len u32 | version u64 | meta len u8 | ... | crc u32 |
func scanValueLog(name string) (end, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, fmt.Errorf("engine: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, fmt.Errorf("engine: %w", err)
	}
	r := bufio.NewReaderSize(f, 256<<10)
	var buf []byte
	for {
		var h [18]byte
		if _, err := io.ReadFull(r, h[:]); err != nil || h[0] == 0 {
			return end, info.Size(), nil
		}
		n := int64(binary.BigEndian.Uint32(h[1:])) + int64(binary.BigEndian.Uint32(h[5:])) +
			int64(h[17])
		if end+18+n+4 > info.Size() {
			return end, info.Size(), nil
		}
		if int64(cap(buf)) < n+4 {
			buf = make([]byte, n+4)
		}
		buf = buf[:n+4]
		if _, err := io.ReadFull(r, buf); err != nil {
			return end, info.Size(), nil
		}
		crc := crc32.Update(crc32.Checksum(h[:], castagnoli), castagnoli, buf[:n])
		if crc != binary.BigEndian.Uint32(buf[n:]) {
			return end, info.Size(), nil
		}
		end += 18 + n + 4
	}
}

// zeroTail overwrites what lies behind the end of the value log, if it is not zero already.
func zeroTail(name string, from int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	err = zeroFileTail(f, from)
	return errors.Join(err, f.Close())
}

func zeroFileTail(f *os.File, from int64) error {
	buf, zeros := make([]byte, 256<<10), make([]byte, 256<<10)
	dirty := false
	for off := from; ; {
		n, err := f.ReadAt(buf, off)
		if string(buf[:n]) != string(zeros[:n]) {
			if _, err := f.WriteAt(zeros[:n], off); err != nil {
				return fmt.Errorf("engine: %w", err)
			}
			dirty = true
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("engine: %w", err)
		}
	}
	if dirty {
		return f.Sync()
	}
	return nil
}
