package merge

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// MaxHolds is how many holds there may be: they are one value of the storage.
const MaxHolds = 1024

// maxHoldText bounds the keys and the reason of a hold, in bytes.
const maxHoldText = 1 << 10

// Hold keeps the regions that share keys with [Start, End) from being merged; an empty End is +inf.
// The JSON form is part of the on-disk format; do not change.
type Hold struct {
	Start []byte    `json:"start"`
	End   []byte    `json:"end"`
	Until time.Time `json:"until"`
	Why   string    `json:"why,omitempty"`
}

// Validate refuses an empty range, and more text than a hold may have.
func (h *Hold) Validate() error {
	switch {
	case len(h.End) > 0 && bytes.Compare(h.Start, h.End) >= 0:
		return fmt.Errorf("the range [%v, %v) is empty", redact.Key(h.Start), redact.Key(h.End))
	case len(h.Start)+len(h.End)+len(h.Why) > maxHoldText:
		return errors.New("keys and reason of a hold may have 1 KiB together")
	}
	return nil
}

// Covers tells whether a region has keys in the range.
func (h *Hold) Covers(r *core.RegionInfo) bool {
	return (len(h.End) == 0 || bytes.Compare(r.StartKey(), h.End) < 0) &&
		(len(r.EndKey()) == 0 || bytes.Compare(h.Start, r.EndKey()) < 0)
}

func (h *Hold) sameRange(o *Hold) bool {
	return bytes.Equal(h.Start, o.Start) && bytes.Equal(h.End, o.End)
}

// With is a list of holds with one more, instead of that of the same range if there is one, without
// those that have ended.
func With(list []Hold, h Hold, now time.Time) ([]Hold, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(slices.Clone(list), func(o Hold) bool {
		return o.sameRange(&h) || !now.Before(o.Until)
	})
	if len(out) >= MaxHolds {
		return nil, fmt.Errorf("there are %d holds already", len(out))
	}
	out = append(out, h)
	slices.SortFunc(out, func(a, b Hold) int { return bytes.Compare(a.Start, b.Start) })
	return out, nil
}

// Without is a list of holds without the one of a range, and without those that have ended. found:
// there was one.
func Without(list []Hold, start, end []byte, now time.Time) (out []Hold, found bool) {
	h := Hold{Start: start, End: end}
	out = slices.DeleteFunc(slices.Clone(list), func(o Hold) bool {
		found = found || o.sameRange(&h)
		return o.sameRange(&h) || !now.Before(o.Until)
	})
	return out, found
}

// SetHolds replaces all holds.
func (p *Policy) SetHolds(list []Hold) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.holds = slices.Clone(list)
}

// Holds returns those that have not ended, by start.
func (p *Policy) Holds(now time.Time) []Hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.mu.holds), func(h Hold) bool {
		return !now.Before(h.Until)
	})
}

// held returns a hold that covers the region; ok is false if there is none.
func (p *Policy) held(r *core.RegionInfo, now time.Time) (Hold, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.mu.holds {
		if h := &p.mu.holds[i]; now.Before(h.Until) && h.Covers(r) {
			return *h, true
		}
	}
	return Hold{}, false
}
