// Package id hands out ids that are never handed out twice: for stores, regions and peers alike.
//
// Ids are taken from windows. A window is reserved by a fenced write before any id of it is given
// out, so a new leader, which starts above the last reserved window, can never repeat one. What is
// left of a window when a leader goes is lost.
package id

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// Window is how many ids are reserved by one write.
const Window = 1000

// ErrNotLeader means that this member holds no leadership to allocate under.
var ErrNotLeader = errors.New("id: not the placement leader")

// Allocator hands out ids while this member leads. Safe for concurrent use.
type Allocator struct {
	storage storage.Storage
	key     string
	// fence returns the condition of the current leadership and its term; ok is false when there
	// is none.
	fence func() (cond storage.Cond, term uint64, ok bool)

	mu struct {
		sync.Mutex
		term uint64 // the leadership that reserved the window
		next uint64
		end  uint64 // exclusive
	}
}

// New returns an allocator that reserves its first window when it is first used.
func New(s storage.Storage, key string, fence func() (storage.Cond, uint64, bool)) *Allocator {
	return &Allocator{storage: s, key: key, fence: fence}
}

// Alloc returns one id.
func (a *Allocator) Alloc(ctx context.Context) (uint64, error) { return a.AllocN(ctx, 1) }

// AllocN returns the first of n consecutive ids.
func (a *Allocator) AllocN(ctx context.Context, n uint64) (uint64, error) {
	fence, term, ok := a.fence()
	if !ok {
		return 0, ErrNotLeader
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// A window of a former leadership is void even if this member leads again: in between another
	// one may have led. (Reserving anew skips ids; it never repeats one.)
	if a.mu.term != term {
		a.mu.next, a.mu.end, a.mu.term = 0, 0, term
	}
	if a.mu.next+n > a.mu.end {
		if err := a.reserveLocked(ctx, fence, n); err != nil {
			return 0, err
		}
	}
	first := a.mu.next
	a.mu.next += n
	return first, nil
}

func (a *Allocator) reserveLocked(ctx context.Context, fence storage.Cond, n uint64) error {
	kv, err := a.storage.Get(ctx, a.key)
	if err != nil {
		return fmt.Errorf("read id window: %w", err)
	}
	var end uint64
	if kv.ModRevision != 0 {
		if end, err = storage.ParseUint64(kv.Value); err != nil {
			return fmt.Errorf("read id window: %w", err)
		}
	}
	next := end + 1
	newEnd := end + max(Window, n)
	_, err = a.storage.Txn(ctx,
		[]storage.Cond{storage.RevisionIs(a.key, kv.ModRevision), fence},
		[]storage.Op{storage.Put(a.key, storage.Uint64(newEnd))})
	if errors.Is(err, storage.ErrConflict) {
		return ErrNotLeader
	}
	if err != nil {
		return fmt.Errorf("reserve ids up to %d: %w", newEnd, err)
	}
	a.mu.next, a.mu.end = next, newEnd+1
	return nil
}
