package node

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/vfs"
)

func TestWhenTheDiskIsFull(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	measured := func(total, free uint64) spaceState {
		return spaceState{
			total: total, free: free, capTotal: total, capFree: free, inodes: 1000, freeInodes: 900,
		}
	}
	few := measured(100*gib, 50*gib)
	few.freeInodes = inodeReserve - 1
	none := measured(100*gib, 50*gib)
	none.inodes, none.freeInodes = 0, 0
	capped := measured(100*gib, 50*gib)
	capped.capTotal, capped.capFree = gib, 40*mib
	cfg := config.Default()
	cfg.Storage.Fit(0, 0)
	need := spaceNeed(cfg)
	require.Equal(t, uint64(8*12+64+64)<<20, need)
	o := spaceOptions{reserve: gib, capacity: 0, need: need}
	for _, c := range []struct {
		name  string
		state spaceState
		was   bool
		full  bool
	}{
		{"plenty", measured(100*gib, 2*gib), false, false},
		{"below the configured reserve", measured(100*gib, gib-1), false, true},
		{"the reserve and an eighth to begin again", measured(100*gib, gib+gib/8-1), true, true},
		{"begins again", measured(100*gib, gib+gib/8), true, false},
		{
			"a twentieth of a small disk, but not less than what is needed",
			measured(2*gib, 225*mib), false, false,
		},
		{"less than what is needed", measured(2*gib, 223*mib), false, true},
		{"half of a very small disk", measured(400*mib, 199*mib), false, true},
		{"half of a very small disk is free", measured(400*mib, 201*mib), false, false},
		{"few inodes", few, false, true},
		{"inodes are not counted", none, false, false},
		{"a capacity", capped, false, true},
		{"no size", spaceState{}, false, false},
	} {
		require.Equal(t, c.full, o.full(c.state, c.was), c.name)
	}
}

// TestSized: the engine's sizes follow from the machine and the disk, which is found before the
// directory exists.
func TestSized(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir = filepath.Join(t.TempDir(), "not", "yet", "there")
	require.Positive(t, diskOf(cfg.DataDir))
	require.Equal(t, diskOf(t.TempDir()), diskOf(cfg.DataDir))
	require.Zero(t, diskOf(string([]byte{'a', 0, 'b'})))
	out := sized(cfg)
	require.Zero(t, cfg.Storage.Cache, "the given configuration stays as it is")
	require.GreaterOrEqual(t, out.Storage.Memory, 80*config.MiB)
	require.Positive(t, out.Storage.Cache)
	cfg.Storage.Capacity = 2 * config.GiB
	require.LessOrEqual(t, sized(cfg).Storage.MemTable, 16*config.MiB)
}

// disk answers as Statfs for a disk of 1000 MiB.
func disk(freeMiB *uint64) func(string, *unix.Statfs_t) error {
	return func(_ string, st *unix.Statfs_t) error {
		st.Bsize, st.Blocks, st.Bavail = 1<<20, 1000, *freeMiB
		return nil
	}
}

// TestSpaceIsMeasuredByWhatIsWritten: the state follows the bytes, without a tick of the clock.
func TestSpaceIsMeasuredByWhatIsWritten(t *testing.T) {
	free := uint64(500)
	g := &spaceGuard{statfs: disk(&free), opts: spaceOptions{need: 100 << 20}}
	var changes []bool
	g.onChange = func(full bool) { changes = append(changes, full) }
	f, err := counting{vfs.OS, g}.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	write := func() {
		_, err := f.WriteAt(make([]byte, spaceStep/2), 0)
		require.NoError(t, err)
	}
	write()
	write()
	require.Empty(t, changes)
	free = 99
	write()
	require.Empty(t, changes, "measured too early")
	write()
	require.Equal(t, []bool{true}, changes)
	require.NoError(t, f.Close())
}

// TestADiskThatCannotBeMeasuredFailsTheStore: an error of Statfs is none to go on with.
func TestADiskThatCannotBeMeasuredFailsTheStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	_, err := newSpaceGuard(dir, spaceOptions{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.Mkdir(dir, 0o700))
	g, err := newSpaceGuard(dir, spaceOptions{})
	require.NoError(t, err)
	f, err := counting{vfs.OS, g}.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir))
	_, err = f.WriteAt(make([]byte, spaceStep), 0)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, f.Close())
	synctest.Test(t, func(t *testing.T) {
		err := g.watch(t.Context(), func(bool) {}, func() {})
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
}

// TestRelieveOnAFullDisk: as long as the disk is full, relieve is called now and then.
func TestRelieveOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := uint64(10)
		g := &spaceGuard{
			statfs: disk(&free), opts: spaceOptions{need: 100 << 20}, onChange: func(bool) {},
		}
		ctx, cancel := context.WithCancel(t.Context())
		begun, calls := time.Now(), 0
		var states []bool
		require.NoError(t, g.watch(ctx, func(full bool) { states = append(states, full) }, func() {
			switch calls++; calls {
			case 3:
				free = 500
			case 4:
				t.Error("relieved, but there is space")
			}
			time.AfterFunc(20*time.Second, cancel)
		}))
		require.Equal(t, 3, calls)
		require.Equal(t, []bool{false, true, false}, states)
		require.Greater(t, time.Since(begun), 6*time.Second)
	})
}
