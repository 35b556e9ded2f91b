package chaos

import (
	"math/rand/v2"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/tests/netproxy"
)

func names(procs []*localcluster.Process) []string {
	var out []string
	for _, p := range procs {
		out = append(out, p.Name)
	}
	return out
}

func (h *history) storeNames() []string     { return names(h.c.Stores) }
func (h *history) schedulerNames() []string { return names(h.c.Schedulers) }

// severed is one of the two ways in which a network fails: silently, or with resets.
func severed(rng *rand.Rand) netproxy.Rule {
	if rng.IntN(2) == 0 {
		return netproxy.Rule{Hold: true}
	}
	return netproxy.Rule{Cut: true}
}

// apart sets the rule between all of a and all of b, both ways.
func (h *history) apart(a, b []string, r netproxy.Rule) {
	for _, x := range a {
		for _, y := range b {
			if x != y {
				h.net.Set(x, y, r)
				h.net.Set(y, x, r)
			}
		}
	}
}

// last lets a fault of the network last, then heals it.
func (h *history) last(d time.Duration) error {
	time.Sleep(d) // how long the network is broken is the fault
	h.net.Heal()
	return nil
}

func (h *history) isolateStore(rng *rand.Rand) error {
	one := []string{h.anyStore(rng).Name}
	r := severed(rng)
	h.apart(one, h.storeNames(), r)
	if rng.IntN(2) == 0 {
		h.apart(one, h.schedulerNames(), r)
	}
	return h.last(between(rng, 1000, 4000))
}

func (h *history) halves(rng *rand.Rand) error {
	all := h.storeNames()
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	h.apart(all[:len(all)/2], all[len(all)/2:], severed(rng))
	return h.last(between(rng, 1000, 4000))
}

// oneWay makes a store deaf or dumb towards one or all others.
func (h *history) oneWay(rng *rand.Rand) error {
	one := h.anyStore(rng).Name
	others := h.storeNames()
	if rng.IntN(2) == 0 {
		others = []string{h.anyStore(rng).Name}
	}
	deaf := rng.IntN(2) == 0
	for _, other := range others {
		if deaf {
			h.net.Set(other, one, netproxy.Rule{Hold: true})
		} else {
			h.net.Set(one, other, netproxy.Rule{Hold: true})
		}
	}
	return h.last(between(rng, 1000, 4000))
}

// snapshots keeps a store away for so long that the others have dropped what it lacks from their
// logs.
func (h *history) snapshots(rng *rand.Rand) error {
	h.apart([]string{h.anyStore(rng).Name}, h.storeNames(), netproxy.Rule{Cut: true})
	return h.last(between(rng, 3000, 5000))
}

// ring lets each store see its two neighbours only, so that majorities overlap but differ.
func (h *history) ring(rng *rand.Rand) error {
	all := h.storeNames()
	if len(all) < 4 {
		return h.isolateStore(rng)
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	r := severed(rng)
	for i, x := range all {
		for j, y := range all {
			if d := (j - i + len(all)) % len(all); d > 1 && d < len(all)-1 {
				h.net.Set(x, y, r)
			}
		}
	}
	return h.last(between(rng, 1000, 4000))
}

// swizzle cuts stores off one after the other and lets them back in another order.
func (h *history) swizzle(rng *rand.Rand) error {
	all := h.storeNames()
	for _, i := range rng.Perm(len(all)) {
		h.apart(all[i:i+1], all, netproxy.Rule{Hold: true})
		time.Sleep(between(rng, 50, 400))
	}
	for _, i := range rng.Perm(len(all)) {
		h.apart(all[i:i+1], all, netproxy.Rule{})
		time.Sleep(between(rng, 50, 400))
	}
	return h.last(0)
}

func (h *history) isolateScheduler(rng *rand.Rand) error {
	one := []string{h.anyScheduler(rng).Name}
	r := severed(rng)
	h.apart(one, h.schedulerNames(), r)
	if len(h.c.Schedulers) == 1 || rng.IntN(2) == 0 {
		h.apart(one, h.storeNames(), r)
	}
	return h.last(between(rng, 1000, 4000))
}

// noScheduler keeps some stores, or all, from the placement service.
func (h *history) noScheduler(rng *rand.Rand) error {
	stores := h.storeNames()
	h.apart(stores[:1+rng.IntN(len(stores))], h.schedulerNames(), severed(rng))
	return h.last(between(rng, 1000, 4000))
}

func (h *history) noClients(rng *rand.Rand) error {
	h.apart([]string{netproxy.Outside}, []string{h.anyStore(rng).Name}, severed(rng))
	return h.last(between(rng, 1000, 3000))
}

// delay makes the way to a store, or all ways between stores, slow.
func (h *history) delay(rng *rand.Rand) error {
	r := netproxy.Rule{Delay: between(rng, 50, 300)}
	if rng.IntN(2) == 0 {
		h.apart([]string{h.anyStore(rng).Name}, append(h.storeNames(), netproxy.Outside), r)
	} else {
		h.apart(h.storeNames(), h.storeNames(), r)
	}
	return h.last(between(rng, 1000, 3000))
}

// resets breaks connections again and again.
func (h *history) resets(rng *rand.Rand) error {
	for range 10 {
		h.net.Reset(func(string, string) bool { return rng.IntN(2) == 0 })
		time.Sleep(between(rng, 50, 200))
	}
	return nil
}

// flips has bits flip between stores, and between the clients and the stores, as a bad network card
// or proxy would.
func (h *history) flips(rng *rand.Rand) error {
	r := netproxy.Rule{Flip: 0.02 + 0.1*rng.Float64()}
	h.apart(h.storeNames(), append(h.storeNames(), netproxy.Outside), r)
	return h.last(between(rng, 1500, 4000))
}
