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
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/kv/engine"
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

// mark is the file that says up to where the value log was synced. It is written after each sync
// and not synced itself: after a power loss it may say too little, never too much.
//
//	| magic "BMRK" | crc u32 | value log offset u64 (file<<32|offset) | commit u64 | clean u64 |
//
// Part of the on-disk format; do not change.
type mark struct {
	mu     sync.Mutex
	f      *os.File
	dir    string
	offset uint64
	seq    uint64
	clean  bool
	slot   int64
	seq2   atomic.Uint64 // the last commit that was seen to be there
}

const (
	markName    = "SYNCED"
	markMagic   = "BMRK"
	markLen     = 32
	markSpacing = 4096
)

func openMark(dir string) (*mark, error) {
	f, err := os.OpenFile(filepath.Join(dir, markName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	m := &mark{f: f, dir: dir}
	for slot := range int64(2) {
		var b [markLen]byte
		if _, err := f.ReadAt(b[:], slot*markSpacing); err != nil {
			continue
		}
		if string(b[:4]) != markMagic || crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
			continue
		}
		offset, seq := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		if offset > m.offset || offset == m.offset && seq >= m.seq {
			m.offset, m.seq, m.clean, m.slot = offset, seq, b[24] == 1, slot
		}
	}
	m.seq2.Store(m.seq)
	return m, nil
}

// sync makes the value log durable and notes how far.
func (m *mark) sync(position func() uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	seq := m.seq2.Load()
	offset := position()
	for fid := m.offset >> 32; fid <= offset>>32; fid++ {
		if err := fdatasync(valueLogPath(m.dir, fid)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("engine: sync: %w", err)
		}
	}
	return m.setLocked(offset, seq, false, false)
}

func fdatasync(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fdatasync(int(f.Fd()))
	return errors.Join(err, f.Close())
}

func (m *mark) set(offset, seq uint64, clean, durable bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.setLocked(offset, seq, clean, durable)
}

func (m *mark) setLocked(offset, seq uint64, clean, durable bool) error {
	m.offset, m.seq, m.clean = offset, seq, clean
	b := make([]byte, markLen)
	copy(b, markMagic)
	binary.LittleEndian.PutUint64(b[8:], offset)
	binary.LittleEndian.PutUint64(b[16:], seq)
	if clean {
		b[24] = 1
	}
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	slots := 1
	if durable {
		slots = 2 // a state that matters must not stand beside an older one
	}
	for range slots {
		m.slot ^= 1
		if _, err := m.f.WriteAt(b, m.slot*markSpacing); err != nil {
			return fmt.Errorf("engine: %w", err)
		}
	}
	if durable {
		if err := m.f.Sync(); err != nil {
			return fmt.Errorf("engine: %w", err)
		}
	}
	return nil
}

func (m *mark) close() error { return m.f.Close() }

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
			return fmt.Errorf("%w: %s is damaged at offset %d of %d", engine.ErrCorrupt, name, end, size)
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
		n := int64(binary.BigEndian.Uint32(h[1:])) + int64(binary.BigEndian.Uint32(h[5:])) + int64(h[17])
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
