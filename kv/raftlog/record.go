package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Part of the on-disk format; do not change (docs/storage-format.md).
//
//	record    | crc u32 | dirLen u32 | bodyLen u32 | prev u32 | seq u64 | synced u64 | dir | body |
//
// padded to a multiple of 8. crc is over everything after it up to the end of dir, seeded with the
// segment's salt; the entries in body have CRCs of their own in dir, so that damage to a payload
// still tells which entry of which region is lost.
const (
	recordHeaderLen = 32
	recordAlign     = 8
	// maxRecordLen bounds a record, so that lengths fit their 32 bits with room to spare.
	maxRecordLen = 1 << 30
	// maxEntryLen bounds a payload: 28 bits of entMeta.lenType.
	maxEntryLen = 1<<28 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type opKind uint8

// Part of the on-disk format; do not change.
const (
	opAppend    opKind = 1 // region, first, count, then per entry: term, len<<4|type, crc
	opHardState opKind = 2 // region, term, vote, commit
	opTruncate  opKind = 3 // region, index, term
	opReset     opKind = 4 // region, index, term
	opDelete    opKind = 5 // region
	opRewrite   opKind = 6 // as opAppend, but discards nothing
	opMeta      opKind = 7 // region, term, vote, commit, truncated index, truncated term
	opFirst     opKind = 8 // number of the oldest segment from now on
	opSeal      opKind = 9 // number of the next segment; the last record of a segment
)

// op is one change in a batch. The operands a..e are those of the table above, in order.
type op struct {
	kind          opKind
	region        uint64
	a, b, c, d, e uint64
	// Entries: op.a is the first index, ents[entLo:entHi] of the record, the first body at bodyOff.
	entLo, entHi int
	bodyOff      int
	// appended are the entries of an opAppend that is being written, for the cache; nil while
	// replaying.
	appended []eraftpb.Entry
}

// entMeta describes an entry's payload as the directory does.
type entMeta struct {
	term    uint64
	crc     uint32
	lenType uint32 // len<<4 | entry type
}

func (m entMeta) len() int { return int(m.lenType >> 4) }

// contents is a record's directory in decoded form.
type contents struct {
	ops  []op
	ents []entMeta
}

func (c *contents) clear() {
	clear(c.ops) // of entries
	c.ops, c.ents = c.ops[:0], c.ents[:0]
}

// bodyCRC covers the payload and the place it belongs to: a payload found under a wrong index or
// region is as bad as a flipped bit.
func bodyCRC(region, index, term uint64, data []byte) uint32 {
	// Two rounds of multiply and fold; the constants are those of the murmur finaliser.
	h := (region*0xff51afd7ed558ccd ^ index) * 0xc4ceb9fe1a85ec53
	h = (h ^ h>>33 ^ term) * 0xff51afd7ed558ccd
	return crc32.Update(uint32(h>>32), castagnoli, data)
}

func saltCRC(salt uint64) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], salt)
	return crc32.Update(0, castagnoli, b[:])
}

type recordHeader struct {
	crc, dirLen, bodyLen, prev uint32
	seq, synced                uint64
}

// size is the record's length in the file, padding included.
func (h *recordHeader) size() int64 { return recordSize(int(h.dirLen), int(h.bodyLen)) }

func recordSize(dirLen, bodyLen int) int64 {
	n := int64(recordHeaderLen) + int64(dirLen) + int64(bodyLen)
	return (n + recordAlign - 1) &^ (recordAlign - 1)
}

func decodeHeader(b []byte) recordHeader {
	return recordHeader{
		crc:     binary.LittleEndian.Uint32(b[0:]),
		dirLen:  binary.LittleEndian.Uint32(b[4:]),
		bodyLen: binary.LittleEndian.Uint32(b[8:]),
		prev:    binary.LittleEndian.Uint32(b[12:]),
		seq:     binary.LittleEndian.Uint64(b[16:]),
		synced:  binary.LittleEndian.Uint64(b[24:]),
	}
}

