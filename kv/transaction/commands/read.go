package commands

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/memlock"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Isolation says what a read does with locks and newer versions.
type Isolation int

// The levels.
const (
	// Snapshot sees what was committed by the read's timestamp; a lock that may hide some of it is
	// an error.
	Snapshot Isolation = iota
	// ReadCommitted does not look at locks.
	ReadCommitted
	// ReadNewest fails with a *ConflictError where Snapshot would not see the newest version, or
	// not know it.
	ReadNewest
)

// Read says what a read sees.
type Read struct {
	TS        uint64
	Isolation Isolation
	// Ignore are start timestamps of transactions that are not committed by TS, and Through of
	// those that are: their locks hide nothing.
	Ignore, Through []uint64
	// NeedCommitTS: a value that is seen through a lock is not enough, since its commit timestamp
	// is not known.
	NeedCommitTS bool
}

// At is a read of a snapshot.
func At(ts uint64) Read { return Read{TS: ts} }

// look tells what a lock lets the read see.
func (rd *Read) look(key []byte, l *mvcc.Lock) mvcc.Sight {
	switch {
	case rd.Isolation == ReadCommitted, !blocks(key, l, rd.TS), slices.Contains(rd.Ignore, l.Ts):
		return mvcc.Clear
	case !rd.NeedCommitTS && slices.Contains(rd.Through, l.Ts):
		return mvcc.Through
	}
	return mvcc.Hidden
}

// blocks tells whether a lock keeps a read at version from knowing the key's value: its transaction
// may have committed below version. A read of the newest value passes the lock on a primary, since
// that transaction is not committed as long as this lock is there.
func blocks(key []byte, l *mvcc.Lock, version uint64) bool {
	if l.Ts > version || l.MinCommitTS > version ||
		l.Kind != mvcc.WriteKindPut && l.Kind != mvcc.WriteKindDelete {
		return false
	}
	return version != mvcc.TsMax || l.AsyncCommit || !bytes.Equal(key, l.Primary)
}

// hidden is the error of a read that a lock is in the way of.
func (rd *Read) hidden(key []byte, l *mvcc.Lock) error {
	if rd.Isolation == ReadNewest {
		return &ConflictError{
			StartTS: rd.TS, ConflictTS: l.Ts, Key: bytes.Clone(key), Primary: l.Primary,
			Reason: ConflictNewest,
		}
	}
	return &LockedError{mvcc.KeyLock{Key: bytes.Clone(key), Lock: *l}}
}

// reader is over a view that the caller closes after it.
func (e *Executor) reader(view storage.Reader, rd *Read) *mvcc.Reader {
	r := mvcc.NewReader(view, e.policy.Codec)
	if rd.Isolation == ReadNewest {
		r.Newest()
	}
	return r
}

// failed turns an error of a reader into one of a command.
func (rd *Read) failed(err error) error {
	if newer, ok := err.(*mvcc.NewerError); ok {
		return &ConflictError{
			StartTS: rd.TS, ConflictTS: newer.StartTS, CommitTS: newer.CommitTS, Key: newer.Key,
			Reason: ConflictNewest,
		}
	}
	return err
}

// Value is what a read sees of a key.
type Value struct {
	Data  []byte
	Found bool
	// CommitTS is that of the version; 0 if the value was seen through a lock.
	CommitTS uint64
}

// get reads one key.
func (rd *Read) get(r *mvcc.Reader, key []byte) (Value, error) {
	if rd.Isolation != ReadCommitted {
		l, err := r.Lock(key)
		if err != nil {
			return Value{}, err
		}
		if l != nil {
			switch rd.look(key, l) {
			case mvcc.Hidden:
				return Value{}, rd.hidden(key, l)
			case mvcc.Through:
				data, found, err := r.LockedValue(key, l)
				return Value{Data: data, Found: found}, err
			case mvcc.Clear:
			}
		}
	}
	f, err := r.Version(key, rd.TS)
	if err != nil || f == nil || f.Kind == mvcc.WriteKindDelete {
		return Value{}, rd.failed(err)
	}
	data, err := r.Value(key, f)
	return Value{Data: data, Found: err == nil, CommitTS: f.CommitTS}, err
}

