package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/vfs"
)

// rotate ends the active segment and begins the next, with room for a record of at least size.
//
// The order makes every crash in between readable. The new file gets its header, is synced and
// takes its name first; only then is the record that seals the old segment written and synced.
// So a sealed segment without a successor means that a file is missing, and a successor without a
// record behind an unsealed segment is one that was never used.
func (l *Log) rotate(size int64) error {
	c := &l.end
	if err := l.flush(); err != nil {
		return err
	}
	number := c.active.number + 1
	dir := binary.AppendUvarint([]byte{byte(opSeal)}, uint64(number))
	h := recordHeader{prev: c.prev, seq: c.seq + 1, synced: c.synced}
	seal, crc := appendRecord(nil, c.active.saltCRC, h, dir, nil)
	next, err := l.newSegment(segmentHeader{
		number: number, capacity: max(l.nextCapacity(c.active), segmentStart+size+sealRoom),
		baseSeq: c.seq + 2, prev: crc,
	})
	if err != nil {
		return err
	}
	if _, err := c.active.file.WriteAt(seal, c.off); err != nil {
		return fmt.Errorf("raftlog: seal: %w", err)
	}
	c.seq++
	if err := l.syncActive(); err != nil {
		return err
	}
	c.prev, c.active, c.off, c.askedSpare = crc, next, segmentStart, false
	l.segs.push(next)
	l.wakeKeeper()
	return nil
}

// nextCapacity lets a small log begin small: each segment may be four times as large as the last,
// up to the size that is configured.
func (l *Log) nextCapacity(active *segment) int64 {
	return min(l.opts.SegmentSize, 4*active.capacity)
}

