package chaos

import (
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// A fault does its harm, and undoes it unless the end of the history does. An error means that it
// could not bite this time.
type fault func(*history, *rand.Rand) error

// Faults come in tracks: those of one track are one after the other, tracks run at the same time.
type track struct {
	name   string
	faults map[string]fault
	pause  time.Duration // between two faults
	// each makes sure that every drawn fault happens, however long the ones before took.
	each bool
}

var tracks = []track{
	{"processes", processFaults, 300 * time.Millisecond, true},
	{"network", networkFaults, 300 * time.Millisecond, true},
	{"disks", diskFaults, 500 * time.Millisecond, true},
	{"orders", orderFaults, 50 * time.Millisecond, false},
}

var processFaults = map[string]fault{
	"kill-one":        (*history).killOne,
	"kill-two":        (*history).killTwo,
	"kill-all":        (*history).killAll,
	"stop-store":      (*history).stopStore,
	"strobe-store":    (*history).strobeStore,
	"stop-leader":     (*history).stopLeader,
	"stop-scheduler":  (*history).stopScheduler,
	"kill-scheduler":  (*history).killScheduler,
	"kill-schedulers": (*history).killSchedulers,
	"power-loss":      (*history).powerLoss,
	"wipe-store":      (*history).wipeStore,
	"wipe-scheduler":  (*history).wipeScheduler,
	"restart-orderly": (*history).restartOrderly,
}

var networkFaults = map[string]fault{
	"isolate-store":     (*history).isolateStore,
	"halves":            (*history).halves,
	"one-way":           (*history).oneWay,
	"ring":              (*history).ring,
	"swizzle":           (*history).swizzle,
	"isolate-scheduler": (*history).isolateScheduler,
	"no-scheduler":      (*history).noScheduler,
	"no-clients":        (*history).noClients,
	"delay":             (*history).delay,
	"resets":            (*history).resets,
	"snapshots":         (*history).snapshots,
	"flips":             (*history).flips,
}

var diskFaults = map[string]fault{
	"disk-full": (*history).diskFull,
	"disk-slow": (*history).diskSlow,
	"disk-fail": (*history).diskFail,
}

var orderFaults = map[string]fault{
	"transfer-storm": (*history).transferStorm,
	"split-storm":    (*history).splitStorm,
	"move":           (*history).move,
}

// draw picks the faults that one track of this history uses.
func (h *history) draw(t track) []string {
	want := map[string]bool{}
	for _, name := range strings.Split(*flagFaults, ",") {
		want[name] = true
	}
	var names []string
	for name := range t.faults {
		if name == "wipe-store" && len(h.c.Stores) < 4 {
			continue // nowhere to put the replicas
		}
		if name == "wipe-scheduler" && len(h.c.Schedulers) < 3 {
			continue // nobody to join
		}
		if *flagFaults == "" || want[name] {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	h.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	if *flagFaults != "" {
		return names
	}
	n := map[string]int{
		"processes": 2 + h.rng.IntN(2), "network": 1 + h.rng.IntN(3), "disks": h.rng.IntN(2),
		"orders": 1 + h.rng.IntN(3),
	}
	return names[:min(n[t.name], len(names))]
}

// enough is how often what a fault is about must have happened for the history to count.
var enough = map[string]func(events) bool{
	"split-storm":    func(e events) bool { return e.Splits >= 20 },
	"transfer-storm": func(e events) bool { return e.Leaders >= 20 },
	"snapshots":      func(e events) bool { return e.Snapshots >= 5 },
}

// runFaults runs the drawn faults for the flag's duration, and on, up to three times as long, until
// all have happened often enough.
func (h *history) runFaults() {
	begun := time.Now()
	var names []string
	going := func() bool {
		passed := time.Since(begun)
		return passed < *flagDuration || passed < 3**flagDuration && len(h.lacking(names)) > 0
	}
	drawn := make([][]string, len(tracks))
	for i, t := range tracks {
		drawn[i] = h.draw(t)
		names = append(names, drawn[i]...)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, name := range names {
		h.bitten[name] = 0
	}
	for i, t := range tracks {
		names := drawn[i]
		wg.Add(1)
		go func() { // ends soon after going is false
			defer wg.Done()
			rng := rand.New(rand.NewPCG(h.seed, uint64(100+i)))
			for k := 0; len(names) > 0 && (going() || t.each && k < len(names)); k++ {
				name := names[k%len(names)]
				if err := t.faults[name](h, rng); err == nil {
					mu.Lock()
					h.bitten[name]++
					mu.Unlock()
				}
				time.Sleep(t.pause) // the pace of the faults
			}
		}()
	}
	wg.Wait()
	h.makeUp(names)
	for name, n := range h.bitten {
		if n == 0 {
			h.t.Errorf("fault %s did not bite", name)
		}
	}
	if lack := h.lacking(names); len(lack) > 0 {
		h.t.Errorf("too little of %v happened for the history to count: %+v", lack, h.happened())
	}
}

// makeUp repeats, with nothing else broken, the faults that others have kept from biting.
func (h *history) makeUp(names []string) {
	h.heal()
	rng := rand.New(rand.NewPCG(h.seed, 99))
	// a pace
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(
		50 * time.Millisecond) {
		again := h.lacking(names)
		for name, n := range h.bitten {
			if n == 0 {
				again = append(again, name)
			}
		}
		if len(again) == 0 {
			return
		}
		for _, name := range again {
			for _, t := range tracks {
				if f := t.faults[name]; f != nil && f(h, rng) == nil {
					h.bitten[name]++
				}
			}
		}
	}
}

// lacking lists the faults that have not shown enough effect.
func (h *history) lacking(names []string) []string {
	var out []string
	e := h.happened()
	for _, name := range names {
		if name == "snapshots" && h.lists != nil && e.Snapshots > 0 {
			continue // transactions write a tenth of what raw clients do: logs are cut less often
		}
		if f := enough[name]; f != nil && !f(e) {
			out = append(out, name)
		}
	}
	return out
}

// heal brings every connection and process back.
func (h *history) heal() {
	h.net.Heal()
	for _, p := range h.c.Processes() {
		_ = p.Signal(syscall.SIGCONT) // may not be stopped
		h.healDisk(p)
		if !p.Running() {
			h.start(p)
		}
	}
}

func (h *history) start(p *localcluster.Process) {
	if p.Running() {
		return
	}
	if err := p.Start(); err != nil {
		h.t.Errorf("start: %v", err)
	}
}

// between draws a length of time in milliseconds.
func between(rng *rand.Rand, lo, hi int) time.Duration {
	return time.Duration(lo+rng.IntN(hi-lo)) * time.Millisecond
}

func (h *history) anyStore(rng *rand.Rand) *localcluster.Process {
	return h.c.Stores[rng.IntN(len(h.c.Stores))]
}

func (h *history) anyScheduler(rng *rand.Rand) *localcluster.Process {
	return h.c.Schedulers[rng.IntN(len(h.c.Schedulers))]
}
