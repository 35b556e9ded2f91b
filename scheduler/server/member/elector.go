package member

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// Options configure an Elector.
type Options struct {
	Self   *schedulerpb.Member
	Keys   storage.Keys
	TTL    time.Duration // 2 s by default
	Logger *zap.Logger
	// Eligible is false while this member must not lead, for example as an etcd learner.
	Eligible func() bool
}

// Leadership is one term of this member as the leader.
type Leadership struct {
	Term       uint64
	termKey    string
	validUntil atomic.Int64 // nanoseconds of the monotonic clock since base
	base       time.Time
	wallUntil  atomic.Int64 // unix nanoseconds
}

// Valid tells whether this member may still act as the leader. It is checked on every request:
// a process that was paused must not serve before it noticed. The wall clock is looked at too,
// because the monotonic clock stands still while a machine is suspended.
func (l *Leadership) Valid() bool {
	return int64(time.Since(l.base)) < l.validUntil.Load() &&
		time.Now().UnixNano() < l.wallUntil.Load()
}

// Remaining is how long the leadership is valid without another renewal.
func (l *Leadership) Remaining() time.Duration {
	return time.Duration(l.validUntil.Load() - int64(time.Since(l.base)))
}

// Fence is the condition that every write of this leader carries.
func (l *Leadership) Fence() storage.Cond {
	return storage.ValueIs(l.termKey, storage.Uint64(l.Term))
}

func (l *Leadership) extend(sent time.Time, ttl time.Duration) {
	l.validUntil.Store(int64(sent.Sub(l.base) + ttl))
	l.wallUntil.Store(sent.Round(0).UnixNano() + int64(ttl))
}

func (l *Leadership) revoke() { l.validUntil.Store(0) }

// Lead runs a term: it is called with a context that ends with the leadership and must return soon
// after. An error, or a return before ctx ended, gives the leadership up.
type Lead func(ctx context.Context, l *Leadership) error

// Elector runs one member's part in the election.
//
// Run is the only writer of its state; Leader and Leadership may be called by anyone.
type Elector struct {
	opts    Options
	storage storage.Storage
	resign  chan string // the name of the member that should lead next, "" for any

	// suspect is the revision of a leader record found silent. If it is still there after a
	// campaign failed, its silence need not be waited for again. Owned by Run.
	suspect int64

	mu struct {
		sync.Mutex
		leader  *schedulerpb.Member // nil if unknown or silent for too long
		current *Leadership
		changed chan struct{} // closed and replaced at every change of leader
	}
}

// New returns an elector that does nothing until Run.
func New(s storage.Storage, opts Options) *Elector {
	if opts.TTL <= 0 {
		opts.TTL = 2 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	e := &Elector{opts: opts, storage: s, resign: make(chan string, 1)}
	e.mu.changed = make(chan struct{})
	return e
}

// Leader returns the leader this member sees, nil if none, and a channel closed at the next change.
func (e *Elector) Leader() (*schedulerpb.Member, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.leader, e.mu.changed
}

// Leadership returns the valid leadership of this member, or nil.
func (e *Elector) Leadership() *Leadership {
	e.mu.Lock()
	l := e.mu.current
	e.mu.Unlock()
	if l == nil || !l.Valid() {
		return nil
	}
	return l
}

// Resign gives the leadership up; this member then holds back for a while. The others hold back for
// the member of the given name, if there is one.
func (e *Elector) Resign(successor string) {
	select {
	case e.resign <- successor:
	default:
	}
}

func (e *Elector) setLeader(m *schedulerpb.Member, own *Leadership) {
	e.mu.Lock()
	defer e.mu.Unlock()
	same := m.GetMemberId() == e.mu.leader.GetMemberId() && own == e.mu.current
	e.mu.leader, e.mu.current = m, own
	if !same {
		close(e.mu.changed)
		e.mu.changed = make(chan struct{})
	}
}

// Run takes part in elections until ctx ends. When it returns, this member does not lead and has
// deleted its leader key if it could, so that another one takes over at once.
func (e *Elector) Run(ctx context.Context, lead Lead) {
	var holdBack time.Duration
	for ctx.Err() == nil {
		rev, err := e.observe(ctx, holdBack)
		if err != nil {
			e.setLeader(nil, nil)
			if ctx.Err() == nil {
				e.opts.Logger.Debug("observing the leader failed", zap.Error(err))
				sleep(ctx, e.opts.TTL/8)
			}
			continue
		}
		holdBack = 0
		l, mine, err := e.campaign(ctx, rev)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, storage.ErrConflict) {
				e.opts.Logger.Warn("campaign failed", zap.Error(err))
				sleep(ctx, e.opts.TTL/8)
			}
			continue
		}
		holdBack = e.term(ctx, l, mine, lead)
	}
	e.setLeader(nil, nil)
}

