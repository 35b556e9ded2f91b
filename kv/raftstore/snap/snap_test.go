package snap

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

type pair struct{ key, value string }

// fixture builds a snapshot of [b, y) from an engine that also has keys outside, and streams it to
// another manager.
type fixture struct {
	src, dst *Manager
	dstDir   string
	key      Key
	meta     *rspb.SnapshotMeta
	want     []pair
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{key: Key{RegionID: 7, Term: 6, Index: 42}, dstDir: t.TempDir()}
	e := memengine.New()
	b := e.NewBatch()
	for i := range 300 {
		key := fmt.Sprintf("%c-%03d", 'a'+i%26, i)
		for _, cf := range []engine.CF{engine.CFDefault, engine.CFLock} {
			value := fmt.Sprintf("%s=%d", cf, i)
			if i%5 == 0 {
				value = ""
			}
			b.Put(engine.DataKey(cf, []byte(key)), []byte(value))
		}
	}
	require.NoError(t, e.Write(b, true))
	view := e.NewSnapshot()
	defer view.Close()
	for _, cf := range engine.CFs {
		it := view.NewIterator(engine.DataKey(cf, []byte("b")), engine.DataEndKey(cf, []byte("y")))
		for it.First(); it.Valid(); it.Next() {
			f.want = append(f.want, pair{string(it.Key()), string(it.Value())})
		}
		it.Close()
	}
	var err error
	f.src, err = Open(t.TempDir(), 1)
	require.NoError(t, err)
	f.dst, err = Open(f.dstDir, 1)
	require.NoError(t, err)
	var size uint64
	f.meta, size, err = f.src.Build(view, f.key,
		&metapb.Region{StartKey: []byte("b"), EndKey: []byte("y")})
	require.NoError(t, err)
	require.Equal(t, totalSize(f.meta), size)
	require.Len(t, f.meta.CfFiles, 3)
	require.Zero(t, f.meta.CfFiles[1].Size_, "an empty column family has no file")
	return f
}

func (f *fixture) bytes(t *testing.T) []byte {
	r, err := f.src.OpenBuilt(f.key, f.meta)
	require.NoError(t, err)
	defer r.Close()
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	return data
}

func (f *fixture) receive(t *testing.T, data []byte, chunk int) error {
	recv, err := f.dst.Receive(f.key, f.meta)
	require.NoError(t, err)
	require.NotNil(t, recv)
	defer recv.Close()
	for len(data) > 0 {
		n := min(chunk, len(data))
		if _, err := recv.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return recv.Finish()
}

func TestBuildSendReceiveRead(t *testing.T) {
	for _, chunk := range []int{1, 7, 4096, 1 << 20} {
		f := newFixture(t)
		require.NoError(t, f.receive(t, f.bytes(t), chunk))
		require.NoError(t, f.dst.CheckReceived(7, 6, 42, f.meta))
		require.NoError(t, f.dst.Verify(f.key, f.meta))
		var got []pair
		require.NoError(t, f.dst.Read(f.key, f.meta, func(k, v []byte) error {
			got = append(got, pair{string(k), string(v)})
			return nil
		}))
		require.Equal(t, f.want, got)

		// A second reception finds the files there.
		recv, err := f.dst.Receive(f.key, f.meta)
		require.NoError(t, err)
		require.Nil(t, recv)
		meta, err := f.dst.ReceivedMeta(7, 6, 42)
		require.NoError(t, err)
		require.Equal(t, f.meta, meta)
		f.dst.DeleteReceived(f.key)
		require.ErrorIs(t, f.dst.CheckReceived(7, 6, 42, f.meta), ErrUnusable)
		left, err := os.ReadDir(f.dstDir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func TestIncompleteAndWrongStreamsLeaveNothing(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"cut":      func(b []byte) []byte { return b[:len(b)-1] },
		"empty":    func([]byte) []byte { return nil },
		"too long": func(b []byte) []byte { return append(b, 0) },
		"bit flip": func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			require.ErrorIs(t, f.receive(t, change(f.bytes(t)), 100), ErrUnusable)
			require.Error(t, f.dst.CheckReceived(7, 6, 42, f.meta))
			left, err := os.ReadDir(f.dstDir)
			require.NoError(t, err)
			require.Empty(t, left)
			_, receiving := f.dst.Counts()
			require.Zero(t, receiving)
		})
	}
}

// TestDamagedFilesAreFound flips bits, cuts and zeroes parts of every file of a received snapshot:
// it is never read as if it were whole.
func TestDamagedFilesAreFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	tried := 0
	for round := range 40 {
		f := newFixture(t)
		require.NoError(t, f.receive(t, f.bytes(t), 1<<20))
		files, err := filepath.Glob(filepath.Join(f.dstDir, "*"))
		require.NoError(t, err)
		for _, path := range files {
			orig, err := os.ReadFile(path)
			require.NoError(t, err)
			bad := bytes.Clone(orig)
			switch round % 3 {
			case 0:
				bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			case 1:
				bad = bad[:rng.IntN(len(bad))]
			default:
				from := rng.IntN(len(bad))
				clear(bad[from:min(len(bad), from+512)])
			}
			if bytes.Equal(bad, orig) {
				continue
			}
			require.NoError(t, os.WriteFile(path, bad, 0o600))
			meta, err := f.dst.ReceivedMeta(7, 6, 42)
			if err == nil {
				err = f.dst.Verify(f.key, meta)
			}
			require.ErrorIs(t, err, ErrUnusable, path)
			tried++
			require.NoError(t, os.WriteFile(path, orig, 0o600))
		}
		require.NoError(t, f.dst.Verify(f.key, f.meta))
	}
	t.Logf("%d damaged files found", tried)
	require.Greater(t, tried, 100)
}

