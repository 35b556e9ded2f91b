package raftlog

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// State is what a region's log holds. Last equals TruncatedIndex when there are no entries.
type State struct {
	HardState                     eraftpb.HardState
	First, Last, LastTerm         uint64
	TruncatedIndex, TruncatedTerm uint64
}

// State returns the region's state; false if the log knows nothing of it.
func (l *Log) State(regionID uint64) (State, bool) {
	r := l.region(regionID)
	if r == nil {
		return State{}, false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := State{
		HardState: r.hs, First: r.truncIndex + 1, Last: r.last(), LastTerm: r.truncTerm,
		TruncatedIndex: r.truncIndex, TruncatedTerm: r.truncTerm,
	}
	if n := len(r.pos); n > 0 {
		s.LastTerm = r.pos[n-1].term
	}
	return s, true
}

// Term returns the term of an entry, or of the truncation point. ErrCompacted, ErrUnavailable.
func (l *Log) Term(regionID, index uint64) (uint64, error) {
	r := l.region(regionID)
	if r == nil {
		return 0, ErrUnavailable
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.term(index)
}

// Regions lists the regions the log knows, in order.
func (l *Log) Regions() []uint64 {
	l.regions.mu.RLock()
	ids := make([]uint64, 0, len(l.regions.m))
	for id := range l.regions.m {
		ids = append(ids, id)
	}
	l.regions.mu.RUnlock()
	slices.Sort(ids)
	return ids
}

// Damaged reports damage to what the region's log had durably promised. Such a peer must not vote
// and not count as having its entries; it is to be removed and built anew.
func (l *Log) Damaged(regionID uint64) error {
	r := l.region(regionID)
	if r == nil {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.damage
}

// Entries returns the entries [lo, hi), cut where their sizes exceed maxBytes, but at least one.
// ErrCompacted if lo was truncated, ErrUnavailable if hi-1 is beyond the last entry. The caller
// must not change them; neither does the log.
func (l *Log) Entries(regionID, lo, hi uint64, maxBytes uint64) ([]eraftpb.Entry, error) {
	if lo >= hi {
		return nil, nil
	}
	r := l.region(regionID)
	if r == nil {
		return nil, ErrUnavailable
	}
	r.mu.RLock()
	switch {
	case lo <= r.truncIndex:
		r.mu.RUnlock()
		return nil, ErrCompacted
	case !r.has(hi - 1), !r.has(lo):
		r.mu.RUnlock()
		return nil, ErrUnavailable
	}
	var cached []eraftpb.Entry
	onDisk := hi
	if n := len(r.cache.ents); n > 0 && hi > r.cache.first() {
		from := max(lo, r.cache.first())
		onDisk = from
		cached = r.cache.ents[from-r.cache.first() : hi-r.cache.first() : hi-r.cache.first()]
	}
	if onDisk <= lo {
		r.mu.RUnlock()
		return limitBytes(cached, maxBytes), nil
	}
	read := l.planRead(r, lo, onDisk, maxBytes)
	r.mu.RUnlock()

	l.stats.diskReads.Add(1)
	ents, err := read.run(l)
	if err != nil {
		l.noteDamage(r, err)
		return nil, err
	}
	if uint64(len(ents)) == onDisk-lo && len(cached) > 0 {
		ents = append(ents, cached...)
	}
	return limitBytes(ents, maxBytes), nil
}

// limitBytes cuts ents where their encoded sizes exceed limit, but leaves one.
func limitBytes(ents []eraftpb.Entry, limit uint64) []eraftpb.Entry {
	size := uint64(0)
	for i := range ents {
		size += uint64(ents[i].Size())
		if i > 0 && size > limit {
			return ents[:i:i]
		}
	}
	return ents
}

// noteDamage remembers damage that a read met, unless the entry is gone by now.
func (l *Log) noteDamage(r *region, err error) {
	var d *DamageError
	if !errors.As(err, &d) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.damage == nil && r.has(d.Index) {
		r.damage = err
	}
}

// diskRead is a planned read of consecutive entries. It holds a reference to every segment in it,
// so that none is used again before the bytes are here.
type diskRead struct {
	region uint64
	lo     uint64
	pos    []entPos
	segs   []*segment
}

// planRead decides which entries to read, with r.mu held.
func (l *Log) planRead(r *region, lo, hi, maxBytes uint64) diskRead {
	d := diskRead{region: r.id, lo: lo}
	size := uint64(0)
	for i := lo; i < hi; i++ {
		p := *r.at(i)
		size += uint64(p.len())
		if i > lo && size > maxBytes {
			break
		}
		d.pos = append(d.pos, p)
		if n := len(d.segs); n == 0 || d.segs[n-1] == nil || d.segs[n-1].number != p.seg {
			s := l.segs.get(p.seg)
			if s != nil {
				s.refs.Add(1) // an entry lives in it, so the table's own reference still stands
			}
			d.segs = append(d.segs, s)
		}
	}
	return d
}

// readGap is how many bytes between two entries are worth reading to spare a system call, and
// readChunk how much is read at once.
const (
	readGap   = 4 << 10
	readChunk = 1 << 20
)

func (d *diskRead) run(l *Log) ([]eraftpb.Entry, error) {
	defer func() {
		for _, s := range d.segs {
			if s != nil {
				s.unref()
			}
		}
	}()
	ents := make([]eraftpb.Entry, 0, len(d.pos))
	seg := 0
	for i := 0; i < len(d.pos); {
		for d.segs[seg] == nil || d.segs[seg].number != d.pos[i].seg {
			if d.segs[seg] == nil {
				return nil,
					fmt.Errorf("region %d, entry %d: no position: %w", d.region, d.lo+uint64(i),
						ErrCorrupt)
			}
			seg++
		}
		j := i + 1
		for j < len(d.pos) && d.joins(i, j) {
			j++
		}
		var err error
		if ents, err = d.readRun(ents, d.segs[seg], i, j); err != nil {
			return nil, err
		}
		i = j
	}
	return ents, nil
}

// joins tells whether entry j can be read together with the run that begins at i.
func (d *diskRead) joins(i, j int) bool {
	prev, p := d.pos[j-1], d.pos[j]
	end := int64(prev.off) + int64(prev.len())
	return p.seg == prev.seg && int64(p.off) >= end && int64(p.off)-end <= readGap &&
		int64(p.off)+int64(p.len())-int64(d.pos[i].off) <= readChunk
}

// readRun reads pos[i:j], which lie close together, into one buffer that the entries share.
func (d *diskRead) readRun(ents []eraftpb.Entry, s *segment, i, j int) ([]eraftpb.Entry, error) {
	from := int64(d.pos[i].off)
	buf := make([]byte, int64(d.pos[j-1].off)+int64(d.pos[j-1].len())-from)
	if n, err := s.file.ReadAt(buf, from); err != nil &&
		!(errors.Is(err, io.EOF) && n == len(buf)) {
		if errors.Is(err, io.EOF) {
			return nil,
				&DamageError{
					s.file.Name(), from, d.region, d.lo + uint64(i), "the file is too short",
				}
		}
		return nil, fmt.Errorf("raftlog: read %s: %w", s.file.Name(), err)
	}
	for k := i; k < j; k++ {
		p, index := d.pos[k], d.lo+uint64(k)
		off := int64(p.off) - from
		data := buf[off : off+int64(p.len()) : off+int64(p.len())]
		if bodyCRC(d.region, index, p.term, data) != p.crc {
			return nil,
				&DamageError{
					s.file.Name(), int64(p.off), d.region, index, "payload checksum does not match",
				}
		}
		if len(data) == 0 {
			data = nil
		}
		ents = append(ents, eraftpb.Entry{
			EntryType: eraftpb.EntryType(p.lenType & 15), Term: p.term, Index: index, Data: data,
		})
	}
	return ents, nil
}
