package txn

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

const (
	// maxBatchBytes bounds what one request writes.
	maxBatchBytes = 256 << 10
	// maxBatches is how many requests of a transaction are under way at a time.
	maxBatches = 8
	// commitTimeout bounds Commit if its context has no deadline, cleanTimeout what is done after
	// its outcome is known.
	commitTimeout = 20 * time.Second
	cleanTimeout  = 5 * time.Second
)

// committer carries out the phases. Owner: Commit, and then the background.
type committer struct {
	t *Txn
	// keys are sorted. The primary is one of them, the first unless another one was locked before.
	keys    [][]byte
	primary []byte
	writes  map[string]mutation
	ttl     uint64
	// chosen is what stores are asked to choose, and have chosen.
	chosen chosen
}

// lockTTL is for how long, in milliseconds from the start timestamp on, others leave the locks
// alone: the time that has passed since, and some for the commit. Larger transactions take longer.
func lockTTL(size int, since time.Duration) uint64 {
	return min(3000+uint64(size)/1024, 20000) + uint64(since.Milliseconds())
}

// Rollback drops the transaction. Nothing of it has left this process.
func (t *Txn) Rollback() {
	t.ended = true
	t.locks.drop(t)
}

// Commit makes the transaction's changes visible, all at once, or returns an error: an
// *UnknownError says that it may have happened; any other, that it has not. ErrConflict says that
// another attempt may succeed.
func (t *Txn) Commit(ctx context.Context) error {
	if t.ended {
		return ErrFinished
	}
	t.ended = true
	if len(t.writes) == 0 {
		err := t.locks.kept(ctx, t)
		t.locks.drop(t)
		return err
	}
	defer t.locks.rest()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, commitTimeout)
		defer cancel()
	}
	m := &committer{t: t, writes: t.writes}
	t.writes = map[string]mutation{}
	t.locks.join(m.writes)
	size := 0
	for k, w := range m.writes {
		m.keys = append(m.keys, []byte(k))
		size += len(k) + len(w.value)
	}
	slices.SortFunc(m.keys, bytes.Compare)
	if m.primary = t.locks.primary; m.primary == nil {
		m.primary = m.keys[0]
	}
	m.ttl = lockTTL(size, time.Since(t.begun))
	if err := m.plan(ctx); err != nil {
		t.locks.drop(t)
		return err
	}
	if err := m.prewriteAll(ctx); err != nil {
		return m.failed(ctx, err)
	}
	if commitTS, committed := m.chosen.outcome(); committed {
		m.finish(ctx, commitTS)
		return nil
	}
	commitTS, err := t.c.Timestamp(ctx)
	if err != nil {
		m.cleanUp()
		return fmt.Errorf("txn: get a commit timestamp: %w", err)
	}
	return m.decide(ctx, commitTS)
}

// prewriteAll locks all keys. In two phases the primary is locked first, with those keys that go in
// the same request; so it is if one request may be enough. A transaction with asynchronous commit
// needs no order: its primary's lock names all others.
func (m *committer) prewriteAll(ctx context.Context) error {
	if m.chosen.async && !m.chosen.onePC {
		return m.each(ctx, m.keys, m.prewrite)
	}
	first := m.primaryFirst()
	if m.chosen.onePC {
		first = m.keys
	}
	n, err := m.batch(ctx, first, m.prewrite)
	if err != nil {
		return err
	}
	return m.each(ctx, m.without(first[:n]), m.prewrite)
}

// primaryFirst is the primary with the keys behind it that may go in the same request.
func (m *committer) primaryFirst() [][]byte {
	if bytes.Equal(m.keys[0], m.primary) {
		return m.keys
	}
	return [][]byte{m.primary}
}

// without is the keys that are not among some.
func (m *committer) without(some [][]byte) (rest [][]byte) {
	gone := make(map[string]bool, len(some))
	for _, k := range some {
		gone[string(k)] = true
	}
	for _, k := range m.keys {
		if !gone[string(k)] {
			rest = append(rest, k)
		}
	}
	return rest
}

// decide commits the primary. From then on the transaction has happened.
func (m *committer) decide(ctx context.Context, commitTS uint64) error {
	for {
		first := m.primaryFirst()
		n, err := m.batch(ctx, first, m.committing(commitTS))
		// nothing was done: a reader was promised a later commit
		if early, ok := err.(*tooEarly); ok {
			if commitTS, err = m.t.c.Timestamp(ctx); err != nil {
				m.cleanUp()
				return fmt.Errorf("txn: get a later commit timestamp: %w", err)
			}
			commitTS = max(commitTS, early.least)
			continue
		}
		if err != nil {
			if _, told := err.(*refusal); !told {
				// A request may have arrived, or may still.
				return &UnknownError{err}
			}
			m.cleanUp()
			return err
		}
		m.t.commitTS = commitTS
		m.commitRest(ctx, m.without(first[:n]), commitTS)
		return nil
	}
}

// finish ends a transaction that is committed, by what stores have chosen.
func (m *committer) finish(ctx context.Context, commitTS uint64) {
	m.t.commitTS = commitTS
	if !m.chosen.done {
		m.commitRest(ctx, m.keys, commitTS)
	}
}

// commitRest commits keys of a transaction that has happened, in the background if there is room.
// Where it fails, readers do it.
func (m *committer) commitRest(ctx context.Context, keys [][]byte, commitTS uint64) {
	if len(keys) == 0 {
		return
	}
	commit := func(ctx context.Context) { _ = m.each(ctx, keys, m.committing(commitTS)) }
	if !m.t.c.inBackground(commit) {
		commit(ctx)
	}
}

