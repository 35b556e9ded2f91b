package raftlog

import (
	"errors"
	"fmt"
	"io"
)

// segReader reads a segment through a window, so that opening a log takes little memory.
type segReader struct {
	s    *segment
	buf  []byte
	base int64
	n    int
}

const readWindow = 256 << 10

// bytes returns n bytes at off, or nil where the segment ends. They are valid until the next call.
func (w *segReader) bytes(off int64, n int) ([]byte, error) {
	if off < 0 || n < 0 || off+int64(n) > w.s.capacity {
		return nil, nil
	}
	if off < w.base || off+int64(n) > w.base+int64(w.n) {
		want := int(min(max(int64(n), readWindow), w.s.capacity-off))
		if cap(w.buf) < want {
			w.buf = make([]byte, want)
		}
		got, err := w.s.file.ReadAt(w.buf[:want], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("raftlog: read %s: %w", w.s.file.Name(), err)
		}
		w.base, w.n = off, got
		if got < n {
			return nil, nil
		}
	}
	return w.buf[off-w.base : off-w.base+int64(n)], nil
}

// record reads the header and the directory at off and verifies them; ok is false if there is no
// valid record of this segment's life.
func (w *segReader) record(off int64) (h recordHeader, dir []byte, ok bool, err error) {
	b, err := w.bytes(off, recordHeaderLen)
	if b == nil || err != nil {
		return h, nil, false, err
	}
	h = decodeHeader(b)
	if h.seq == 0 || h.synced >= h.seq || h.size() > maxRecordLen || off+h.size() > w.s.capacity {
		return h, nil, false, nil
	}
	b, err = w.bytes(off, recordHeaderLen+int(h.dirLen))
	if b == nil || err != nil || !headerAndDirOK(b, w.s.saltCRC) {
		return h, nil, false, err
	}
	return h, b[recordHeaderLen:], true, nil
}

// replaySegment applies the records of s until it is sealed or the log ends in it.
func (r *recovery) replaySegment(s *segment, later []*segment) (sealed bool, off int64, err error) {
	w := &segReader{s: s}
	off = segmentStart
	for {
		h, dir, ok, err := w.record(off)
		if err != nil {
			return false, off, err
		}
		if !ok || h.seq != r.next || h.prev != r.prev {
			return false, off, r.mustBeEnd(w, off, later)
		}
		r.proof = max(r.proof, h.synced)
		if err := decodeDir(dir, int(h.bodyLen), &r.c); err != nil {
			// The CRC was right: this is not damage but a format from elsewhere.
			return false, off, &DamageError{File: s.file.Name(), Offset: off, Detail: err.Error()}
		}
		end, err := r.applyRecord(w, off, h, later)
		if err != nil || end {
			return false, off, err
		}
		r.next, r.prev = r.next+1, h.crc
		off += h.size()
		if n := len(r.c.ops); n > 0 && r.c.ops[n-1].kind == opSeal {
			return true, off, nil
		}
	}
}

// applyRecord checks the payloads of the decoded record at off and applies it. end is true if the
// record is a torn one, with which the log ends.
func (r *recovery) applyRecord(
	w *segReader, off int64, h recordHeader, later []*segment,
) (end bool, err error) {
	bodyOff := off + recordHeaderLen + int64(h.dirLen)
	lost, err := r.checkBodies(w, bodyOff)
	if err != nil {
		return false, err
	}
	if len(lost) > 0 {
		proven, err := r.proven(w, off+h.size(), later)
		if err != nil {
			return false, err
		}
		if !proven {
			return true, nil
		}
		r.damaged = append(r.damaged, lost...)
	}
	at := placed{seg: w.s.number, bodyOff: bodyOff}
	for i := range r.c.ops {
		o := &r.c.ops[i]
		if o.kind == opFirst {
			r.first = max(r.first, uint32(o.a))
		}
		if gap := r.l.gapBefore(o); gap > maxHoles {
			return false,
				&DamageError{File: w.s.file.Name(), Offset: off, RegionID: o.region, Index: o.a,
					Detail: fmt.Sprintf("%d entries are missing beside it", gap)}
		}
		r.l.applyContents(&contents{ops: r.c.ops[i : i+1], ents: r.c.ents}, at)
	}
	return false, nil
}

// maxHoles bounds the memory that replay spends on entries it has not met yet. No log that was ever
// written comes near it.
const maxHoles = 1 << 22

// gapBefore is how many holes applying o would open between its entries and those already there.
func (l *Log) gapBefore(o *op) uint64 {
	if o.kind != opAppend && o.kind != opRewrite {
		return 0
	}
	r := l.region(o.region)
	if r == nil || len(r.pos) == 0 {
		return 0
	}
	end := o.a + uint64(o.entHi-o.entLo)
	switch {
	case o.a > r.last():
		return o.a - r.last()
	case end < r.first && o.kind == opRewrite:
		return r.first - end
	}
	return 0
}

func (r *recovery) checkBodies(w *segReader, bodyOff int64) (lost []lostEntry, err error) {
	for i := range r.c.ops {
		o := &r.c.ops[i]
		off := bodyOff + int64(o.bodyOff)
		for j, m := range r.c.ents[o.entLo:o.entHi] {
			index := o.a + uint64(j)
			b, err := w.bytes(off, m.len())
			if err != nil {
				return nil, err
			}
			if b == nil && m.len() > 0 || bodyCRC(o.region, index, m.term, b) != m.crc {
				lost = append(lost,
					lostEntry{o.region, index, w.s.number, uint32(off), &DamageError{
						w.s.file.Name(), off, o.region, index, "payload checksum does not match",
					}})
			}
			off += int64(m.len())
		}
	}
	return lost, nil
}

// mustBeEnd decides what it means that there is no valid record at off: the end of the log, or
// damage to something that had been synced.
func (r *recovery) mustBeEnd(w *segReader, off int64, later []*segment) error {
	proven, err := r.proven(w, off, later)
	if err != nil || !proven {
		return err
	}
	return &DamageError{File: w.s.file.Name(), Offset: off, Detail: fmt.Sprintf(
		"record %d is damaged or missing, but %d had been synced", r.next, r.proof)}
}

// proven tells whether record r.next is known to have been synced. Beside the mark and the records
// so far it asks what can still be read behind off: a record there says up to where the log had
// been synced when it was written. That a later record is there at all proves nothing; pages that
// were not synced reach the disk in any order.
func (r *recovery) proven(w *segReader, off int64, later []*segment) (bool, error) {
	if r.proof >= r.next {
		return true, nil
	}
	if r.clean && r.proof == r.next-1 {
		return false, nil // the log was closed right here
	}
	for _, s := range later {
		// The seal of the segment before is synced before the first record.
		if _, _, ok, err := (&segReader{s: s}).record(segmentStart); err != nil {
			return false, err
		} else if ok {
			r.proof = max(r.proof, s.baseSeq-1)
		}
	}
	scan := &segReader{s: w.s}
	off = (off + recordAlign - 1) &^ (recordAlign - 1)
	for ; off < w.s.capacity && r.proof < r.next; off += recordAlign {
		b, err := scan.bytes(off, recordHeaderLen)
		if err != nil {
			return false, err
		}
		if b == nil {
			break
		}
		h := decodeHeader(b)
		if h.seq <= r.next || h.synced < r.next ||
			h.seq-r.next > uint64(w.s.capacity)/recordHeaderLen {
			continue
		}
		if _, _, ok, err := scan.record(off); err != nil {
			return false, err
		} else if ok {
			r.proof = max(r.proof, h.synced)
		}
	}
	return r.proof >= r.next, nil
}
