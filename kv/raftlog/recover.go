package raftlog

import (
	"errors"
	"fmt"
	"io"

	"go.uber.org/zap"
)

// firstSegmentSize is the size of a new log's first segment.
const firstSegmentSize = 4 << 20

// recovery is the state of reading the log back at Open.
type recovery struct {
	l *Log
	// next is the number the next record must have, prev the CRC it must carry.
	next uint64
	prev uint32
	// proof is the highest record of which something says that it had been synced.
	proof uint64
	clean bool
	// first is the oldest segment the log still needs, as far as it says.
	first   uint32
	damaged []lostEntry
	// leftover are segments before a gap in the numbers: dropped, but not removed any more.
	leftover []uint32
	c        contents
}

// lostEntry is an entry whose payload is damaged; it matters only if the entry is alive at the end.
type lostEntry struct {
	region, index uint64
	seg, off      uint32
	err           *DamageError
}

func (l *Log) recover() error {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return fmt.Errorf("raftlog: %w", err)
	}
	m, marked, err := l.openMark()
	if err != nil {
		return err
	}
	numbers, err := l.inventory(names)
	if err != nil {
		return err
	}
	if len(numbers) == 0 {
		if marked && m.seq > 0 {
			return &DamageError{File: l.path(markName), Detail: fmt.Sprintf(
				"the log had %d records, but there is no segment file", m.seq)}
		}
		return l.create()
	}
	r := &recovery{l: l, proof: m.seq, clean: m.clean, first: 1}
	if err := r.openSegments(numbers); err != nil {
		return err
	}
	if err := r.replay(); err != nil {
		return err
	}
	if err := r.finish(); err != nil {
		return err
	}
	return l.openDone()
}

// inventory sorts the directory's files: segment numbers in order, spares into the list of spares.
func (l *Log) inventory(names []string) (numbers []uint32, err error) {
	highest := uint32(0)
	for _, name := range names {
		if n, ok := parseName(name, segmentSuffix); ok {
			numbers = append(numbers, n) // names are sorted, and so are their numbers
			continue
		}
		n, ok := parseName(name, spareSuffix)
		if !ok {
			continue
		}
		highest = max(highest, n)
		f, err := l.fs.Open(l.path(name))
		if err != nil {
			return nil, fmt.Errorf("raftlog: spare: %w", err)
		}
		size, err := f.Size()
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("raftlog: spare: %w", err)
		}
		// A crash while it was being prepared leaves a short one.
		if size < l.opts.SegmentSize || len(l.spares.mu.files) >= l.opts.RecycleSegments {
			if err := l.fs.Remove(l.path(name)); err != nil {
				return nil, fmt.Errorf("raftlog: spare: %w", err)
			}
			continue
		}
		l.spares.mu.files = append(l.spares.mu.files,
			spareFile{l.path(name), size &^ (recordAlign - 1)})
	}
	l.spares.next.Store(highest)
	return numbers, nil
}

// create begins a new log.
func (l *Log) create() error {
	s, err := l.newSegment(segmentHeader{
		number: 1, capacity: min(l.opts.SegmentSize, firstSegmentSize), baseSeq: 1,
	})
	if err != nil {
		return err
	}
	l.segs.push(s)
	l.end.active, l.end.off = s, segmentStart
	return l.openDone()
}

// openDone overwrites the mark of the last close, durably: a mark that says clean must never stand
// beside records that came later.
func (l *Log) openDone() error {
	for range 2 {
		if err := l.writeMark(false); err != nil {
			return err
		}
	}
	if err := errors.Join(l.mark.Sync(), l.fs.SyncDir(l.dir)); err != nil {
		return fmt.Errorf("raftlog: mark: %w", err)
	}
	return nil
}

// openSegments opens the files from the highest number downwards as far as there is no gap; what
// lies before a gap was dropped and not removed, which finish verifies and completes.
func (r *recovery) openSegments(numbers []uint32) error {
	i := len(numbers) - 1
	for i > 0 && numbers[i-1]+1 == numbers[i] {
		i--
	}
	for _, n := range numbers[i:] {
		s, err := r.openSegment(n)
		if err != nil {
			return err
		}
		r.l.segs.push(s)
		r.l.stats.bytesOnDisk.Add(s.capacity)
	}
	r.leftover = numbers[:i]
	return nil
}

func (r *recovery) openSegment(number uint32) (*segment, error) {
	name := r.l.path(segmentName(number))
	f, err := r.l.fs.Open(name)
	if err != nil {
		return nil, fmt.Errorf("raftlog: %w", err)
	}
	h, err := readSegmentHeader(f)
	if err == nil && h.number != number {
		err = fmt.Errorf("the header says segment %d", h.number)
	}
	var size int64
	if err == nil {
		size, err = f.Size()
	}
	if err == nil && size < h.capacity {
		err = fmt.Errorf("the file has %d bytes, it had %d", size, h.capacity)
	}
	if err != nil {
		return nil, errors.Join(&DamageError{File: name, Detail: err.Error()}, f.Close())
	}
	return newSegment(h, f, r.l.releaseSegment), nil
}