// appendRecord appends a whole record to buf and returns its CRC, the next record's prev. Of h it
// takes what is not computed: prev, seq, synced.
func appendRecord(buf []byte, salt uint32, h recordHeader, dir, body []byte) ([]byte, uint32) {
	start := len(buf)
	buf = append(buf, make([]byte, recordHeaderLen)...)
	buf = append(buf, dir...)
	b := buf[start:]
	binary.LittleEndian.PutUint32(b[4:], uint32(len(dir)))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[12:], h.prev)
	binary.LittleEndian.PutUint64(b[16:], h.seq)
	binary.LittleEndian.PutUint64(b[24:], h.synced)
	crc := crc32.Update(salt, castagnoli, b[4:])
	binary.LittleEndian.PutUint32(b, crc)
	buf = append(buf, body...)
	for int64(len(buf)-start) < recordSize(len(dir), len(body)) {
		buf = append(buf, 0)
	}
	return buf, crc
}

// headerAndDirOK tells whether b, which holds header and directory, is what was written.
func headerAndDirOK(b []byte, salt uint32) bool {
	return crc32.Update(salt, castagnoli, b[4:]) == binary.LittleEndian.Uint32(b)
}

var errDirectory = errors.New("malformed directory")

// dirReader decodes the uvarints of a directory; the first fault sticks.
type dirReader struct {
	b   []byte
	bad bool
}

func (r *dirReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *dirReader) crc() uint32 {
	if len(r.b) < 4 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.LittleEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

// decodeDir fills c from a directory whose record has bodyLen bytes of payload. It allocates no
// more than the directory's own length justifies, whatever the directory says.
func decodeDir(dir []byte, bodyLen int, c *contents) error {
	c.clear()
	r := dirReader{b: dir}
	bodyOff := 0
	for len(r.b) > 0 {
		o := op{kind: opKind(r.b[0])}
		r.b = r.b[1:]
		switch o.kind {
		case opAppend, opRewrite:
			o.region, o.a = r.uvarint(), r.uvarint()
			o.bodyOff = bodyOff
			n, err := decodeEnts(&r, &o, c, bodyLen-bodyOff)
			if err != nil {
				return err
			}
			bodyOff += n
		case opHardState:
			o.region, o.a, o.b, o.c = r.uvarint(), r.uvarint(), r.uvarint(), r.uvarint()
		case opTruncate, opReset:
			o.region, o.a, o.b = r.uvarint(), r.uvarint(), r.uvarint()
		case opDelete:
			o.region = r.uvarint()
		case opMeta:
			o.region, o.a, o.b, o.c = r.uvarint(), r.uvarint(), r.uvarint(), r.uvarint()
			o.d, o.e = r.uvarint(), r.uvarint()
		case opFirst, opSeal:
			o.a = r.uvarint()
		default:
			return fmt.Errorf("%w: unknown kind %d", errDirectory, o.kind)
		}
		if r.bad {
			return fmt.Errorf("%w: kind %d is cut short", errDirectory, o.kind)
		}
		c.ops = append(c.ops, o)
	}
	if bodyOff != bodyLen {
		return fmt.Errorf("%w: describes %d of %d payload bytes", errDirectory, bodyOff, bodyLen)
	}
	return nil
}

func decodeEnts(r *dirReader, o *op, c *contents, room int) (int, error) {
	count := r.uvarint()
	// Each entry takes at least 6 bytes of the directory.
	if count == 0 || count > uint64(len(r.b))/6 || o.a == 0 || o.a+count < o.a {
		return 0, fmt.Errorf("%w: %d entries from index %d", errDirectory, count, o.a)
	}
	total := 0
	o.entLo = len(c.ents)
	for range count {
		m := entMeta{term: r.uvarint()}
		lenType := r.uvarint()
		m.crc = r.crc()
		if r.bad || lenType > 1<<32-1 {
			return 0, fmt.Errorf("%w: entry is cut short", errDirectory)
		}
		m.lenType = uint32(lenType)
		total += m.len()
		if total > room {
			return 0, fmt.Errorf("%w: payloads exceed the record", errDirectory)
		}
		c.ents = append(c.ents, m)
	}
	o.entHi = len(c.ents)
	return total, nil
}