func TestForeignListsAreRefused(t *testing.T) {
	f := newFixture(t)
	for name, meta := range map[string]*rspb.SnapshotMeta{
		"nil": nil,
		"few": {CfFiles: f.meta.CfFiles[:2]},
		"order": {
			CfFiles: []*rspb.SnapshotCFFile{
				f.meta.CfFiles[1], f.meta.CfFiles[0], f.meta.CfFiles[2],
			},
		},
		"path": {
			CfFiles: []*rspb.SnapshotCFFile{
				{Cf: "../../etc/passwd"}, f.meta.CfFiles[1], f.meta.CfFiles[2],
			},
		},
	} {
		_, err := f.dst.Receive(f.key, meta)
		require.ErrorIs(t, err, ErrUnusable, name)
		_, err = f.src.OpenBuilt(f.key, meta)
		require.ErrorIs(t, err, ErrUnusable, name)
	}
}

func TestReceptionsAreLimited(t *testing.T) {
	f := newFixture(t)
	recv, err := f.dst.Receive(f.key, f.meta)
	require.NoError(t, err)
	_, err = f.dst.Receive(Key{RegionID: 8, Term: 6, Index: 42}, f.meta)
	require.ErrorIs(t, err, ErrBusy)
	recv.Close()
	recv.Close()
	recv, err = f.dst.Receive(Key{RegionID: 8, Term: 6, Index: 42}, f.meta)
	require.NoError(t, err)
	recv.Close()
}

func listed(t *testing.T, m *Manager) int {
	t.Helper()
	list, err := m.list()
	require.NoError(t, err)
	return len(list)
}

func TestGCSparesWhatIsInUseAndOpenRemovesLeftovers(t *testing.T) {
	f := newFixture(t)
	r, err := f.src.OpenBuilt(f.key, f.meta)
	require.NoError(t, err)
	require.NoError(t, f.src.GC(0))
	f.src.DeleteBuilt(f.key)
	_, err = io.ReadAll(r)
	require.NoError(t, err, "in use")
	require.NoError(t, r.Close())
	require.NoError(t, f.src.GC(time.Hour), "young")
	require.Equal(t, 1, listed(t, f.src))
	require.NoError(t, f.src.GC(0))
	require.Zero(t, listed(t, f.src))

	require.NoError(t, f.receive(t, newFixture(t).bytes(t), 1<<20))
	require.NoError(t,
		os.WriteFile(filepath.Join(f.dstDir, "rev_1_2_3_default.sst.tmp"), []byte("x"), 0o600))
	again, err := Open(f.dstDir, 1)
	require.NoError(t, err)
	require.NoError(t, again.CheckReceived(7, 6, 42, f.meta),
		"a received snapshot survives a restart")
	left, err := filepath.Glob(filepath.Join(f.dstDir, "*.tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
	again.DeleteRegion(7)
	require.Error(t, again.CheckReceived(7, 6, 42, f.meta))
}

// FuzzRecords: a file of any bytes is read or refused, never a panic.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{3, 'z', 'd', 'k', 1, 'v'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = readRecords(path, engine.CFDefault, func(_, _ []byte) error { return nil })
	})
}
