package goruntime

import (
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// Memory is how many bytes the process may use: the least of the machine's memory, the limit of its
// cgroup, and GOMEMLIMIT. 0 if none of them is known.
func Memory() uint64 {
	return least(memlimit.FromSystem, memlimit.FromCgroup, func() (uint64, error) {
		return uint64(debug.SetMemoryLimit(-1)), nil
	})
}

func least(limits ...func() (uint64, error)) uint64 {
	out := uint64(math.MaxInt64) // GOMEMLIMIT where it is not set
	for _, limit := range limits {
		if n, err := limit(); err == nil && n > 0 { // an error: there is no such limit
			out = min(out, n)
		}
	}
	if out == math.MaxInt64 {
		return 0
	}
	return out
}
