package config

import "fmt"

// What the engine does with the memory it may use. The larger a memtable and the base level, which
// follows it, the fewer times a byte is written again; the rest is best used for blocks
// (docs/engine.md has the figures).
const (
	// memoryShare is the part of the available memory that the engine may use by itself: others
	// need memory too, and so do requests, answers and the raft log of this store, and the kernel's
	// cache of files.
	memoryShare = 4
	// mostMemory is how much that is at most: under an attack by writers of large values, a store
	// with as much stays below a GiB. Who has more to spare says so.
	mostMemory = 384 * MiB
	// memTables is how many memtables are counted on: the one that is written, and three that wait
	// for their flush.
	memTables                = 4
	mostMemTable             = 64 * MiB
	leastCache               = 32 * MiB
	leastMemory              = memTables*LeastMemTable + leastCache
	memTablesOfMemory        = 16
	diskOfMemTable    uint64 = 128
)

// Fit replaces the sizes that are left open, 0, by what follows from the memory that is available
// to the process and the size of the disk, in bytes: the store keeps room for eight memtables on
// it.
func (s *Storage) Fit(available, disk uint64) {
	if s.Memory == 0 {
		s.Memory = min(max(Size(available/memoryShare), leastMemory), mostMemory)
	}
	if s.MemTable == 0 {
		s.MemTable = min(max(s.Memory/memTablesOfMemory, LeastMemTable), mostMemTable)
		s.MemTable = min(s.MemTable, max(Size(disk/diskOfMemTable), LeastMemTable)).whole()
	}
	if s.Cache == 0 {
		s.Cache = max(s.Memory-memTables*s.MemTable, leastCache).whole()
	}
}

// whole is the size in whole MiB, rounded down.
func (s Size) whole() Size { return s - s%MiB }

// LeastMemTable is the least size of memtables that follows from memory, and that of a store with
// little data.
const LeastMemTable = 12 * MiB

func (s *Storage) validateSizes(bad func(string, ...any)) {
	if s.Cache < 0 || s.MemTable < 0 || s.ReserveSpace < 0 || s.Capacity < 0 || s.Memory < 0 {
		bad("storage: sizes must not be negative")
	}
	if s.MemTable != 0 && s.MemTable < 256*KiB {
		bad("storage.memtable-size: %s is below 256KiB; 0 has it follow from the memory",
			s.MemTable)
	}
	if s.Memory != 0 && s.Memory < leastMemory {
		bad("storage.memory: %s is below %s; 0 takes %s of what the machine or the cgroup has",
			s.Memory, leastMemory,
			fmt.Sprintf("1/%d", memoryShare))
	}
}
