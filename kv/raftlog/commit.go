package raftlog

import (
	"fmt"
	"sync"
)

// Group commit.
//
// Writers queue up; the first one leads. The leader takes what is waiting, appends it with one
// write and at most one sync, applies it, wakes its group and hands the lead to the caller that
// came meanwhile. There is no goroutine of our own in between and no lingering: the time of one
// sync is what gathers the next group. All fields of committer are touched by the leader alone; the
// lead passes through queue.mu and request.ch, which order the accesses.

// maxGroupBytes bounds the work of one group, so that memory and the wait of its first member stay
// bounded however many writers there are.
const maxGroupBytes = 8 << 20

// request is a writer's place in the queue. It is part of a Batch, or stands for a Sync or a step
// of reclaim.
type request struct {
	batch *Batch
	sync  bool
	// exclusive runs as a group of its own, while nothing else can change the log.
	exclusive func() error
	err       error
	// ch wakes a waiting writer: true hands it the lead, false means that it is done.
	ch chan bool
}

type queue struct {
	mu struct {
		sync.Mutex
		waiting []*request
		led     bool
		closed  bool
	}
}

// committer is the state of the end of the log.
type committer struct {
	active *segment
	off    int64  // where the next record goes
	seq    uint64 // of the last record
	prev   uint32 // its CRC
	synced uint64 // the last record known to be durable

	// askedSpare: the keeper has the request for the next segment.
	askedSpare bool

	buf      []byte // records of the group that are not written yet; they go to bufOff
	bufOff   int64
	pending  []placed   // where the group's batches went
	group    []*request // of this turn
	markSlot int
}

// submit puts r through the queue and returns its outcome.
func (l *Log) submit(r *request) error {
	if r.ch == nil {
		r.ch = make(chan bool, 1)
	}
	q := &l.queue
	q.mu.Lock()
	if q.mu.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	q.mu.waiting = append(q.mu.waiting, r)
	wait := q.mu.led
	q.mu.led = true
	q.mu.Unlock()
	if wait && !<-r.ch {
		return r.err
	}
	l.lead()
	return r.err
}

// lead carries out one group, whose first member is the caller, and passes the lead on.
func (l *Log) lead() {
	group := l.takeGroup()
	err := l.failure()
	if err == nil {
		if group[0].exclusive != nil {
			err = group[0].exclusive()
		} else {
			err = l.commitGroup(group)
		}
	}
	for _, r := range group {
		r.err = err
	}
	l.cache.evict()

	q := &l.queue
	q.mu.Lock()
	n := copy(q.mu.waiting, q.mu.waiting[len(group):])
	clear(q.mu.waiting[n:])
	q.mu.waiting = q.mu.waiting[:n]
	var next *request
	if n > 0 {
		next = q.mu.waiting[0]
	} else {
		q.mu.led = false
	}
	// The group's slice belongs to the leader: let go of it before the lead passes.
	followers := l.end.group[1:]
	for _, r := range followers {
		r.ch <- false // never blocks: one slot, one answer
	}
	clear(l.end.group)
	q.mu.Unlock()
	if next != nil {
		next.ch <- true
	}
}

// takeGroup copies the head of the queue: as many plain requests as fit, or one exclusive one.
func (l *Log) takeGroup() []*request {
	q := &l.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	group, bytes := l.end.group[:0], 0
	for _, r := range q.mu.waiting {
		if r.exclusive != nil && len(group) > 0 {
			break
		}
		if r.batch != nil {
			bytes += r.batch.Size()
		}
		if bytes > maxGroupBytes && len(group) > 0 {
			break
		}
		group = append(group, r)
		if r.exclusive != nil {
			break
		}
	}
	l.end.group = group
	return group
}

// commitGroup makes the group's batches part of the log: written, synced if anyone asked for it,
// and only then visible. An error leaves the log failed: what a failed write or sync left on the
// disk is not known, and asking again does not tell (the kernel drops the dirty pages).
func (l *Log) commitGroup(group []*request) error {
	c := &l.end
	c.pending = c.pending[:0]
	sync := false
	for _, r := range group {
		sync = sync || r.sync
		if r.batch == nil {
			continue
		}
		at, err := l.appendRecord(r.batch.dir, r.batch.body)
		if err != nil {
			return l.fail(err)
		}
		c.pending = append(c.pending, at)
	}
	end := l.flush
	if sync {
		end = l.flushAndSync
	}
	if err := end(); err != nil {
		return l.fail(err)
	}
	i := 0
	for _, r := range group {
		if r.batch != nil {
			l.applyContents(&r.batch.contents, c.pending[i])
			i++
		}
	}
	l.stats.writes.Add(uint64(i))
	if !c.askedSpare && c.off > c.active.capacity/2 {
		c.askedSpare = true
		l.wakeKeeper()
	}
	return nil
}

// appendRecord puts a record into the buffer, behind a rotation if it does not fit any more.
func (l *Log) appendRecord(dir, body []byte) (placed, error) {
	c := &l.end
	size := recordSize(len(dir), len(body))
	if c.off+size > c.active.room() {
		if err := l.rotate(size); err != nil {
			return placed{}, err
		}
	}
	if len(c.buf) == 0 {
		c.bufOff = c.off
	}
	c.seq++
	h := recordHeader{prev: c.prev, seq: c.seq, synced: c.synced}
	c.buf, c.prev = appendRecord(c.buf, c.active.saltCRC, h, dir, body)
	at := placed{seg: c.active.number, bodyOff: c.off + recordHeaderLen + int64(len(dir))}
	c.off += size
	return at, nil
}

// flush writes the buffered records.
func (l *Log) flush() error {
	c := &l.end
	if len(c.buf) == 0 {
		return nil
	}
	if _, err := c.active.file.WriteAt(c.buf, c.bufOff); err != nil {
		return fmt.Errorf("raftlog: append %d bytes to %s: %w", len(c.buf), c.active.file.Name(),
			err)
	}
	l.stats.bytesWritten.Add(uint64(len(c.buf)))
	c.buf = c.buf[:0]
	if cap(c.buf) > maxKept {
		c.buf = nil
	}
	return nil
}

// syncActive makes everything written durable and notes so in the mark file.
func (l *Log) syncActive() error {
	c := &l.end
	if c.synced == c.seq {
		return nil
	}
	if err := c.active.file.Sync(); err != nil {
		return fmt.Errorf("raftlog: sync %s: %w", c.active.file.Name(), err)
	}
	l.stats.syncs.Add(1)
	c.synced = c.seq
	l.stats.synced.Store(c.seq)
	return l.writeMark(false)
}

// flushAndSync never syncs after a write that failed: a record behind a hole must not count.
func (l *Log) flushAndSync() error {
	if err := l.flush(); err != nil {
		return err
	}
	return l.syncActive()
}

// fail makes err the answer of every later call and returns it.
func (l *Log) fail(err error) error {
	l.failed.CompareAndSwap(nil, &err)
	return l.failure()
}

func (l *Log) failure() error {
	if p := l.failed.Load(); p != nil {
		return *p
	}
	return nil
}