// observe follows the leader key and returns the revision to campaign against once the leader has
// gone or been silent for 1.1 TTL.
func (e *Elector) observe(ctx context.Context, holdBack time.Duration) (int64, error) {
	getCtx, cancel := context.WithTimeout(ctx, e.opts.TTL/3)
	kv, err := e.storage.Get(getCtx, e.opts.Keys.Leader())
	cancel()
	if err != nil {
		return 0, err
	}
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := e.storage.Watch(watchCtx, e.opts.Keys.Leader(), kv.ModRevision)
	silence := e.opts.TTL + e.opts.TTL/10
	wait := silence
	rev := kv.ModRevision
	switch {
	case rev == 0:
		// A key that was deleted by somebody else says nothing about the leader, which may be valid
		// for a while yet. Only a service that never had a leader need not wait.
		isNew, err := e.isNew(ctx)
		if err != nil {
			return 0, err
		}
		if isNew {
			wait = 0
		}
	default:
		if vacant, delay, named := e.note(kv.Value); vacant {
			wait = delay
			if named {
				holdBack = 0
			}
		}
	}
	if rev != 0 && rev == e.suspect {
		wait = 0
	}
	wait += holdBack
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case ev, ok := <-changes:
			if !ok {
				return 0, errors.New("watch of the leader key broke")
			}
			rev, wait = ev.ModRevision, silence
			if ev.Deleted {
				rev = 0
				e.setLeader(nil, nil)
			} else if vacant, delay, named := e.note(ev.Value); vacant {
				wait = delay
				if !named {
					wait += holdBack
				}
			}
			timer.Reset(wait)
			holdBack = 0
		case <-timer.C:
			if e.opts.Eligible != nil && !e.opts.Eligible() {
				timer.Reset(silence)
				continue
			}
			e.setLeader(nil, nil)
			e.suspect = rev
			return rev, nil
		}
	}
}

// note takes in a value of the leader key. It returns true if this member may campaign against that
// very record, after the given delay, because nobody leads: the last leader released the title (a
// value without a member id, perhaps with the name of the one that should lead next), or the key
// names this member although it is not leading (a record of a former life, or of a campaign whose
// answer was lost).
//
// named is true if this member was asked to lead next, however lately it resigned itself.
func (e *Elector) note(value []byte) (vacant bool, delay time.Duration, named bool) {
	m := &schedulerpb.Member{}
	if err := m.Unmarshal(value); err != nil {
		e.opts.Logger.Error("leader key cannot be decoded", zap.Error(err))
		return false, 0, false
	}
	switch m.MemberId {
	case 0:
		e.setLeader(nil, nil)
		if m.Name != "" && m.Name != e.opts.Self.Name {
			delay = e.opts.TTL
		}
		return true, delay, m.Name != "" && m.Name == e.opts.Self.Name
	case e.opts.Self.MemberId:
		return true, 0, false
	}
	e.setLeader(m, nil)
	return false, 0, false
}

// isNew tells whether nobody has ever led.
func (e *Elector) isNew(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, e.opts.TTL/3)
	defer cancel()
	kv, err := e.storage.Get(ctx, e.opts.Keys.LeaderTerm())
	return kv.ModRevision == 0, err
}

// campaign tries to take the leadership against the key's last seen revision.
func (e *Elector) campaign(ctx context.Context, rev int64) (*Leadership, int64, error) {
	// A request that went to a dead etcd leader is never answered: better to ask again soon.
	ctx, cancel := context.WithTimeout(ctx, e.opts.TTL/3)
	defer cancel()
	keys := e.opts.Keys
	cur, err := e.storage.Get(ctx, keys.LeaderTerm())
	if err != nil {
		return nil, 0, fmt.Errorf("read term: %w", err)
	}
	term := uint64(1)
	if cur.ModRevision != 0 {
		old, err := storage.ParseUint64(cur.Value)
		if err != nil {
			return nil, 0, fmt.Errorf("read term: %w", err)
		}
		term = old + 1
	}
	value, err := e.opts.Self.Marshal()
	if err != nil {
		return nil, 0, fmt.Errorf("marshal member: %w", err)
	}
	sent := time.Now()
	mine, err := e.storage.Txn(ctx,
		[]storage.Cond{
			storage.RevisionIs(keys.Leader(), rev),
			storage.RevisionIs(keys.LeaderTerm(), cur.ModRevision),
		},
		[]storage.Op{
			storage.Put(keys.Leader(), value),
			storage.Put(keys.LeaderTerm(), storage.Uint64(term)),
		})
	if err != nil {
		return nil, 0, err
	}
	l := &Leadership{Term: term, termKey: keys.LeaderTerm(), base: sent}
	l.extend(sent, e.opts.TTL)
	return l, mine, nil
}