// newSegment turns a spare file into the segment h describes, whose capacity is the least wanted.
func (l *Log) newSegment(h segmentHeader) (*segment, error) {
	name := l.path(segmentName(h.number))
	spare, capacity, err := l.takeSpare(h.capacity)
	if err != nil {
		return nil, fmt.Errorf("raftlog: new segment: %w", err)
	}
	h.capacity, h.salt = capacity, rand.Uint64()
	b := h.encode()
	for _, off := range []int64{0, headerCopy} {
		if _, err := spare.WriteAt(b, off); err != nil {
			return nil, fmt.Errorf("raftlog: segment header: %w", err)
		}
	}
	if err := spare.Sync(); err != nil {
		return nil, fmt.Errorf("raftlog: segment header: %w", err)
	}
	if err := l.fs.Rename(spare.Name(), name); err != nil {
		return nil, fmt.Errorf("raftlog: new segment: %w", err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return nil, fmt.Errorf("raftlog: new segment: %w", err)
	}
	l.stats.bytesOnDisk.Add(capacity)
	return newSegment(h, renamed{spare, name}, l.releaseSegment), nil
}

// renamed is a file that goes by another name than it was opened with.
type renamed struct {
	vfs.File
	name string
}

func (f renamed) Name() string { return f.name }

// spareFile is a file with blocks but without content of value.
type spareFile struct {
	name string
	size int64
}

// takeSpare opens a prepared file of at least size bytes, or makes one now.
func (l *Log) takeSpare(size int64) (vfs.File, int64, error) {
	l.spares.mu.Lock()
	var found spareFile
	for i, s := range l.spares.mu.files {
		if s.size >= size {
			found = s
			l.spares.mu.files = append(l.spares.mu.files[:i], l.spares.mu.files[i+1:]...)
			break
		}
	}
	l.spares.mu.Unlock()
	if found.name != "" {
		f, err := l.fs.Open(found.name)
		return f, found.size, err
	}
	s, err := l.makeSpare(size, func(time.Duration) {}) // a writer waits for it
	if err != nil {
		return nil, 0, err
	}
	f, err := l.fs.Open(s.name)
	return f, s.size, err
}

// sparePiece is how much of a spare is written at a time.
const sparePiece = 4 << 20

// makeSpare writes a file of zeros. It is not in the list of spares yet. Between two pieces it
// calls rest with what the last one took, so that it can leave disk and processor to the log's own
// syncs.
func (l *Log) makeSpare(size int64, rest func(took time.Duration)) (spareFile, error) {
	name := l.path(fmt.Sprintf("%010d%s", l.spares.next.Add(1), spareSuffix))
	f, err := l.fs.Create(name)
	if err != nil {
		return spareFile{}, err
	}
	for done := int64(0); done < size && err == nil; {
		done = min(size, done+sparePiece)
		began := time.Now()
		if err = f.Allocate(done); err == nil {
			err = f.Sync()
		}
		if err == nil && done < size {
			rest(time.Since(began))
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		// Half a spare is of no use, and on a full disk in the way.
		return spareFile{}, errors.Join(err, l.fs.Remove(name))
	}
	return spareFile{name, size}, nil
}

// releaseSegment makes a dropped segment a spare, or removes it. It runs when the last reader is
// gone. A failure costs space, not data: Open meets the file again.
func (l *Log) releaseSegment(s *segment) {
	l.stats.bytesOnDisk.Add(-s.capacity)
	name := l.path(fmt.Sprintf("%010d%s", l.spares.next.Add(1), spareSuffix))
	old := s.file.Name()
	err := s.file.Close()
	keep := s.capacity >= l.opts.SegmentSize && s.capacity <= 2*l.opts.SegmentSize
	l.spares.mu.Lock()
	keep = keep && len(l.spares.mu.files) < l.opts.RecycleSegments
	l.spares.mu.Unlock()
	if keep {
		err = errors.Join(err, l.fs.Rename(old, name))
	} else {
		err = errors.Join(err, l.fs.Remove(old))
	}
	// Only when the old name is gone for good may the content be overwritten.
	if err = errors.Join(err, l.fs.SyncDir(l.dir)); err != nil {
		l.logger.Warn("dropping a segment left a file behind", zap.String("file", old),
			zap.Error(err))
		return
	}
	if keep {
		l.spares.mu.Lock()
		l.spares.mu.files = append(l.spares.mu.files, spareFile{name, s.capacity})
		l.spares.mu.Unlock()
	}
}

// The mark file: two slots in pages of their own, written in turn after each sync, not synced
// itself. It tells up to which record the log was synced, which the last record cannot tell of
// itself. It may be old after a power loss, but it never says too much.
//
//	slot | magic "RLMK" | crc u32 | seq u64 | clean u64 |
const (
	markMagic   = "RLMK"
	markLen     = 24
	markSpacing = 4096
)

type mark struct {
	seq   uint64
	clean bool // the log was closed: nothing lies behind seq
}

func (l *Log) writeMark(clean bool) error {
	b := l.markBuf[:]
	copy(b, markMagic)
	binary.LittleEndian.PutUint64(b[8:], l.end.synced)
	binary.LittleEndian.PutUint64(b[16:], 0)
	if clean {
		b[16] = 1
	}
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	l.end.markSlot ^= 1
	if _, err := l.mark.WriteAt(b, int64(l.end.markSlot)*markSpacing); err != nil {
		return fmt.Errorf("raftlog: mark: %w", err)
	}
	return nil
}

// openMark reads the newer valid slot; without one nothing is known, which is not an error.
func (l *Log) openMark() (m mark, existed bool, err error) {
	name := l.path(markName)
	f, err := l.fs.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = l.fs.Create(name); err == nil {
			err = errors.Join(f.Allocate(2*markSpacing), f.Sync())
		}
	} else {
		existed = true
	}
	if err != nil {
		return m, existed, fmt.Errorf("raftlog: mark: %w", err)
	}
	l.mark = f
	for slot := range 2 {
		var b [markLen]byte
		if _, err := f.ReadAt(b[:], int64(slot)*markSpacing); err != nil {
			continue
		}
		if string(b[:4]) != markMagic ||
			crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
			continue
		}
		s := mark{binary.LittleEndian.Uint64(b[8:]), b[16] == 1}
		// At equal seq the clean one wins only if it is the later one; slots do not tell, so a
		// log that was opened again is recognised by openDone, which overwrites both.
		if s.seq > m.seq || s.seq == m.seq && s.clean {
			m = s
			l.end.markSlot = slot
		}
	}
	return m, existed, nil
}