// readSegmentHeader takes whichever copy is valid.
func readSegmentHeader(f io.ReaderAt) (segmentHeader, error) {
	var h segmentHeader
	var err error
	for _, off := range []int64{0, headerCopy} {
		b := make([]byte, headerLen)
		if _, err = f.ReadAt(b, off); err != nil {
			continue
		}
		if h, err = decodeSegmentHeader(b); err == nil {
			return h, nil
		}
	}
	return h, err
}

// replay reads the segments in order and leaves l.end behind the last record.
func (r *recovery) replay() error {
	segs := r.l.segs.load().segs
	r.next, r.prev = segs[0].baseSeq, segs[0].prev
	for i, s := range segs {
		if s.baseSeq != r.next || s.prev != r.prev {
			return &DamageError{File: s.file.Name(), Detail: fmt.Sprintf(
				"begins with record %d, but the segment before ends with %d", s.baseSeq, r.next-1)}
		}
		sealed, off, err := r.replaySegment(s, segs[i+1:])
		if err != nil {
			return err
		}
		if sealed && i == len(segs)-1 {
			return &DamageError{
				File: r.l.path(segmentName(s.number + 1)), Detail: "the file is missing",
			}
		}
		if !sealed {
			return r.endAt(s, off, segs[i+1:])
		}
	}
	return nil
}

// endAt makes off in s the end of the log. Segments behind it can only be one that was never used.
func (r *recovery) endAt(s *segment, off int64, unused []*segment) error {
	l := r.l
	for _, u := range unused {
		l.stats.bytesOnDisk.Add(-u.capacity)
		if err := errors.Join(u.file.Close(), l.fs.Remove(u.file.Name())); err != nil {
			return fmt.Errorf("raftlog: %w", err)
		}
	}
	if len(unused) > 0 {
		t := l.segs.load()
		l.segs.p.Store(&segTable{first: t.first, segs: t.segs[:len(t.segs)-len(unused)]})
	}
	l.end.active, l.end.off = s, off
	l.end.seq, l.end.prev = r.next-1, r.prev
	return nil
}

// finish verifies that nothing is missing, settles damage and removes what a crash left behind.
func (r *recovery) finish() error {
	l := r.l
	t := l.segs.load()
	if t.first > r.first {
		return &DamageError{File: l.path(segmentName(t.first - 1)), Detail: "the file is missing"}
	}
	// What was read may be in the page cache only: a process that died before its sync.
	for _, s := range t.segs[max(0, len(t.segs)-2):] {
		if err := s.file.Sync(); err != nil {
			return fmt.Errorf("raftlog: sync: %w", err)
		}
	}
	l.end.synced = l.end.seq
	l.stats.synced.Store(l.end.seq)
	if err := r.removeLeftovers(); err != nil {
		return err
	}
	for _, id := range l.Regions() {
		reg := l.region(id)
		l.normalise(reg)
		reg.damage = r.damageOf(reg)
		if reg.damage != nil {
			l.logger.Error("region's raft log is damaged", zap.Uint64("region-id", id),
				zap.Error(reg.damage))
		}
	}
	return nil
}

// removeLeftovers drops segments that the log says it does not need any more.
func (r *recovery) removeLeftovers() error {
	l := r.l
	for l.segs.load().first < r.first {
		s := l.segs.load().segs[0]
		if s == l.end.active {
			break
		}
		l.segs.popFirst()
		s.unref()
	}
	for _, n := range r.leftover {
		l.logger.Info("removing a dropped segment", zap.Uint32("segment", n))
		if err := l.fs.Remove(l.path(segmentName(n))); err != nil {
			return fmt.Errorf("raftlog: %w", err)
		}
	}
	return nil
}

// normalise drops entries that the truncation point, when it came late, left behind.
func (l *Log) normalise(r *region) {
	n := 0
	for n < len(r.pos) && r.first+uint64(n) <= r.truncIndex {
		n++
	}
	l.uncharge(r.pos[:n])
	r.pos, r.first = r.pos[n:], r.first+uint64(n)
}

// damageOf finds holes in a region's log, and entries alive whose payload is lost.
func (r *recovery) damageOf(reg *region) error {
	if len(reg.pos) > 0 && reg.first != reg.truncIndex+1 {
		return &DamageError{File: r.l.dir, RegionID: reg.id, Index: reg.truncIndex + 1,
			Detail: fmt.Sprintf(
				"the first entry is %d", reg.first)}
	}
	for i, p := range reg.pos {
		if r.l.segs.get(p.seg) == nil {
			return &DamageError{
				File: r.l.dir, RegionID: reg.id, Index: reg.first + uint64(i),
				Detail: "the entry is missing",
			}
		}
	}
	for _, d := range r.damaged {
		if d.region == reg.id && reg.has(d.index) {
			if p := reg.at(d.index); p.seg == d.seg && p.off == d.off {
				return d.err
			}
		}
	}
	return nil
}
