// Package tso hands out timestamps: unique, increasing, close to the wall clock.
//
// A timestamp is physical milliseconds and an 18-bit logical counter. The leader saves an upper
// bound ahead of what it hands out, by a fenced write; a new leader starts above the saved bound.
// Uniqueness therefore holds even if two members believed to lead at once.
package tso

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/storage"
)

const (
	// LogicalBits of a composed timestamp: physical<<LogicalBits | logical.
	LogicalBits = 18
	maxLogical  = 1 << LogicalBits
	// MaxCount bounds one request, so that it always fits into one millisecond.
	MaxCount = maxLogical / 2
)

var (
	// ErrNotLeader means that this member hands out no timestamps now.
	ErrNotLeader = errors.New("tso: not the placement leader")
	// ErrCount means a request for no timestamp or for too many.
	ErrCount = fmt.Errorf("tso: count must be between 1 and %d", MaxCount)
	// ErrWindow means that timestamps go faster than their bound can be saved; another try may
	// succeed.
	ErrWindow = errors.New("tso: window used up faster than it can be saved")
)

// Oracle hands out timestamps while this member leads. Safe for concurrent use.
//
// Invariant: physical < saved while active; (physical, logical) only grows, over leaderships too.
type Oracle struct {
	storage storage.Storage
	key     string
	window  time.Duration
	now     func() time.Time

	mu struct {
		sync.Mutex
		active   bool
		physical int64 // ms
		logical  int64 // the next one to hand out
		saved    int64 // ms; persisted upper bound, exclusive
		used     bool  // timestamps were asked for since that bound was saved
	}
	saveMu sync.Mutex // one save at a time; taken before mu
}

// New returns an oracle that is not active.
func New(s storage.Storage, key string, window time.Duration, now func() time.Time) *Oracle {
	return &Oracle{storage: s, key: key, window: max(window, 50*time.Millisecond), now: now}
}

// Start makes the oracle active for a leadership: it reads the saved bound and saves a new one.
func (o *Oracle) Start(ctx context.Context, fence storage.Cond) error {
	o.saveMu.Lock()
	defer o.saveMu.Unlock()
	kv, err := o.storage.Get(ctx, o.key)
	if err != nil {
		return fmt.Errorf("read timestamp bound: %w", err)
	}
	var bound int64
	if kv.ModRevision != 0 {
		v, err := storage.ParseUint64(kv.Value)
		if err != nil {
			return fmt.Errorf("read timestamp bound: %w", err)
		}
		bound = int64(v)/int64(time.Millisecond) + 1
	}
	start := max(o.now().UnixMilli(), bound)
	saved := start + o.window.Milliseconds()
	if err := o.save(ctx, fence, saved); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if start > o.mu.physical {
		o.mu.physical, o.mu.logical = start, 0
	}
	o.mu.saved, o.mu.active, o.mu.used = saved, true, true
	return nil
}

// Stop makes the oracle refuse. What it knows is kept, so that time never goes back.
func (o *Oracle) Stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.active = false
}

func (o *Oracle) save(ctx context.Context, fence storage.Cond, boundMs int64) error {
	value := storage.Uint64(uint64(boundMs * int64(time.Millisecond)))
	_, err := o.storage.Txn(ctx, []storage.Cond{fence}, []storage.Op{storage.Put(o.key, value)})
	if errors.Is(err, storage.ErrConflict) {
		return ErrNotLeader
	}
	if err != nil {
		return fmt.Errorf("save timestamp bound: %w", err)
	}
	return nil
}

// Extend saves a new bound when a third of the window is used up. The leader calls it regularly.
// While nobody asks for timestamps the bound is left behind: each save is a synced write, and the
// next caller makes one.
func (o *Oracle) Extend(ctx context.Context, fence storage.Cond) error {
	o.mu.Lock()
	used := o.mu.used
	o.mu.Unlock()
	if !used {
		return nil
	}
	return o.extend(ctx, fence, o.window/3*2)
}

func (o *Oracle) extend(ctx context.Context, fence storage.Cond, low time.Duration) error {
	o.saveMu.Lock()
	defer o.saveMu.Unlock()
	o.mu.Lock()
	at := max(o.mu.physical, o.now().UnixMilli())
	saved, active := o.mu.saved, o.mu.active
	o.mu.Unlock()
	if !active || saved-at > low.Milliseconds() {
		return nil
	}
	bound := at + o.window.Milliseconds()
	if err := o.save(ctx, fence, bound); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.saved, o.mu.used = max(o.mu.saved, bound), false
	return nil
}

// Get hands out count consecutive timestamps and returns the last of them. ok is false if the
// saved window is used up: then the caller extends it and tries again.
func (o *Oracle) Get(count uint32) (physical, logical int64, ok bool, err error) {
	if count == 0 || count > MaxCount {
		return 0, 0, false, ErrCount
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.mu.active {
		return 0, 0, false, ErrNotLeader
	}
	// Physical follows the clock on demand; there is no update loop and no waiting for one.
	now := o.now().UnixMilli()
	if now >= o.mu.saved && !o.mu.used {
		return 0, 0, false, nil // left behind by Extend: what is below the bound is long past
	}
	o.mu.used = true
	if now > o.mu.physical && now < o.mu.saved {
		o.mu.physical, o.mu.logical = now, 0
	}
	if o.mu.logical+int64(count) > maxLogical {
		// The clock stands still or is behind: borrow the next millisecond.
		o.mu.physical, o.mu.logical = o.mu.physical+1, 0
	}
	if o.mu.physical >= o.mu.saved {
		return 0, 0, false, nil
	}
	o.mu.logical += int64(count)
	return o.mu.physical, o.mu.logical - 1, true, nil
}

// Generate is Get that extends the window when it has to.
func (o *Oracle) Generate(
	ctx context.Context, fence storage.Cond, count uint32,
) (int64, int64, error) {
	for range 3 {
		physical, logical, ok, err := o.Get(count)
		if err != nil || ok {
			return physical, logical, err
		}
		if err := o.extend(ctx, fence, o.window/3*2); err != nil {
			return 0, 0, err
		}
	}
	return 0, 0, ErrWindow
}

// Compose packs a timestamp into one number.
func Compose(physical, logical int64) uint64 {
	return uint64(physical)<<LogicalBits | uint64(logical)
}

// Parse splits a composed timestamp.
func Parse(ts uint64) (time.Time, int64) {
	return time.UnixMilli(int64(ts >> LogicalBits)), int64(ts & (maxLogical - 1))
}
