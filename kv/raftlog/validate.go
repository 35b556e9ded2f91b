package raftlog

import "fmt"

// simRegion is what a region's log will look like after the changes seen so far in a batch.
type simRegion struct {
	exists          bool
	truncated, last uint64
}

// fail makes Write refuse the batch.
func (b *Batch) fail(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
	}
}

// validate plays the batch through on paper: nothing that replay could not make sense of may ever
// reach the file. The regions are stable meanwhile, since each has one owner.
func (l *Log) validate(b *Batch) error {
	if b.err != nil {
		return b.err
	}
	if n := recordSize(len(b.dir), len(b.body)); n > maxRecordLen {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrInvalid, n, maxRecordLen)
	}
	if b.sims == nil {
		b.sims = make(map[uint64]simRegion)
	}
	clear(b.sims)
	for i := range b.ops {
		o := &b.ops[i]
		s, ok := b.sims[o.region]
		if !ok {
			s = l.simRegion(o.region)
		}
		if err := s.apply(o); err != nil {
			return err
		}
		b.sims[o.region] = s
	}
	return nil
}

func (l *Log) simRegion(id uint64) simRegion {
	r := l.region(id)
	if r == nil {
		return simRegion{}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return simRegion{exists: true, truncated: r.truncIndex, last: r.last()}
}

func (s *simRegion) apply(o *op) error {
	switch o.kind {
	case opAppend:
		last := o.a + uint64(o.entHi-o.entLo) - 1
		if o.a <= s.truncated || o.a > s.last+1 || last < o.a {
			return fmt.Errorf("%w: region %d: append of [%d, %d] to (%d, %d]",
				ErrInvalid, o.region, o.a, last, s.truncated, s.last)
		}
		s.exists, s.last = true, last
	case opHardState:
		s.exists = true
	case opTruncate:
		if !s.exists || o.a > s.last {
			return fmt.Errorf("%w: region %d: truncation to %d of (%d, %d]",
				ErrInvalid, o.region, o.a, s.truncated, s.last)
		}
		s.truncated = max(s.truncated, o.a)
	case opReset:
		s.exists, s.truncated, s.last = true, o.a, o.a
	case opDelete:
		*s = simRegion{}
	default:
		return fmt.Errorf("%w: kind %d", ErrInvalid, o.kind)
	}
	return nil
}
