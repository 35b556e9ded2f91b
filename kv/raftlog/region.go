package raftlog

import (
	"slices"
	"sync"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// entPos is where an entry's payload lies. It holds no pointer, so that the collector does not walk
// the positions of a long log.
type entPos struct {
	term    uint64
	off     uint32
	seg     uint32 // 0: not known yet (only while replaying)
	lenType uint32
	crc     uint32
}

func (p entPos) len() int { return int(p.lenType >> 4) }

// entCost is what a live entry counts for in its segment, beside its payload.
const entCost = 16

// region is the in-memory state of one region's log.
//
// Owner: the commit leader changes it, under mu; everyone may read it under mu.
// Invariant: after replay, first == truncIndex+1, and pos has no hole.
type region struct {
	id uint64
	mu sync.RWMutex

	hs    eraftpb.HardState
	hsSeg uint32 // segment with the hard state, 0 if none was ever set

	truncIndex, truncTerm uint64
	truncSeg              uint32

	first uint64
	pos   []entPos

	cache  entCache
	damage error
}

func (r *region) last() uint64 {
	if len(r.pos) == 0 {
		return r.truncIndex
	}
	return r.first + uint64(len(r.pos)) - 1
}

// at returns the position of index, which must be live.
func (r *region) at(index uint64) *entPos { return &r.pos[index-r.first] }

func (r *region) has(index uint64) bool {
	return len(r.pos) > 0 && index >= r.first && index <= r.last()
}

func (r *region) term(index uint64) (uint64, error) {
	switch {
	case index == r.truncIndex:
		return r.truncTerm, nil
	case index < r.truncIndex:
		return 0, ErrCompacted
	case !r.has(index):
		return 0, ErrUnavailable
	}
	return r.at(index).term, nil
}

// placed is where the contents being applied lie.
type placed struct {
	seg     uint32
	bodyOff int64 // of the record's body in the segment
}

// applyContents carries the changes of one record out on the in-memory state.
func (l *Log) applyContents(c *contents, at placed) {
	for i := range c.ops {
		o := &c.ops[i]
		switch o.kind {
		case opFirst, opSeal:
			continue // about segments, seen by those who read them
		case opDelete:
			l.removeRegion(o.region)
			continue
		}
		r := l.regionOrNew(o.region)
		r.mu.Lock()
		l.applyOp(r, o, c.ents[o.entLo:o.entHi], at)
		r.mu.Unlock()
	}
}

func (l *Log) applyOp(r *region, o *op, ents []entMeta, at placed) {
	switch o.kind {
	case opAppend:
		l.applyAppend(r, o, ents, at)
	case opRewrite:
		l.applyRewrite(r, o, ents, at)
	case opHardState:
		l.setHardState(r, eraftpb.HardState{Term: o.a, Vote: o.b, Commit: o.c}, at.seg)
	case opTruncate:
		if o.a > r.truncIndex || r.truncSeg == 0 {
			l.setTruncated(r, o.a, o.b, at.seg)
		}
	case opReset:
		l.dropFrom(r, 0)
		l.setTruncated(r, o.a, o.b, at.seg)
		r.damage = nil
	case opMeta:
		l.setHardState(r, eraftpb.HardState{Term: o.a, Vote: o.b, Commit: o.c}, at.seg)
		l.setTruncated(r, o.d, o.e, at.seg)
	}
}

func (l *Log) setHardState(r *region, hs eraftpb.HardState, seg uint32) {
	l.segs.charge(r.hsSeg, -1, -entCost)
	l.segs.charge(seg, 1, entCost)
	r.hs, r.hsSeg = hs, seg
}

// setTruncated moves the truncation point and drops what is not beyond it.
func (l *Log) setTruncated(r *region, index, term uint64, seg uint32) {
	l.segs.charge(r.truncSeg, -1, -entCost)
	l.segs.charge(seg, 1, entCost)
	r.truncIndex, r.truncTerm, r.truncSeg = index, term, seg
	if len(r.pos) > 0 && r.first <= index {
		n := min(int(index-r.first)+1, len(r.pos))
		l.uncharge(r.pos[:n])
		r.pos = r.pos[n:]
		r.first += uint64(n)
		// Let go of the array once most of it is behind us.
		if cap(r.pos) > 4*len(r.pos)+16 || len(r.pos) == 0 {
			r.pos = slices.Clone(r.pos)
		}
	}
	l.cache.used.Add(-r.cache.dropTo(index))
}

func (l *Log) applyAppend(r *region, o *op, ents []entMeta, at placed) {
	first := o.a
	l.dropFrom(r, first)
	switch {
	case len(r.pos) == 0:
		r.first = first
	case first > r.last()+1:
		// Only while replaying: what is missing lies further on, rewritten.
		r.pos = append(r.pos, make([]entPos, first-r.last()-1)...)
	}
	off := at.bodyOff + int64(o.bodyOff)
	bytes := int64(0)
	for _, m := range ents {
		r.pos = append(r.pos,
			entPos{term: m.term, off: uint32(off), seg: at.seg, lenType: m.lenType, crc: m.crc})
		off += int64(m.len())
		bytes += int64(m.len())
	}
	l.segs.charge(at.seg, int64(len(ents)), bytes+int64(len(ents))*entCost)
	if len(o.appended) > 0 {
		l.cache.add(r, o.appended)
	}
}

// dropFrom discards the entries with an index of from or more.
func (l *Log) dropFrom(r *region, from uint64) {
	if len(r.pos) > 0 && from <= r.last() {
		n := 0
		if from > r.first {
			n = int(from - r.first)
		}
		l.uncharge(r.pos[n:])
		r.pos = r.pos[:n]
	}
	l.cache.used.Add(-r.cache.dropFrom(from))
}

// applyRewrite gives entries that exist a new place. While replaying, the entry may be missing,
// because its first place is gone; then this is where it comes from.
func (l *Log) applyRewrite(r *region, o *op, ents []entMeta, at placed) {
	off := at.bodyOff + int64(o.bodyOff)
	for i, m := range ents {
		index := o.a + uint64(i)
		p := entPos{term: m.term, off: uint32(off), seg: at.seg, lenType: m.lenType, crc: m.crc}
		off += int64(m.len())
		if index <= r.truncIndex && r.truncSeg != 0 {
			continue
		}
		r.makeRoom(index)
		old := r.at(index)
		if old.seg != 0 && old.term != m.term {
			continue
		}
		l.uncharge(r.pos[index-r.first : index-r.first+1])
		*old = p
		l.segs.charge(p.seg, 1, int64(p.len())+entCost)
	}
}

// makeRoom extends pos with holes until it covers index; only replay needs it.
func (r *region) makeRoom(index uint64) {
	switch {
	case len(r.pos) == 0:
		r.first, r.pos = index, append(r.pos, entPos{})
	case index < r.first:
		r.pos = slices.Insert(r.pos, 0, make([]entPos, r.first-index)...)
		r.first = index
	case index > r.last():
		r.pos = append(r.pos, make([]entPos, index-r.last())...)
	}
}

// uncharge takes entries off the accounts of their segments, run by run.
func (l *Log) uncharge(pos []entPos) {
	for i := 0; i < len(pos); {
		seg, bytes, j := pos[i].seg, int64(0), i
		for ; j < len(pos) && pos[j].seg == seg; j++ {
			bytes += int64(pos[j].len()) + entCost
		}
		l.segs.charge(seg, -int64(j-i), -bytes)
		i = j
	}
}

func (l *Log) region(id uint64) *region {
	l.regions.mu.RLock()
	defer l.regions.mu.RUnlock()
	return l.regions.m[id]
}

func (l *Log) regionOrNew(id uint64) *region {
	if r := l.region(id); r != nil {
		return r
	}
	l.regions.mu.Lock()
	defer l.regions.mu.Unlock()
	r := l.regions.m[id]
	if r == nil {
		r = &region{id: id}
		l.regions.m[id] = r
	}
	return r
}

func (l *Log) removeRegion(id uint64) {
	l.regions.mu.Lock()
	r := l.regions.m[id]
	delete(l.regions.m, id)
	l.regions.mu.Unlock()
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l.dropFrom(r, 0)
	l.segs.charge(r.hsSeg, -1, -entCost)
	l.segs.charge(r.truncSeg, -1, -entCost)
	// A reader that still holds r finds an empty log.
	r.hs, r.hsSeg, r.truncSeg, r.truncIndex, r.truncTerm = eraftpb.HardState{}, 0, 0, 0, 0
}
