package mvcc

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/storage"
)

// twin is a dumb model of the same data: every record in one list.
type twin struct {
	versions []twinVersion
	locks    map[string]Lock
}

type twinVersion struct {
	key    string
	commit uint64
	write  Write
	value  string
}

func (w *twin) get(key string, ts uint64) (value string, found bool) {
	var best *twinVersion
	for i := range w.versions {
		v := &w.versions[i]
		if v.key == key && v.commit <= ts && v.write.Changes() &&
			(best == nil || v.commit > best.commit) {
			best = v
		}
	}
	if best == nil || best.write.Kind == WriteKindDelete {
		return "", false
	}
	return best.value, true
}

func (w *twin) keys() []string {
	var out []string
	for _, v := range w.versions {
		out = append(out, v.key)
	}
	for k := range w.locks {
		out = append(out, k)
	}
	sort.Strings(out)
	return slices.Compact(out)
}

// load writes what the twin has through a Writer into an engine and returns a view of it.
func (w *twin) load(t require.TestingT, codec Codec, e engine.Engine) storage.Reader {
	wr := NewWriter(codec)
	for _, v := range w.versions {
		rec := v.write
		if rec.Kind == WriteKindPut {
			if len(v.value) <= codec.InlineLimit() {
				rec.ShortValue = []byte(v.value)
			} else {
				wr.PutValue([]byte(v.key), rec.StartTS, []byte(v.value))
			}
		}
		wr.PutWrite([]byte(v.key), v.commit, &rec)
	}
	for k, l := range w.locks {
		wr.PutLock([]byte(k), &l)
	}
	b := e.NewBatch()
	for _, m := range wr.Modifies() {
		b.Put(engine.DataKey(m.CF, m.Key), m.Value)
	}
	require.NoError(t, e.Write(b, false))
	return storage.NewView(e.NewSnapshot(), nil, nil)
}

func drawTwin(t *rapid.T) *twin {
	w := &twin{locks: map[string]Lock{}}
	keys := []string{
		"", "a", "a\x00", "ab", "aaaaaaaa", "aaaaaaaab", "b", "\xff\xff\xff\xff\xff\xff\xff\xff",
	}
	for i, key := range keys {
		commits := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 30), 0, 12, rapid.ID).Draw(t,
			fmt.Sprint("commits", i))
		for j, c := range commits {
			kind := rapid.SampledFrom([]WriteKind{
				WriteKindPut, WriteKindPut, WriteKindDelete, WriteKindRollback, WriteKindLock,
			}).Draw(t, "kind")
			v := twinVersion{
				key: key, commit: c, write: Write{StartTS: uint64(100*i + j), Kind: kind},
			}
			if kind == WriteKindPut {
				v.value = string(bytes.Repeat([]byte{byte(i), byte(c)},
					rapid.SampledFrom([]int{0, 1, 127, 128}).Draw(t, "size")))
			}
			w.versions = append(w.versions, v)
		}
		if rapid.IntRange(0, 3).Draw(t, "lock") == 0 {
			w.locks[key] = Lock{
				Kind: WriteKindPut, Primary: []byte("p"),
				Ts: rapid.Uint64Range(1, 30).Draw(t, "lockTS"), Ttl: 1,
			}
		}
	}
	return w
}

// TestReadsAgreeWithTheTwin: gets, scans from every place, locks and records of transactions, in
// both formats.
func TestReadsAgreeWithTheTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawTwin(t)
		codec := rapid.SampledFrom([]Codec{CodecTiKV, CodecCourse}).Draw(t, "codec")
		e := memengine.New()
		view := w.load(t, codec, e)
		defer view.Close()
		r := NewReader(view, codec)
		defer r.Close()
		ts := rapid.Uint64Range(0, 31).Draw(t, "ts")
		for _, key := range append(w.keys(), "nothing") {
			value, found, err := r.Get([]byte(key), ts)
			require.NoError(t, err)
			wantValue, wantFound := w.get(key, ts)
			require.Equal(t, wantFound, found, "key %q at %d", key, ts)
			require.Equal(t, wantValue, string(value))
			lock, err := r.Lock([]byte(key))
			require.NoError(t, err)
			want, locked := w.locks[key]
			require.Equal(t, locked, lock != nil)
			if locked {
				require.Equal(t, want, *lock)
			}
		}
		for _, from := range append(w.keys(), "nothing") {
			to := rapid.SampledFrom(append(w.keys(), "", "nothing")).Draw(t, "to")
			for _, reverse := range []bool{false, true} {
				got, want := scanned(t, r, from, to, ts, reverse), w.scan(from, to, ts, reverse)
				require.Equal(t, want, got, "scan of [%q, %q) at %d, reverse %v", from, to, ts,
					reverse)
			}
		}
		for _, v := range w.versions {
			rec, err := r.OwnRecord([]byte(v.key), v.write.StartTS)
			require.NoError(t, err)
			if v.commit >= v.write.StartTS {
				require.NotNil(t, rec.Own)
				require.Equal(t, v.commit, rec.Own.CommitTS)
				require.Equal(t, v.write.Kind == WriteKindRollback, rec.RolledBack())
			}
		}
	})
}

