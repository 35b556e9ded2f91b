// Package descriptors shares out the files that a process may have open.
//
// Connections and files of the disk come out of one limit of the operating system. A process that
// spends all of it on connections fails when its engine opens a table. So a server raises the soft
// limit at its start, refuses to run below Minimum, and divides the rest once: Share. The disk's
// part is never given to connections.
package descriptors

import "fmt"

const (
	// Minimum is the smallest limit with which a server starts.
	Minimum = 256
	// house is for listeners, logs, pipes, and connections that the process makes itself.
	house = 64
	// mostDisk is the most that the disk can use: 1,000 tables, segments of the raft log, files of
	// raft snapshots.
	mostDisk = 1536
)

// Plan says what the descriptors of a process are for. Invariant: Disk and Conns leave some of
// Limit to the rest.
type Plan struct {
	// Limit is how many the process may have open; Disk are kept for its files, Conns may be
	// connections of others.
	Limit, Disk, Conns int
}

// Prepare raises the limit as far as the process may, and shares it out. An error means that the
// process must not run.
func Prepare() (Plan, error) {
	limit, err := raise()
	if err != nil {
		return Plan{}, fmt.Errorf("limit of open files: %w", err)
	}
	return Share(limit)
}

// Share divides a limit: half of it for the disk, as far as that can use so many.
func Share(limit uint64) (Plan, error) {
	if limit < Minimum {
		return Plan{},
			fmt.Errorf(
				"the limit of open files is %d, and at least %d are needed; raise it, for example by "+
					"\"ulimit -n 65536\" or LimitNOFILE= of the service", limit, Minimum)
	}
	n := int(min(limit, 1<<24)) // some systems say that there is no limit
	disk := min(n/2, mostDisk)
	return Plan{Limit: n, Disk: disk, Conns: n - disk - house}, nil
}
