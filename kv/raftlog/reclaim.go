package raftlog

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Garbage is tolerated up to as much as there is live data, and this many segments.
const slackSegments = 2

// keepStep is how much one step of the keeper rewrites while writers wait.
const keepStep = 256 << 10

// startKeeper runs the goroutine that prepares spare segments and reclaims old ones. Log owns it;
// Close ends it.
func (l *Log) startKeeper() {
	l.keeper.wake = make(chan struct{}, 1)
	l.keeper.stop = make(chan struct{})
	l.keeper.done = make(chan struct{})
	go func() {
		defer close(l.keeper.done)
		for {
			select {
			case <-l.keeper.stop:
				return
			case <-l.keeper.wake:
			}
			l.keep()
		}
	}()
}

func (l *Log) stopKeeper() {
	if l.keeper.stop != nil {
		close(l.keeper.stop)
		<-l.keeper.done
	}
}

// wakeKeeper is called by the commit leader and never blocks.
func (l *Log) wakeKeeper() {
	select {
	case l.keeper.wake <- struct{}{}:
	default: // awake already, or there is none
	}
}

func (l *Log) keep() {
	for {
		freed, err := l.Reclaim(keepStep)
		if err != nil {
			if !errors.Is(err, ErrClosed) {
				l.logger.Error("reclaiming log space failed", zap.Error(err))
			}
			return
		}
		select {
		case <-l.keeper.stop:
			return
		default:
		}
		if freed == 0 {
			break
		}
	}
	if err := l.prepareSpare(); err != nil {
		// Not fatal yet: the next rotation tries again itself.
		l.logger.Warn("preparing a log segment failed", zap.Error(err))
	}
}

// prepareSpare makes sure that the next rotation finds a file with its blocks written.
func (l *Log) prepareSpare() error {
	l.spares.mu.Lock()
	have := len(l.spares.mu.files)
	l.spares.mu.Unlock()
	if have > 0 {
		return nil
	}
	t := l.segs.load()
	s, err := l.makeSpare(l.nextCapacity(t.segs[len(t.segs)-1]), l.restKeeper)
	if err != nil {
		return err
	}
	l.spares.mu.Lock()
	l.spares.mu.files = append(l.spares.mu.files, s)
	l.spares.mu.Unlock()
	return nil
}

// restKeeper takes a pause twice as long as the piece of work before it, less if the log is being
// closed.
func (l *Log) restKeeper(took time.Duration) {
	t := time.NewTimer(2 * took)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.keeper.stop:
	}
}

// Reclaim drops old segments in which nothing lives and, if garbage outweighs live data, rewrites
// up to about maxBytes of what lives in the oldest to the end of the log. It returns how many bytes
// it rewrote or dropped: 0 means that there is nothing to do. The store calls it now and then; the
// log itself after each rotation.
func (l *Log) Reclaim(maxBytes int64) (int64, error) {
	dropped, err := l.dropDead()
	if err != nil || dropped > 0 {
		return dropped, err
	}
	if !l.wasteful() {
		return 0, nil
	}
	oldest := l.segs.load().first
	regions := l.holders(oldest, maxBytes)
	var moved int64
	err = l.submit(&request{exclusive: func() error {
		var err error
		if moved, err = l.rewrite(regions, oldest, maxBytes); err != nil {
			return l.fail(err)
		}
		return nil
	}})
	if err != nil || moved == 0 {
		return 0, err
	}
	dropped, err = l.dropDead()
	return moved + dropped, err
}

// wasteful tells whether more bytes are garbage than alive, beyond some slack.
func (l *Log) wasteful() bool {
	t := l.segs.load()
	if len(t.segs) <= slackSegments {
		return false
	}
	var total, live int64
	for _, s := range t.segs[:len(t.segs)-1] {
		total += s.capacity
		live += s.bytes.Load()
	}
	return total > 2*live+slackSegments*l.opts.SegmentSize
}

// dropDead drops segments from the front of the log as long as nothing lives in them. First the log
// says, durably, that it begins further on; so everything that made them dead is durable too.
func (l *Log) dropDead() (int64, error) {
	if !l.firstIsDead() {
		return 0, nil
	}
	var freed int64
	err := l.submit(&request{exclusive: func() error {
		var err error
		if freed, err = l.dropDeadSegments(); err != nil {
			return l.fail(err)
		}
		return nil
	}})
	return freed, err
}

func (l *Log) firstIsDead() bool {
	t := l.segs.load()
	return len(t.segs) > 1 && t.segs[0].items.Load() == 0
}

func (l *Log) dropDeadSegments() (int64, error) {
	t := l.segs.load()
	n := 0
	for n < len(t.segs)-1 && t.segs[n].items.Load() == 0 {
		n++
	}
	if n == 0 {
		return 0, nil
	}
	dir := binary.AppendUvarint([]byte{byte(opFirst)}, uint64(t.first)+uint64(n))
	if _, err := l.appendRecord(dir, nil); err != nil {
		return 0, err
	}
	if err := l.flushAndSync(); err != nil {
		return 0, err
	}
	var freed int64
	for _, s := range t.segs[:n] {
		freed += s.capacity
		l.segs.popFirst()
		s.unref()
	}
	return freed, nil
}