func scanned(
	t require.TestingT, r *Reader, from, to string, ts uint64, reverse bool,
) (out []string) {
	opt := ScanOptions{Span: Span{From: []byte(from)}, Reverse: reverse,
		Look: func(_ []byte, l *Lock) Sight {
			if l.Ts <= ts {
				return Hidden
			}
			return Clear
		}}
	if to != "" {
		opt.To = []byte(to)
	}
	s := NewScanner(r, ts, opt)
	defer s.Close()
	for item, err := s.Next(); item != nil || err != nil; item, err = s.Next() {
		require.NoError(t, err)
		out = append(out, fmt.Sprintf("%q locked=%v %x", item.Key, item.Lock != nil, item.Value))
	}
	return out
}

func (w *twin) scan(from, to string, ts uint64, reverse bool) (out []string) {
	for _, key := range w.keys() {
		l, locked := w.locks[key]
		value, found := w.get(key, ts)
		locked = locked && l.Ts <= ts
		if key < from || to != "" && key >= to || !locked && !found {
			continue
		}
		if locked {
			value = ""
		}
		out = append(out, fmt.Sprintf("%q locked=%v %x", key, locked, value))
	}
	if reverse {
		slices.Reverse(out)
	}
	return out
}

func TestLocksAreListedInPortions(t *testing.T) {
	w := &twin{locks: map[string]Lock{}}
	for i := range 10 {
		w.locks[fmt.Sprintf("key%02d", i)] = Lock{
			Kind: WriteKindPut, Primary: []byte("p"), Ts: uint64(i % 2), Ttl: 1,
		}
	}
	view := w.load(t, CodecTiKV, memengine.New())
	defer view.Close()
	r := NewReader(view, CodecTiKV)
	defer r.Close()
	odd := func(l *Lock) bool { return l.Ts == 1 }
	got, cut, err := r.Locks(Span{}, 3, 1<<20, odd)
	require.NoError(t, err)
	require.Len(t, got, 3)
	require.True(t, cut)
	require.Equal(t, "key05", string(got[2].Key))
	got, cut, err = r.Locks(Span{From: append(got[2].Key, 0)}, 3, 1<<20, odd)
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.False(t, cut)
	got, cut, err = r.Locks(Span{}, 100, 1, odd)
	require.NoError(t, err)
	require.Len(t, got, 1, "the size ends a portion as well")
	require.True(t, cut)
}

// TestMissingValueIsDamage: a Put without its value is not "not found".
func TestMissingValueIsDamage(t *testing.T) {
	mem := storage.NewMemStorage()
	w := Write{StartTS: 1, Kind: WriteKindPut}
	mem.Set("write", EncodeKey([]byte("k"), 2), CodecTiKV.EncodeWrite(&w))
	view, err := mem.Reader(nil)
	require.NoError(t, err)
	r := NewReader(view, CodecTiKV)
	defer r.Close()
	_, _, err = r.Get([]byte("k"), 5)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "DefaultNotFound")
}

// TestFence: a record that was written again, after a newer version, is not seen by reads that
// should see that one.
func TestFence(t *testing.T) {
	mem := storage.NewMemStorage()
	fence := uint64(10)
	w := Write{StartTS: 1, Kind: WriteKindPut, ShortValue: []byte("old"), Fence: &fence}
	mem.Set("write", EncodeKey([]byte("k"), 2), CodecTiKV.EncodeWrite(&w))
	view, err := mem.Reader(nil)
	require.NoError(t, err)
	r := NewReader(view, CodecTiKV)
	defer r.Close()
	_, found, err := r.Get([]byte("k"), 9)
	require.NoError(t, err)
	require.True(t, found)
	_, found, err = r.Get([]byte("k"), 10)
	require.NoError(t, err)
	require.False(t, found)
}
