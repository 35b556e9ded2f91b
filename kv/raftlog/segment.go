package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/tinykv/tinykv/kv/vfs"
)

// Part of the on-disk format; do not change.
const (
	segmentMagic   = "TKVRLOG1"
	segmentVersion = 1
	// The header stands twice, in pages of their own, so that no single bad page costs a segment.
	headerLen    = 56
	headerCopy   = 4096
	segmentStart = 8192
	// sealRoom is kept free at the end of each segment for the record that closes it.
	sealRoom = 64

	segmentSuffix = ".rlog"
	spareSuffix   = ".spare"
	markName      = "MARK"
	// minSegmentSize leaves some room for records.
	minSegmentSize = 16 << 10
)

// segmentHeader is what a segment says about itself. salt is drawn anew for each life of the file,
// so that records of an earlier life are never taken for this one's.
type segmentHeader struct {
	number   uint32
	capacity int64
	salt     uint64
	baseSeq  uint64 // of the first record
	prev     uint32 // CRC of the record before the first
}

func (h *segmentHeader) encode() []byte {
	b := make([]byte, headerLen)
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[8:], segmentVersion)
	binary.LittleEndian.PutUint32(b[12:], h.number)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.capacity))
	binary.LittleEndian.PutUint64(b[24:], h.salt)
	binary.LittleEndian.PutUint64(b[32:], h.baseSeq)
	binary.LittleEndian.PutUint32(b[40:], h.prev)
	binary.LittleEndian.PutUint32(b[52:], crc32.Checksum(b[:52], castagnoli))
	return b
}

func decodeSegmentHeader(b []byte) (h segmentHeader, err error) {
	if len(b) < headerLen ||
		crc32.Checksum(b[:52], castagnoli) != binary.LittleEndian.Uint32(b[52:]) {
		return h, fmt.Errorf("header checksum does not match")
	}
	if string(b[:8]) != segmentMagic {
		return h, fmt.Errorf("not a raft log segment")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != segmentVersion {
		return h, fmt.Errorf("format version %d, this program reads %d", v, segmentVersion)
	}
	return segmentHeader{
		number:   binary.LittleEndian.Uint32(b[12:]),
		capacity: int64(binary.LittleEndian.Uint64(b[16:])),
		salt:     binary.LittleEndian.Uint64(b[24:]),
		baseSeq:  binary.LittleEndian.Uint64(b[32:]),
		prev:     binary.LittleEndian.Uint32(b[40:]),
	}, nil
}

// segment is one file of the log. Its counters are atomic: the commit leader changes them under the
// locks of different regions.
type segment struct {
	segmentHeader
	saltCRC uint32
	file    vfs.File
	// items counts live entries and states in the segment, bytes what they take. A segment without
	// items may go, once it is the oldest.
	items, bytes atomic.Int64
	// refs counts readers of the file, and one for being in the table: reused when it drops to 0.
	refs    atomic.Int32
	release func(*segment)
}

func newSegment(h segmentHeader, f vfs.File, release func(*segment)) *segment {
	s := &segment{segmentHeader: h, saltCRC: saltCRC(h.salt), file: f, release: release}
	s.refs.Store(1)
	return s
}

func (s *segment) unref() {
	if s.refs.Add(-1) == 0 {
		s.release(s)
	}
}

// room is the highest offset a record may end at.
func (s *segment) room() int64 { return s.capacity - sealRoom }

// segTable finds segments by number. It is replaced as a whole by the commit leader.
type segTable struct {
	first uint32
	segs  []*segment
}

type segTableRef struct{ p atomic.Pointer[segTable] }

func (t *segTableRef) load() *segTable {
	if v := t.p.Load(); v != nil {
		return v
	}
	return &segTable{}
}

func (t *segTableRef) get(number uint32) *segment {
	v := t.p.Load()
	if v == nil || number < v.first || number-v.first >= uint32(len(v.segs)) {
		return nil
	}
	return v.segs[number-v.first]
}

func (t *segTableRef) charge(number uint32, items, bytes int64) {
	if number == 0 {
		return
	}
	if s := t.get(number); s != nil {
		s.items.Add(items)
		s.bytes.Add(bytes)
	}
}

func (t *segTableRef) push(s *segment) {
	old := t.load()
	next := &segTable{first: old.first, segs: append(append([]*segment(nil), old.segs...), s)}
	if len(old.segs) == 0 {
		next.first = s.number
	}
	t.p.Store(next)
}

func (t *segTableRef) popFirst() {
	old := t.load()
	t.p.Store(&segTable{first: old.first + 1, segs: old.segs[1:]})
}

func segmentName(number uint32) string { return fmt.Sprintf("%010d%s", number, segmentSuffix) }

func parseName(name, suffix string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil && n > 0
}

func (l *Log) path(name string) string { return filepath.Join(l.dir, name) }
