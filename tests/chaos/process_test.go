package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/vfs/undo"
)

func (h *history) bounce(p *localcluster.Process, down time.Duration) {
	h.busy.Lock()
	defer h.busy.Unlock()
	p.Kill()
	time.Sleep(down) // how long it is down is the fault
	h.start(p)
}

func (h *history) killOne(rng *rand.Rand) error {
	h.bounce(h.anyStore(rng), between(rng, 100, 2000))
	return nil
}

func (h *history) killTwo(rng *rand.Rand) error {
	h.bounce(h.anyStore(rng), between(rng, 100, 700))
	time.Sleep(between(rng, 0, 300))
	h.bounce(h.anyStore(rng), between(rng, 100, 700))
	return nil
}

func (h *history) killAll(rng *rand.Rand) error {
	return h.bounceAll(h.c.Stores, between(rng, 0, 300))
}

// killSchedulers kills every member of the placement service: stores must not notice.
func (h *history) killSchedulers(rng *rand.Rand) error {
	return h.bounceAll(h.c.Schedulers, between(rng, 100, 2000))
}

func killTogether(procs []*localcluster.Process) {
	var wg sync.WaitGroup
	for _, p := range procs {
		wg.Add(1)
		go func() { defer wg.Done(); p.Kill() }()
	}
	wg.Wait()
}

// powerLoss kills a store, two, or all of them, and takes away what they had not synced.
func (h *history) powerLoss(rng *rand.Rand) error {
	h.busy.Lock()
	defer h.busy.Unlock()
	procs := append([]*localcluster.Process{}, h.c.Stores...)
	rng.Shuffle(len(procs), func(i, j int) { procs[i], procs[j] = procs[j], procs[i] })
	procs = procs[:[]int{1, 2, len(procs)}[rng.IntN(3)]]
	killTogether(procs)
	before := h.lost.Bytes
	for _, p := range procs {
		lost, err := undo.Lose(undoDir(p), p.DataDir, rng)
		if err != nil {
			h.t.Errorf("%s without power: %v", p.Name, err)
		}
		h.lost.Names += lost.Names
		h.lost.Bytes += lost.Bytes
		h.lost.Files += lost.Files
	}
	time.Sleep(between(rng, 0, 700)) // how long the power is off
	for _, p := range procs {
		h.start(p)
	}
	if h.lost.Bytes == before {
		return errors.New("everything was synced")
	}
	return nil
}

func (h *history) bounceAll(procs []*localcluster.Process, down time.Duration) error {
	h.busy.Lock()
	defer h.busy.Unlock()
	killTogether(procs)
	time.Sleep(down)
	for _, p := range procs {
		h.start(p)
	}
	return nil
}

// pauseProcess stops a process and lets it go on as if nothing had happened.
func (h *history) pauseProcess(p *localcluster.Process, d time.Duration) error {
	h.busy.Lock()
	defer h.busy.Unlock()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	time.Sleep(d)
	return p.Signal(syscall.SIGCONT)
}

func (h *history) stopStore(rng *rand.Rand) error {
	return h.pauseProcess(h.anyStore(rng), between(rng, 200, 3000))
}

// strobeStore stops and continues a store so fast that it is never gone for long and never well.
func (h *history) strobeStore(rng *rand.Rand) error {
	p := h.anyStore(rng)
	for range 20 {
		if err := h.pauseProcess(p, 50*time.Millisecond); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// stopLeader stops the store that leads most regions.
func (h *history) stopLeader(rng *rand.Rand) error {
	// A scheduler that has just been started may not know yet: then any store.
	regs, _ := h.regions()
	addrs, _ := h.stores()
	leads, best := map[string]int{}, h.anyStore(rng)
	for _, r := range regs {
		leads[addrs[r.Leader]]++
	}
	for _, p := range h.c.Stores {
		if leads[p.Addr] > leads[best.Addr] {
			best = p
		}
	}
	return h.pauseProcess(best, between(rng, 600, 3000))
}

func (h *history) stopScheduler(rng *rand.Rand) error {
	return h.pauseProcess(h.anyScheduler(rng), between(rng, 200, 3000))
}

func (h *history) killScheduler(rng *rand.Rand) error {
	h.bounce(h.anyScheduler(rng), between(rng, 100, 1000))
	return nil
}

func (h *history) restartOrderly(rng *rand.Rand) error {
	h.busy.Lock()
	defer h.busy.Unlock()
	p := h.anyStore(rng)
	p.Stop(10 * time.Second)
	h.start(p)
	return nil
}

// wipeStore kills a store, deletes what it had, and starts it as a new store at the same address,
// which the placement service allows once the old one is buried. Once in a history: replacing all
// replicas of a store takes a while.
func (h *history) wipeStore(rng *rand.Rand) error {
	if h.wiped {
		return h.killOne(rng)
	}
	p := h.anyStore(rng)
	addrs, err := h.stores()
	if err != nil {
		return err
	}
	var old uint64
	for id, addr := range addrs {
		if addr == p.Addr {
			old = id
		}
	}
	if old == 0 {
		return fmt.Errorf("no store at %s", p.Addr)
	}
	h.busy.Lock()
	defer h.busy.Unlock()
	h.wiped = true
	p.Kill()
	if err := errors.Join(os.RemoveAll(p.DataDir), os.RemoveAll(undoDir(p))); err != nil {
		return err
	}
	h.eventually(40*time.Second, func() error {
		_ = h.post(fmt.Sprintf("/stores/%d/offline", old), "{}") // may be offline already
		return h.post(fmt.Sprintf("/stores/%d/bury", old), "{}")
	})
	h.start(p)
	return nil
}

// wipeScheduler replaces a member of the placement service by one of the same name without data:
// killed, removed, joined again, promoted. Once in a history, for it can take long when the network
// is broken at the same time.
func (h *history) wipeScheduler(rng *rand.Rand) error {
	if h.wipedMember {
		return h.killScheduler(rng)
	}
	h.busy.Lock()
	defer h.busy.Unlock()
	h.wipedMember = true
	p := h.anyScheduler(rng)
	p.Kill()
	if err := os.RemoveAll(p.DataDir); err != nil {
		return err
	}
	h.eventually(40*time.Second, func() error {
		members, err := h.members()
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.Name == p.Name {
				return h.request(http.MethodDelete, "/members/"+p.Name, "")
			}
		}
		return nil
	})
	h.c.Rejoin(p)
	h.broken.Store(p.Name, true) // it gives up while it reaches no majority, and is started again
	defer h.broken.Delete(p.Name)
	h.eventually(40*time.Second, func() error {
		h.start(p)
		members, err := h.members()
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.Name == p.Name && !m.Learner {
				return nil
			}
		}
		return fmt.Errorf("%s is not a voter: %+v", p.Name, members)
	})
	return nil
}
