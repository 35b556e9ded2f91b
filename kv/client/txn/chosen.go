package txn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Commits says in which ways transactions may be committed.
type Commits int32

// The ways. Where a store cannot do it, it is done in two phases.
const (
	// Fastest: in one phase, if one request can hold the transaction; else as with NoOnePhase.
	Fastest Commits = iota
	// NoOnePhase: asynchronously, if the transaction has few keys; else in two phases. It has
	// happened once all its keys are locked, by one round of requests.
	NoOnePhase
	// TwoPhases: it has happened when its primary key is committed, after all are locked.
	TwoPhases
)

const (
	// maxAsyncKeys and maxAsyncBytes bound the keys of transactions with asynchronous commit: the
	// primary's lock has them all, and who meets a lock of one that has died must ask for each.
	maxAsyncKeys  = 256
	maxAsyncBytes = 4 << 10
)

// SetCommits says in which ways the transactions that begin from now on may be committed; Fastest
// if it was never called.
func (c *Client) SetCommits(k Commits) { c.commits.Store(int32(k)) }

// SetCommits says in which ways this transaction may be committed.
func (t *Txn) SetCommits(k Commits) { t.commits = k }

// chosen is what a transaction asks stores to choose, and what they have chosen. Safe for
// concurrent use but for plan.
type chosen struct {
	// onePC: the transaction is committed by its prewrite, if that is one request. async: it is by
	// asynchronous commit, otherwise. minTS is a timestamp from before the first request; a commit
	// at or behind it is behind all commits that were acknowledged before.
	onePC, async bool
	minTS        uint64
	// done: there are no locks, since one request was all.
	done bool
	mu   struct {
		sync.Mutex
		// sent: a request that may have committed the transaction has left this process. lost: the
		// answer to one has not come.
		sent, lost bool
		// plain: some lock is a plain one, so that the transaction is committed by its primary
		// only.
		plain bool
		// least is the largest of the timestamps that were chosen; committed is when the
		// transaction was committed, as some store knows.
		least, committed uint64
	}
}

// plan decides in which ways a transaction may be committed.
func (m *committer) plan(ctx context.Context) (err error) {
	size := 0
	for _, k := range m.keys {
		size += len(k)
	}
	few := len(m.keys) <= maxAsyncKeys && size <= maxAsyncBytes
	ch := &m.chosen
	first := m.t.c.kv.KnownRegion(memcomparable.Encode(m.keys[0]))
	together := first == nil || within(first, m.keys) == len(m.keys) // as far as is known
	ch.onePC = m.t.commits == Fastest && together && m.fitting(m.keys) == len(m.keys)
	ch.async = m.t.commits != TwoPhases && few
	if ch.onePC || ch.async {
		if ch.minTS, err = m.t.c.Timestamp(ctx); err != nil {
			return fmt.Errorf("txn: get a timestamp: %w", err)
		}
	}
	return nil
}

// ask adds to a prewrite what the store may choose. all are the keys of the transaction.
func (ch *chosen) ask(req *kvrpcpb.PrewriteRequest, all [][]byte) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	switch {
	case ch.onePC && len(req.Mutations) == len(all):
		req.TryOnePc = true
	case ch.async && !ch.mu.plain:
		req.UseAsyncCommit = true
		primary := func(k []byte) bool { return bytes.Equal(k, req.PrimaryLock) }
		if slices.ContainsFunc(req.Mutations, func(m *kvrpcpb.Mutation) bool {
			return primary(m.Key)
		}) {
			req.Secondaries = slices.DeleteFunc(slices.Clone(all), primary)
		}
	default:
		return
	}
	req.MinCommitTs = ch.minTS
	ch.mu.sent = true
}

// answered takes note of the answer to a prewrite.
func (ch *chosen) answered(
	req *kvrpcpb.PrewriteRequest, resp *kvrpcpb.PrewriteResponse, err error,
) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	choice := req.TryOnePc || req.UseAsyncCommit
	region := resp.GetRegionError()
	switch {
	case err != nil, region != nil && region.NotLeader == nil && region.EpochNotMatch == nil:
		ch.mu.lost = ch.mu.lost || choice
	case region != nil, len(resp.Errors) > 0:
	case resp.CommittedTs > 0:
		ch.mu.committed = resp.CommittedTs
	case resp.OnePcCommitTs > 0:
		ch.mu.committed, ch.done = resp.OnePcCommitTs, true
	case resp.MinCommitTs == 0:
		ch.mu.plain = true
	default:
		ch.mu.least = max(ch.mu.least, resp.MinCommitTs)
	}
}

// outcome is when the transaction was committed, if it is, once all keys are prewritten.
func (ch *chosen) outcome() (commitTS uint64, committed bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	switch {
	case ch.mu.committed > 0:
		return ch.mu.committed, true
	case ch.async && !ch.mu.plain && ch.mu.least > 0:
		return ch.mu.least, true
	}
	return 0, false
}

// committed is when the transaction was committed, as some store knows.
func (ch *chosen) committed() (commitTS uint64, known bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.mu.committed, ch.mu.committed > 0
}

// doubtful tells whether the transaction may be committed although its prewrite has failed.
// Two-phase transactions are not before their primary is; and a key that a store has refused to
// lock is never locked by an earlier request that comes late, if the reason was a conflict, since
// conflicts stay.
func (ch *chosen) doubtful(err error) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if !ch.mu.sent || ch.mu.plain || errors.Is(err, ErrConflict) && !errors.Is(err, ErrLockLost) {
		return false
	}
	return ch.mu.lost
}

// failed ends a transaction whose keys are not all locked, as far as is known. If it is in doubt,
// this client asks as any other would, and with that decides.
func (m *committer) failed(ctx context.Context, err error) error {
	if commitTS, known := m.chosen.committed(); known {
		m.finish(ctx, commitTS)
		return nil
	}
	if !m.chosen.doubtful(err) {
		m.cleanUp()
		return err
	}
	if isTooOld(err) { // its records may be gone
		return &UnknownError{err}
	}
	if ctx.Err() == nil {
		commitTS, settled := m.settle(ctx)
		switch {
		case settled == nil && commitTS > 0:
			m.t.commitTS = commitTS
			return nil
		case settled == nil:
			return err
		}
	}
	// Nothing is rolled back here: if all keys are locked, the transaction has happened.
	m.t.c.inBackground(func(ctx context.Context) { _, _ = m.settle(ctx) })
	return &UnknownError{err}
}

// settle finds out whether the transaction is committed, and ends it everywhere; a commit timestamp
// of 0 says that it is rolled back.
func (m *committer) settle(ctx context.Context) (commitTS uint64, err error) {
	st, err := m.t.c.secondaries(ctx, m.keys, m.t.startTS)
	switch {
	case err != nil:
		return 0, err
	case st.plain: // then it is not committed, and nobody but this client would have
		return 0, m.each(ctx, m.keys, m.rollback)
	}
	return st.commitTS, m.t.c.resolveKeys(ctx, m.keys, m.t.startTS, st.commitTS)
}

// isTooOld tells whether a store says that it may know nothing of the transaction any more.
func isTooOld(err error) bool { return strings.Contains(err.Error(), tooOld) }