// raise has all commits whose timestamp this store chooses from now on be behind ts.
func (e *Executor) raise(ctx context.Context, ts uint64) error {
	if ts == mvcc.TsMax || ts <= e.locks.MaxTS() {
		return nil
	}
	if err := e.times.plausible(ctx, ts, drift); err != nil {
		return err
	}
	e.locks.Raise(ts)
	return nil
}

// announce makes a read known to commits whose timestamp this store chooses, and waits for those
// that have chosen one already and may be too early. It comes before the view of the read.
func (e *Executor) announce(
	ctx context.Context, c *kvrpcpb.Context, rd *Read, of memlock.Search,
) error {
	if err := e.raise(ctx, rd.TS); err != nil || rd.Isolation == ReadCommitted {
		return err
	}
	of.TS, of.Ignore = rd.TS, rd.Ignore
	return e.await(ctx, c, of)
}

// await waits for the claims that a search finds.
func (e *Executor) await(ctx context.Context, c *kvrpcpb.Context, s memlock.Search) error {
	if e.locks.Idle() {
		return nil
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	s.RegionID, s.Term = c.GetRegionId(), func() (uint64, error) { return e.st.Leadership(c) }
	return e.locks.Await(ctx, &s)
}

// Get reads a key. A lock that is in the way is a *LockedError.
func (e *Executor) Get(
	ctx context.Context, c *kvrpcpb.Context, key []byte, rd Read,
) (Value, error) {
	if v, ok, err := e.GetNow(c, key, rd); ok {
		return v, err
	}
	if err := e.announce(ctx, c, &rd, memlock.Search{Keys: [][]byte{key}}); err != nil {
		return Value{}, err
	}
	view, err := e.st.Reader(ctx, c, memcomparable.Encode(key))
	if err != nil {
		return Value{}, err
	}
	defer view.Close()
	if err := e.readable(ctx, c, &rd); err != nil {
		return Value{}, err
	}
	r := e.reader(view, &rd)
	defer r.Close()
	return rd.get(r, key)
}

// GetNow is Get if ok; else nothing is known yet and Get must be asked. It never waits: neither for
// a commit that is under way, nor for the placement service, nor for other replicas.
//
// What it reads is not of one moment: first the lock, then the version, then a long value. That is
// enough. A transaction that locks the key after the lock was looked for commits behind the read,
// since the read was announced before. One whose lock was there then is in the way, or not
// committed by the read's timestamp. One whose lock had gone by then has left its record. A value
// that is missing may have been collected meanwhile: Get decides that, on one view. The safe point
// is compared last, since what is removed lies below one that was known here before.
func (e *Executor) GetNow(c *kvrpcpb.Context, key []byte, rd Read) (v Value, ok bool, err error) {
	if e.local == nil || !e.raiseNow(rd.TS) {
		return Value{}, false, nil
	}
	if rd.Isolation != ReadCommitted && !e.locks.Idle() && !e.locks.Free(&memlock.Search{
		RegionID: c.GetRegionId(), Keys: [][]byte{key}, TS: rd.TS, Ignore: rd.Ignore,
	}) {
		return Value{}, false, nil
	}
	view, ok, err := e.local.ReadLocal(c, memcomparable.Encode(key))
	if !ok || err != nil {
		return Value{}, ok, err
	}
	defer view.Close()
	r := e.reader(view, &rd)
	defer r.Close()
	v, err = rd.get(r, key)
	if errors.Is(err, mvcc.ErrCorrupt) || !view.Valid() {
		return Value{}, false, nil
	}
	if e.safe != nil && rd.TS != mvcc.TsMax { // as in readable
		safePoint, known := e.safe.knownIn(c.GetRegionId(), tenureOf(c, view.Term))
		switch {
		case !known:
			return Value{}, false, nil
		case rd.TS < safePoint:
			return Value{}, true, errTooOld(rd.TS, safePoint)
		}
	}
	return v, true, err
}

// raiseNow is raise, if that needs no question.
func (e *Executor) raiseNow(ts uint64) bool {
	if ts == mvcc.TsMax || ts <= e.locks.MaxTS() {
		return true
	}
	if !e.times.reachedNow(ts, drift) {
		return false
	}
	e.locks.Raise(ts)
	return true
}

// Pair is a key that was read, with its value or a *LockedError.
type Pair struct {
	Key, Value []byte
	CommitTS   uint64
	Err        error
}

// BatchGet hands those of the keys that exist, or are locked, to emit, all as of one moment. An
// error of emit ends it.
func (e *Executor) BatchGet(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, rd Read, emit func(Pair) error,
) error {
	if len(keys) == 0 {
		return nil
	}
	if err := e.announce(ctx, c, &rd, memlock.Search{Keys: keys}); err != nil {
		return err
	}
	view, _, err := e.view(keys, func(key []byte) (storage.Reader, uint64, error) {
		view, err := e.st.Reader(ctx, c, key)
		return view, 0, err
	})
	if err != nil {
		return err
	}
	defer view.Close()
	if err := e.readable(ctx, c, &rd); err != nil {
		return err
	}
	r := e.reader(view, &rd)
	defer r.Close()
	for _, k := range keys {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v, err := rd.get(r, k)
		p := Pair{Key: k, Value: v.Data, CommitTS: v.CommitTS}
		if _, locked := err.(*LockedError); locked {
			p.Err, err = err, nil
		}
		if err != nil {
			return err
		}
		if !v.Found && p.Err == nil {
			continue
		}
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

// Scan says what a scan returns.
type Scan struct {
	Read
	// Start and End bound the keys in the order of the walk: [Start, End) upwards, [End, Start)
	// downwards. An empty one is the end of the key space.
	Start, End       []byte
	Limit            int
	Reverse, KeyOnly bool
}

// span is the scan's keys in ascending order.
func (s *Scan) span() mvcc.Span {
	from, to := s.Start, s.End
	if s.Reverse {
		from, to = to, from
	}
	if len(to) == 0 {
		to = nil
	}
	return mvcc.Span{From: from, To: to}
}

// Scan hands the first pairs of the region to emit, up to the limit, as a read sees them. Locked
// keys count. Fewer than the limit mean that the region has no more of the range. An error of emit
// ends it.
func (e *Executor) Scan(
	ctx context.Context, c *kvrpcpb.Context, s *Scan, emit func(Pair) error,
) error {
	span := s.span()
	if err := e.announce(ctx, c, &s.Read,
		memlock.Search{Range: true, From: span.From, To: span.To}); err != nil {
		return err
	}
	view, err := e.scanView(ctx, c, s)
	if err != nil {
		return err
	}
	defer view.Close()
	if err := e.readable(ctx, c, &s.Read); err != nil {
		return err
	}
	r := e.reader(view, &s.Read)
	defer r.Close()
	sc := mvcc.NewScanner(r, s.TS,
		mvcc.ScanOptions{Span: span, Reverse: s.Reverse, KeyOnly: s.KeyOnly, Look: s.look})
	defer sc.Close()
	for range s.Limit {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		item, err := sc.Next()
		if err != nil || item == nil {
			return s.failed(err)
		}
		p := Pair{Key: item.Key, Value: item.Value, CommitTS: item.CommitTS}
		if item.Lock != nil {
			p.Err = s.hidden(item.Key, item.Lock)
			if s.Isolation == ReadNewest {
				return p.Err
			}
		}
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

// scanView is of the region in which the scan begins: else the part in another one would pass for
// all of it.
func (e *Executor) scanView(
	ctx context.Context, c *kvrpcpb.Context, s *Scan,
) (storage.Reader, error) {
	if !s.Reverse {
		return e.st.Reader(ctx, c, memcomparable.Encode(s.Start))
	}
	view, err := e.st.Reader(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	start, end := view.Range()
	outside := memcomparable.Encode(s.Start)
	switch {
	case len(s.Start) == 0 && len(end) == 0:
		return view, nil
	case len(s.Start) == 0:
		view.Close() // some clients ask the first region; what it has would pass for all there is
		return nil, abortf("a scan downwards without an upper bound begins in the last region")
	case bytes.Compare(outside, start) >= 0 && (len(end) == 0 || bytes.Compare(outside, end) <= 0):
		return view, nil
	}
	view.Close()
	if view, err = e.st.Reader(ctx, c, outside); err == nil { // else it says which key is outside
		view.Close()
		err = abortf("the scan does not begin in the region")
	}
	return nil, err
}
