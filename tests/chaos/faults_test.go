package chaos

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// faults by name. Those of one track are one after the other, tracks run at the same time: processes
// that die or stop, and orders of the placement service.
var processFaults = map[string]func(*history) error{
	"kill-one":        (*history).killOne,
	"kill-two":        (*history).killTwo,
	"kill-all":        (*history).killAll,
	"stop-store":      (*history).stopStore,
	"stop-leader":     (*history).stopLeader,
	"stop-scheduler":  (*history).stopScheduler,
	"kill-scheduler":  (*history).killScheduler,
	"wipe-store":      (*history).wipeStore,
	"restart-orderly": (*history).restartOrderly,
}

var orderFaults = map[string]func(*history) error{
	"transfer-storm": (*history).transferStorm,
	"split-storm":    (*history).splitStorm,
	"move":           (*history).move,
}

// draw picks the faults of this history.
func (h *history) draw(from map[string]func(*history) error, n int) []string {
	var names, only []string
	for name := range from {
		if name == "wipe-store" && len(h.c.Stores) < 4 {
			continue // nowhere to put the replicas
		}
		names = append(names, name)
		for _, want := range strings.Split(*flagFaults, ",") {
			if want == name {
				only = append(only, name)
			}
		}
	}
	sort.Strings(names)
	if *flagFaults != "" {
		sort.Strings(only)
		return only
	}
	h.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	out := names[:min(n, len(names))]
	return out
}

// runFaults runs the drawn faults for the flag's duration.
func (h *history) runFaults() {
	process := h.draw(processFaults, 3+h.rng.IntN(2))
	orders := h.draw(orderFaults, 1+h.rng.IntN(3))
	end := time.Now().Add(*flagDuration)
	var wg sync.WaitGroup
	var mu sync.Mutex
	track := func(names []string, from map[string]func(*history) error, pause time.Duration) {
		defer wg.Done()
		for i := 0; len(names) > 0 && (time.Now().Before(end) || i < len(names) && pause > 100*time.Millisecond); i++ {
			name := names[i%len(names)]
			err := from[name](h)
			mu.Lock()
			if err == nil {
				h.bitten[name]++
			} else {
				h.bitten[name] += 0
			}
			mu.Unlock()
			time.Sleep(pause) // the pace of the faults
		}
	}
	wg.Add(2)
	go track(process, processFaults, 300*time.Millisecond)
	go track(orders, orderFaults, 50*time.Millisecond)
	wg.Wait()
	for _, name := range append(process, orders...) {
		if h.bitten[name] == 0 {
			h.t.Errorf("fault %s did not bite", name)
		}
	}
}

// heal brings every process back.
func (h *history) heal() {
	for _, p := range h.c.Processes() {
		_ = p.Signal(syscall.SIGCONT) // may not be stopped
		if !p.Running() {
			h.start(p)
		}
	}
}

func (h *history) start(p *localcluster.Process) {
	if err := p.Start(); err != nil {
		h.t.Errorf("start: %v", err)
	}
}

// random is a number of milliseconds from the seed. The process track alone uses it.
func (h *history) random(lo, hi int) time.Duration {
	return time.Duration(lo+h.rng.IntN(hi-lo)) * time.Millisecond
}

func (h *history) anyStore() *localcluster.Process {
	return h.c.Stores[h.rng.IntN(len(h.c.Stores))]
}

func (h *history) bounce(p *localcluster.Process, down time.Duration) {
	p.Kill()
	time.Sleep(down)
	h.start(p)
}

func (h *history) killOne() error {
	h.bounce(h.anyStore(), h.random(100, 2000))
	return nil
}

func (h *history) killTwo() error {
	a := h.anyStore()
	h.bounce(a, h.random(100, 700))
	time.Sleep(h.random(0, 300))
	h.bounce(h.anyStore(), h.random(100, 700))
	return nil
}

func (h *history) killAll() error {
	var wg sync.WaitGroup
	for _, p := range h.c.Stores {
		wg.Add(1)
		go func() { defer wg.Done(); p.Kill() }()
	}
	wg.Wait()
	time.Sleep(h.random(0, 300))
	for _, p := range h.c.Stores {
		h.start(p)
	}
	return nil
}

// pauseProcess stops a process and lets it go on as if nothing had happened.
func (h *history) pauseProcess(p *localcluster.Process, d time.Duration) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	time.Sleep(d)
	return p.Signal(syscall.SIGCONT)
}

func (h *history) stopStore() error { return h.pauseProcess(h.anyStore(), h.random(200, 3000)) }

// stopLeader stops the store that leads most regions.
func (h *history) stopLeader() error {
	// A scheduler that has just been started may not know yet: then any store.
	regs, _ := h.regions()
	addrs, _ := h.stores()
	leads, best := map[string]int{}, h.anyStore()
	for _, r := range regs {
		leads[addrs[r.Leader]]++
	}
	for _, p := range h.c.Stores {
		if leads[p.Addr] > leads[best.Addr] {
			best = p
		}
	}
	return h.pauseProcess(best, h.random(600, 3000))
}

func (h *history) stopScheduler() error {
	return h.pauseProcess(h.c.Schedulers[0], h.random(200, 3000))
}

func (h *history) killScheduler() error {
	h.bounce(h.c.Schedulers[0], h.random(100, 1000))
	return nil
}

func (h *history) restartOrderly() error {
	p := h.anyStore()
	p.Stop(10 * time.Second)
	h.start(p)
	return nil
}

// wipeStore kills a store, deletes what it had, and starts it as a new store at the same address, which
// the placement service allows once the old one is buried. Once in a history: replacing all replicas of
// a store takes a while.
func (h *history) wipeStore() error {
	if h.wiped {
		return h.killOne()
	}
	p := h.anyStore()
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
	h.wiped = true
	p.Kill()
	if err := os.RemoveAll(p.DataDir); err != nil {
		return err
	}
	h.eventually(40*time.Second, func() error {
		_, _ = h.post(fmt.Sprintf("/stores/%d/offline", old), "{}") // may be offline already
		_, err := h.post(fmt.Sprintf("/stores/%d/bury", old), "{}")
		return err
	})
	h.start(p)
	return nil
}