// term runs one leadership. It returns how long to hold back before campaigning again: a member
// that resigned, or cannot lead, must let the others go first.
func (e *Elector) term(ctx context.Context, l *Leadership, mine int64, lead Lead) time.Duration {
	logger := e.opts.Logger.With(log.Term(l.Term))
	logger.Info("became placement leader")
	select {
	case <-e.resign: // a request that came before this term
	default:
	}
	e.setLeader(e.opts.Self, l)
	leadCtx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- lead(leadCtx, l) }() // owned by this function, which waits for it below

	reason, successor, holdBack := e.renewUntilLost(ctx, l, &mine, done)
	l.revoke()
	e.setLeader(nil, nil)
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		logger.Warn("leading failed", zap.Error(err))
	}
	e.release(l, successor)
	logger.Info("stopped being placement leader", log.Reason(reason))
	return holdBack
}

func (e *Elector) renewUntilLost(ctx context.Context, l *Leadership, mine *int64,
	done chan error,
) (reason, successor string, holdBack time.Duration) {
	value, err := e.opts.Self.Marshal()
	if err != nil {
		return err.Error(), "", e.opts.TTL
	}
	tick := time.NewTicker(e.opts.TTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return "stopping", "", 0
		case successor := <-e.resign:
			return "resigned", successor, 2 * e.opts.TTL
		case err := <-done:
			done <- err
			return "leading ended", "", e.opts.TTL / 2
		case <-tick.C:
			if !l.Valid() {
				return "not renewed in time", "", 0
			}
			if reason, lost := e.renew(ctx, l, mine, value); lost {
				return reason, "", 0
			}
		}
	}
}

func (e *Elector) renew(
	ctx context.Context, l *Leadership, mine *int64, value []byte,
) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, max(l.Remaining(), time.Millisecond))
	defer cancel()
	sent := time.Now()
	rev, err := e.storage.Txn(ctx,
		[]storage.Cond{storage.RevisionIs(e.opts.Keys.Leader(), *mine), l.Fence()},
		[]storage.Op{storage.Put(e.opts.Keys.Leader(), value)})
	switch {
	case err == nil:
		*mine = rev
		l.extend(sent, e.opts.TTL)
		return "", false
	case errors.Is(err, storage.ErrConflict):
		// Either somebody else leads, or an earlier renewal whose answer was lost did arrive.
		if kv, err := e.storage.Get(ctx, e.opts.Keys.Leader()); err == nil &&
			string(kv.Value) == string(value) {
			*mine = kv.ModRevision
			return "", false // the fence decides at the next renewal
		}
		return "replaced by another member", true
	default:
		e.opts.Logger.Warn("renewing the leadership failed", zap.Error(err))
		return "", false
	}
}

// release gives the title back by a value without a member id, so that others need not wait for
// silence. It is not a deletion: anybody can delete the key, but only the leader knows that it
// stopped being valid.
//
// The fence alone is the condition: a renewal whose answer was lost may have changed the revision.
// (One that is still on its way fails, because this write changes the revision for it.)
func (e *Elector) release(l *Leadership, successor string) {
	value, err := (&schedulerpb.Member{Name: successor}).Marshal()
	if err != nil {
		return
	}
	for end := time.Now().Add(e.opts.TTL); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(context.Background(), e.opts.TTL/6)
		_, err = e.storage.Txn(ctx, []storage.Cond{l.Fence()},
			[]storage.Op{storage.Put(e.opts.Keys.Leader(), value)})
		cancel()
		if err == nil || errors.Is(err, storage.ErrConflict) {
			break
		}
		time.Sleep(e.opts.TTL / 100) // the quorum may be choosing its leader
	}
	if err != nil {
		e.opts.Logger.Debug("leadership not released", zap.Error(err))
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
