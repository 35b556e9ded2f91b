package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFit: what follows from the memory and the disk, and what is set stays.
func TestFit(t *testing.T) {
	const large = uint64(1 << 40)
	for _, c := range []struct {
		name            string
		set             Storage
		available, disk uint64
		memTable, cache Size
	}{
		{"tiny", Storage{}, 100 << 20, large, 12 * MiB, 32 * MiB},
		{"a container of 512 MiB", Storage{}, 512 << 20, large, 12 * MiB, 80 * MiB},
		{"1 GiB", Storage{}, 1 << 30, large, 16 * MiB, 192 * MiB},
		{"4 GiB", Storage{}, 4 << 30, large, 24 * MiB, 288 * MiB},
		{"24 GiB", Storage{}, 24 << 30, large, 24 * MiB, 288 * MiB},
		{"6 GiB are set", Storage{Memory: 6 * GiB}, 24 << 30, large, 64 * MiB, 5888 * MiB},
		{"a small disk", Storage{}, 24 << 30, 400 << 20, 12 * MiB, 336 * MiB},
		{"a disk of 2 GiB", Storage{}, 24 << 30, 2 << 30, 16 * MiB, 320 * MiB},
		{"memory is set", Storage{Memory: 256 * MiB}, 24 << 30, large, 16 * MiB, 192 * MiB},
		{"the least", Storage{Memory: 80 * MiB}, 24 << 30, large, 12 * MiB, 32 * MiB},
		{"the cache is set", Storage{Cache: 8 * MiB}, 24 << 30, large, 24 * MiB, 8 * MiB},
		{"the memtable is set", Storage{MemTable: MiB}, 4 << 30, large, MiB, 380 * MiB},
		{
			"both are set", Storage{Cache: 8 * MiB, MemTable: 256 * KiB}, 24 << 30, large,
			256 * KiB, 8 * MiB,
		},
		{"nothing is known", Storage{}, 0, 0, 12 * MiB, 32 * MiB},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.set
			s.Fit(c.available, c.disk)
			require.Equal(t, c.memTable.String(), s.MemTable.String())
			require.Equal(t, c.cache.String(), s.Cache.String())
			require.GreaterOrEqual(t, s.Memory, leastMemory)
			again := s
			again.Fit(1<<30, 1<<30)
			require.Equal(t, s, again, "nothing is left open")
		})
	}
}
