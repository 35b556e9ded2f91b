package goruntime

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// The heap. The collector begins a cycle when the heap has doubled since the last one. Block caches
// and memtables lie outside of Go's heap, so a store that serves gets has 3 MiB alive and throws
// away 4 KiB for each: it would collect dozens of times a second, and each time the stacks of idle
// goroutines shrink, to grow again with the next request. With a floor, a cycle begins when the
// heap reaches the floor or has doubled, whichever is later.

// A heap of more than large is allowed less garbage than what is alive: large and a quarter. What
// makes a store's heap large are requests of many megabytes; to mark their bytes costs nothing, and
// as much garbage again would be most of what the process takes.
const large = 64 << 20

// ServerHeap is a floor that was measured (docs/benchmarks.md); a load generator only has to leave
// the CPU to the servers.
//
// What is alive may grow between two adjustments. The cycle in which it does leaves the old
// percentage in force for some milliseconds, so the heap may pass twice its live size then, by the
// floor's ratio at most.
const (
	ServerHeap        = 32 << 20
	LoadGeneratorHeap = 64 << 20
)

// normal is Go's own setting: a cycle begins when the heap has doubled.
const normal = 100

// leastHeap is where the first cycle begins at the normal setting, whatever is alive; at others it
// is in proportion.
const leastHeap = 4 << 20

// HeapFloor is a setting that follows the heap. Make it with SetHeapFloor.
type HeapFloor struct {
	bytes uint64

	mu      sync.Mutex
	percent int
	stopped bool
	before  int
	samples []metrics.Sample
}

// SetHeapFloor makes collections begin no earlier than at a heap of so many bytes, until Stop. A
// process has one floor at most. It does nothing if the environment variable GOGC is set: somebody
// has chosen. Safe for concurrent use.
func SetHeapFloor(bytes uint64) *HeapFloor {
	f := &HeapFloor{bytes: bytes, percent: normal, samples: []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"},
		{Name: "/gc/scan/globals:bytes"},
	}}
	if os.Getenv("GOGC") != "" {
		f.stopped = true
		return f
	}
	f.before = debug.SetGCPercent(normal)
	f.adjust()
	f.watch()
	return f
}

// Stop puts the setting back to what it was.
func (f *HeapFloor) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stopped {
		f.stopped = true
		debug.SetGCPercent(f.before)
	}
}

// sentinel dies in every cycle.
type sentinel struct{ _ *sentinel }

// watch adjusts the setting after each cycle.
func (f *HeapFloor) watch() {
	runtime.AddCleanup(new(sentinel), func(f *HeapFloor) {
		if f.adjust() {
			f.watch()
		}
	}, f)
}

// adjust sets the percentage at which the heap of the last cycle grows to the floor. False:
// stopped.
func (f *HeapFloor) adjust() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	metrics.Read(f.samples)
	live := f.samples[0].Value.Uint64()
	want := percent(f.bytes, live, live+f.samples[1].Value.Uint64()+f.samples[2].Value.Uint64())
	// Each change stops the world for a moment.
	if d := want - f.percent; d > f.percent/8 || d < -f.percent/8 || want == normal && d != 0 {
		f.percent = want
		debug.SetGCPercent(want)
	}
	return true
}

// percent of scanned bytes which, added to live, make floor; scanned is what the collector reckons
// growth from. It stays below what would put the beginning of the first cycle beyond the floor. For
// a large heap it is what large and a quarter of live are of live.
func percent(floor, live, scanned uint64) int {
	most := floor * normal / leastHeap
	switch {
	case live > large*4/3:
		return int((large + live/4) * normal / live)
	case live >= floor || scanned == 0 || most < normal:
		return normal
	}
	return int(min(max((floor-live)*normal/scanned, normal), most))
}