// holders returns regions with anything alive in a segment, enough of them to fill maxBytes. It
// runs beside writers; what it finds is looked at again by rewrite.
func (l *Log) holders(seg uint32, maxBytes int64) []*region {
	var found []*region
	size := int64(0)
	for _, id := range l.Regions() {
		r := l.region(id)
		if r == nil {
			continue
		}
		r.mu.RLock()
		n := int64(0)
		if r.hsSeg == seg || r.truncSeg == seg {
			n = entCost
		}
		for i := range r.pos {
			if r.pos[i].seg == seg {
				n += int64(r.pos[i].len()) + entCost
			}
		}
		r.mu.RUnlock()
		if n > 0 {
			found = append(found, r)
		}
		if size += n; size >= maxBytes {
			break
		}
	}
	return found
}

// rewrite moves up to maxBytes of what the regions have in segment seg to the end of the log. It
// runs as the commit leader, so no position changes under it.
func (l *Log) rewrite(regions []*region, seg uint32, maxBytes int64) (int64, error) {
	s := l.segs.get(seg)
	if s == nil || s == l.end.active {
		return 0, nil
	}
	b := &Batch{}
	for _, r := range regions {
		if int64(b.Size()) >= maxBytes {
			break
		}
		if l.region(r.id) != r {
			continue // deleted meanwhile
		}
		if err := rewriteRegion(b, r, s, maxBytes); err != nil {
			return 0, err
		}
	}
	if b.Empty() {
		return 0, nil
	}
	at, err := l.appendRecord(b.dir, b.body)
	if err != nil {
		return 0, err
	}
	if err := l.flushAndSync(); err != nil {
		return 0, err
	}
	l.applyContents(&b.contents, at)
	l.stats.reclaimed.Add(uint64(b.Size()))
	return int64(b.Size()), nil
}

// rewriteRegion adds what lives of r in s to the batch. It reads r without its lock: only the
// commit leader changes regions, and that is the caller.
func rewriteRegion(b *Batch, r *region, s *segment, maxBytes int64) error {
	if r.hsSeg == s.number || r.truncSeg == s.number {
		ops := [...]uint64{r.id, r.hs.Term, r.hs.Vote, r.hs.Commit, r.truncIndex, r.truncTerm}
		b.encode(opMeta, ops[:]...)
		b.ops = append(b.ops, op{
			kind: opMeta, region: r.id, a: ops[1], b: ops[2], c: ops[3], d: ops[4], e: ops[5],
		})
	}
	for i := 0; i < len(r.pos) && int64(b.Size()) < maxBytes; i++ {
		if r.pos[i].seg != s.number {
			continue
		}
		// A run that can be read at once.
		d := diskRead{pos: r.pos}
		j := i + 1
		for size := int64(r.pos[i].len()); j < len(r.pos) && d.joins(i, j) &&
			int64(b.Size())+size < maxBytes; j++ {
			size += int64(r.pos[j].len())
		}
		if err := rewriteEntries(b, r, s, i, j); err != nil {
			return err
		}
		i = j - 1
	}
	return nil
}

// rewriteEntries copies pos[i:j] of r, as they are on the disk, into the batch. A damaged payload
// is carried along with its old CRC: it stays as damaged as it was.
func rewriteEntries(b *Batch, r *region, s *segment, i, j int) error {
	from, last := int64(r.pos[i].off), r.pos[j-1]
	buf := make([]byte, int64(last.off)+int64(last.len())-from)
	if _, err := s.file.ReadAt(buf, from); err != nil {
		return fmt.Errorf("raftlog: read %s: %w", s.file.Name(), err)
	}
	o := b.beginEntries(opRewrite, r.id, r.first+uint64(i), j-i)
	for _, p := range r.pos[i:j] {
		off := int64(p.off) - from
		b.addEntry(entMeta{term: p.term, crc: p.crc, lenType: p.lenType},
			buf[off:off+int64(p.len())])
	}
	b.endEntries(o)
	return nil
}

// LaggingRegions returns up to n regions that hold the oldest segments, those with most bytes in
// them first: truncating their logs brings back the most space.
func (l *Log) LaggingRegions(n int) []uint64 {
	t := l.segs.load()
	if len(t.segs) < 2 {
		return nil
	}
	type holder struct {
		id    uint64
		seg   uint32
		bytes int64
	}
	var holders []holder
	for _, id := range l.Regions() {
		r := l.region(id)
		if r == nil {
			continue
		}
		r.mu.RLock()
		h := holder{id: id}
		for _, p := range r.pos {
			if h.seg == 0 || p.seg < h.seg {
				h.seg, h.bytes = p.seg, 0
			}
			if p.seg == h.seg {
				h.bytes += int64(p.len()) + entCost
			}
		}
		r.mu.RUnlock()
		if h.seg != 0 && h.seg != t.segs[len(t.segs)-1].number {
			holders = append(holders, h)
		}
	}
	slices.SortFunc(holders, func(a, b holder) int {
		return cmp.Or(cmp.Compare(a.seg, b.seg), cmp.Compare(b.bytes, a.bytes),
			cmp.Compare(a.id, b.id))
	})
	ids := make([]uint64, 0, min(n, len(holders)))
	for _, h := range holders[:min(n, len(holders))] {
		ids = append(ids, h.id)
	}
	return ids
}