// cleanUp rolls back what was prewritten, so that others need not wait for the locks to expire.
// They do if there is too much to do already.
func (m *committer) cleanUp() {
	m.t.c.inBackground(func(ctx context.Context) { _ = m.each(ctx, m.keys, m.rollback) })
}

// step asks for a part of one phase: for keys of one region.
type step func(
	ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, keys [][]byte,
) stepResult

// stepResult is an answer: one of the errors, or locks that are in the way, or success.
type stepResult struct {
	region *errorpb.Error
	rpc    error
	err    error
	locks  []*kvrpcpb.LockInfo
}

// each carries out a step for all keys, of several regions at a time.
func (m *committer) each(ctx context.Context, keys [][]byte, do step) error {
	groups := m.t.c.groups(keys)
	return parallel(ctx, len(groups), maxBatches, func(ctx context.Context, i int) error {
		for left := groups[i]; len(left) > 0; {
			n, err := m.batch(ctx, left, do)
			if err != nil {
				return err
			}
			left = left[n:]
		}
		return nil
	})
}

// within is how many of the sorted keys lie before the region's end.
func within(r *metapb.Region, keys [][]byte) int {
	if len(r.EndKey) == 0 {
		return len(keys)
	}
	n := 0
	for n < len(keys) && bytes.Compare(memcomparable.Encode(keys[n]), r.EndKey) < 0 {
		n++
	}
	return n
}

// batch carries out a step for the first of the sorted keys and those after it that go in the same
// request. n is how many they are.
func (m *committer) batch(ctx context.Context, keys [][]byte, do step) (n int, err error) {
	wait := backoff{}
	for {
		var res stepResult
		err := m.t.c.kv.Call(ctx, memcomparable.Encode(keys[0]), maxBatchBytes, func(
			ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, region *metapb.Region,
		) (*errorpb.Error, error) {
			n = m.fitting(keys[:max(1, within(region, keys))])
			res = do(ctx, s, kctx, keys[:n])
			return res.region, res.rpc
		})
		if err == nil {
			err = res.err
		}
		if err != nil || len(res.locks) == 0 {
			return n, err
		}
		if err := m.t.c.pass(ctx, &wait, res.locks...); err != nil {
			return 0, err
		}
	}
}

// fitting is how many of the keys go into one request.
func (m *committer) fitting(keys [][]byte) int {
	size := 0
	for i, k := range keys {
		size += len(k) + len(m.writes[string(k)].value) + 32
		if size > maxBatchBytes && i > 0 {
			return i
		}
	}
	return len(keys)
}

func (m *committer) prewrite(
	ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, keys [][]byte,
) (res stepResult) {
	req := &kvrpcpb.PrewriteRequest{
		Context: kctx, PrimaryLock: m.primary, StartVersion: m.t.startTS, LockTtl: m.ttl,
		ForUpdateTs: m.t.locks.forUpdateTS,
	}
	for _, k := range keys {
		w := m.writes[string(k)]
		req.Mutations = append(req.Mutations, &kvrpcpb.Mutation{Op: w.op, Key: k, Value: w.value})
		if req.ForUpdateTs > 0 {
			req.IsPessimisticLock = append(req.IsPessimisticLock, m.t.locks.has(k))
		}
	}
	m.chosen.ask(req, m.keys)
	resp, err := s.KvPrewrite(ctx, req)
	m.chosen.answered(req, resp, err)
	res.region, res.rpc = resp.GetRegionError(), err
	for _, e := range resp.GetErrors() {
		if e.Locked == nil {
			return stepResult{err: &refusal{keyError(e)}}
		}
		res.locks = append(res.locks, e.Locked)
	}
	return res
}

// tooOld is how stores refuse a transaction of which nothing may be known any more.
const tooOld = "GC life time is shorter"

// refusal is an error of a store that has decided that the transaction is not committed, or, of a
// prewrite, that the keys of the request are not locked.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// tooEarly: the transaction must not be committed before least.
type tooEarly struct {
	error
	least uint64
}

func (m *committer) committing(commitTS uint64) step {
	return func(
		ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, keys [][]byte,
	) (res stepResult) {
		resp, err := s.KvCommit(ctx, &kvrpcpb.CommitRequest{
			Context: kctx, StartVersion: m.t.startTS, CommitVersion: commitTS, Keys: keys,
		})
		res.region, res.rpc = resp.GetRegionError(), err
		switch e := resp.GetError(); {
		case e == nil:
		case e.CommitTsExpired != nil:
			res.err = &tooEarly{keyError(e), e.CommitTsExpired.MinCommitTs}
		case strings.HasPrefix(e.Abort, tooOld):
			res.err = keyError(e) // what an earlier attempt has done may be forgotten
		default:
			res.err = &refusal{keyError(e)}
		}
		return res
	}
}

func (m *committer) rollback(
	ctx context.Context, s tinykvpb.TinyKvClient, kctx *kvrpcpb.Context, keys [][]byte,
) (res stepResult) {
	resp, err := s.KvBatchRollback(ctx,
		&kvrpcpb.BatchRollbackRequest{Context: kctx, StartVersion: m.t.startTS, Keys: keys})
	res.region, res.rpc = resp.GetRegionError(), err
	if e := resp.GetError(); e != nil {
		res.err = keyError(e)
	}
	return res
}
