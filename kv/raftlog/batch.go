package raftlog

import (
	"encoding/binary"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Batch gathers changes of any number of regions that become durable together: after a crash either
// all of them are there or none. Changes take effect in the order in which they were added. The
// zero value is an empty batch; Clear makes it ready for use again and keeps its buffers. Not safe
// for concurrent use, and not to be touched during Write.
type Batch struct {
	contents
	// dir and body are the record's two parts, encoded as the batch grows.
	dir, body []byte
	err       error
	req       request
	sims      map[uint64]simRegion
}

// maxKept is the buffer size beyond which Clear lets go of memory: one huge batch must not pin it.
const maxKept = 4 << 20

// Clear empties the batch.
func (b *Batch) Clear() {
	b.contents.clear()
	b.err = nil
	if cap(b.body) > maxKept {
		b.body = nil
	}
	if cap(b.dir) > maxKept {
		b.dir, b.ents, b.ops = nil, nil, nil
	}
	b.dir, b.body = b.dir[:0], b.body[:0]
}

// Empty tells whether nothing was added since Clear.
func (b *Batch) Empty() bool { return len(b.ops) == 0 && b.err == nil }

// Size is about the number of bytes the batch takes in the log.
func (b *Batch) Size() int { return len(b.dir) + len(b.body) }

// Append stores entries, which are consecutive, after discarding any stored entry with an index of
// entries[0].Index or more: that is how a follower replaces an uncommitted tail. They must be
// contiguous with what is left.
//
// The slice must stay as it is until the batch is written; the payloads for ever, since the log's
// cache keeps them. So a payload should not be a part of something larger that its cached entry
// would keep alive.
func (b *Batch) Append(regionID uint64, entries []eraftpb.Entry) {
	if len(entries) == 0 {
		return
	}
	o := b.beginEntries(opAppend, regionID, entries[0].Index, len(entries))
	for i := range entries {
		e := &entries[i]
		if e.Index != entries[0].Index+uint64(i) {
			b.fail("region %d: entry %d follows entry %d", regionID, e.Index,
				entries[0].Index+uint64(i)-1)
			return
		}
		if len(e.Data) > maxEntryLen || e.EntryType < 0 || e.EntryType > 15 {
			b.fail("region %d: entry %d: %d bytes of type %d", regionID, e.Index, len(e.Data),
				e.EntryType)
			return
		}
		m := entMeta{
			term: e.Term, crc: bodyCRC(regionID, e.Index, e.Term, e.Data),
			lenType: uint32(len(e.Data))<<4 | uint32(e.EntryType),
		}
		b.addEntry(m, e.Data)
	}
	o.appended = entries
	b.endEntries(o)
}

func (b *Batch) beginEntries(kind opKind, regionID, first uint64, n int) op {
	o := op{kind: kind, region: regionID, a: first, entLo: len(b.ents), bodyOff: len(b.body)}
	b.dir = append(b.dir, byte(kind))
	b.dir = binary.AppendUvarint(b.dir, regionID)
	b.dir = binary.AppendUvarint(b.dir, first)
	b.dir = binary.AppendUvarint(b.dir, uint64(n))
	return o
}

func (b *Batch) addEntry(m entMeta, data []byte) {
	b.dir = binary.AppendUvarint(b.dir, m.term)
	b.dir = binary.AppendUvarint(b.dir, uint64(m.lenType))
	b.dir = binary.LittleEndian.AppendUint32(b.dir, m.crc)
	b.body = append(b.body, data...)
	b.ents = append(b.ents, m)
}

func (b *Batch) endEntries(o op) {
	o.entHi = len(b.ents)
	b.ops = append(b.ops, o)
}

// SetHardState replaces the region's hard state. A region that is not in the log yet begins empty,
// with first index 1.
func (b *Batch) SetHardState(regionID uint64, hs eraftpb.HardState) {
	b.ops = append(b.ops,
		op{kind: opHardState, region: regionID, a: hs.Term, b: hs.Vote, c: hs.Commit})
	b.encode(opHardState, regionID, hs.Term, hs.Vote, hs.Commit)
}

// Truncate removes the entries up to and including index, whose term stays known. An index that was
// truncated already changes nothing.
func (b *Batch) Truncate(regionID, index, term uint64) {
	b.ops = append(b.ops, op{kind: opTruncate, region: regionID, a: index, b: term})
	b.encode(opTruncate, regionID, index, term)
}

// Reset empties the region's log, or begins it: first = index+1, truncated state {index, term}. The
// hard state is kept.
func (b *Batch) Reset(regionID, index, term uint64) {
	b.ops = append(b.ops, op{kind: opReset, region: regionID, a: index, b: term})
	b.encode(opReset, regionID, index, term)
}

// Delete removes everything about the region.
func (b *Batch) Delete(regionID uint64) {
	b.ops = append(b.ops, op{kind: opDelete, region: regionID})
	b.encode(opDelete, regionID)
}

func (b *Batch) encode(kind opKind, operands ...uint64) {
	b.dir = append(b.dir, byte(kind))
	for _, v := range operands {
		b.dir = binary.AppendUvarint(b.dir, v)
	}
}
