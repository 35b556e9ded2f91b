package security

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// attemptBurst wrong tokens are taken from an address at once, and one more every attemptEvery.
	attemptBurst = 20
	attemptEvery = time.Second
	// maxAddresses bounds the addresses that are remembered.
	maxAddresses = 4096
)

// Attempts bounds how often one address may be wrong about the token. Beyond it nothing that comes
// from the address is compared with the token, the right one included: else an answer would tell
// which it was. Safe for concurrent use.
type Attempts struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		// spent is when an address has all its attempts again. Invariant: at most maxAddresses; an
		// address without an entry, or with one in the past, has all of them.
		spent map[netip.Prefix]time.Time
	}
	failed, refused atomic.Uint64
}

// NewAttempts makes Attempts. now is time.Now but in tests.
func NewAttempts(now func() time.Time) *Attempts {
	a := &Attempts{now: now}
	a.mu.spent = make(map[netip.Prefix]time.Time)
	return a
}

// Failed counts the tokens that were wrong.
func (a *Attempts) Failed() uint64 { return a.failed.Load() }

// Refused counts the tokens that were not looked at, since too many from the same address had been
// wrong.
func (a *Attempts) Refused() uint64 { return a.refused.Load() }

// try makes an attempt from remote ("host:port") unless too many have failed. right is called at
// most once and tells whether the token is; only wrong ones count against the address. The attempt
// is taken before it is made, so that many at once have no more of them.
func (a *Attempts) try(remote string, right func() bool) (ok, refused bool) {
	from := addressOf(remote)
	if !a.take(from) {
		a.refused.Add(1)
		return false, true
	}
	if right() {
		a.giveBack(from)
		return true, false
	}
	a.failed.Add(1)
	return false, false
}

func (a *Attempts) take(from netip.Prefix) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	spent, known := a.mu.spent[from]
	if spent.Before(now) {
		spent = now
	}
	spent = spent.Add(attemptEvery)
	if spent.Sub(now) > attemptBurst*attemptEvery {
		return false
	}
	if !known && len(a.mu.spent) >= maxAddresses {
		a.makeRoomLocked(now)
	}
	a.mu.spent[from] = spent
	return true
}

// makeRoomLocked forgets the addresses that have all their attempts; if there is none, any one.
func (a *Attempts) makeRoomLocked(now time.Time) {
	for p, at := range a.mu.spent {
		if !at.After(now) {
			delete(a.mu.spent, p)
		}
	}
	for p := range a.mu.spent {
		if len(a.mu.spent) < maxAddresses {
			return
		}
		delete(a.mu.spent, p)
	}
}

func (a *Attempts) giveBack(from netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, known := a.mu.spent[from]; known {
		if at = at.Add(-attemptEvery); at.After(a.now()) {
			a.mu.spent[from] = at
		} else {
			delete(a.mu.spent, from)
		}
	}
}

// addressOf is what counts as one address: of IPv6 the network, since one machine has all of it.
// What is none, such as the other end of a unix socket, is the zero Prefix.
func addressOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := ap.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // the bits fit the address
	return p
}
