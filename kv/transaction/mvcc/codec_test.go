package mvcc

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestRecordBytes: the bytes of TiKV, field by field.
func TestRecordBytes(t *testing.T) {
	fence := uint64(7)
	for name, c := range map[string]struct {
		lock  *Lock
		write *Write
		want  string
	}{
		"plain lock": {
			lock: &Lock{Kind: WriteKindPut, Primary: []byte("pk"), Ts: 1, Ttl: 10},
			want: "50 04 706b 01 0a",
		},
		"pessimistic lock": {
			lock: &Lock{
				Kind: WriteKindPessimistic, Primary: []byte("pk"), Ts: 300, Ttl: 0, ForUpdateTS: 2,
			}, want: "53 04706b ac02 00 66 0000000000000002",
		},
		"value inside": {
			lock: &Lock{
				Kind: WriteKindPut, Primary: []byte("p"), Ts: 1, Ttl: 2, ShortValue: []byte("val"),
			}, want: "50 0270 01 02 76 03 76616c",
		},
		"empty value inside": {
			lock: &Lock{
				Kind: WriteKindPut, Primary: []byte("p"), Ts: 1, Ttl: 2, ShortValue: []byte{},
			}, want: "50 0270 01 02 76 00",
		},
		"async commit": {
			lock: &Lock{
				Kind: WriteKindDelete, Primary: []byte("p"), Ts: 1, Ttl: 2, TxnSize: 1,
				MinCommitTS: 3, AsyncCommit: true, Secondaries: [][]byte{[]byte("s")},
				RollbackTS: []uint64{9},
			},
			want: "44 0270 01 02 74 0000000000000001 63 0000000000000003 61 01 0273 72 01 0000000000000009",
		},
		"the rest of a lock": {
			lock: &Lock{
				Kind: WriteKindLock, Primary: []byte("p"), Ts: 1, Ttl: 2,
				LastChange: LastChange{TS: 5, Versions: 2}, TxnSource: 1, LockedWithConflict: true,
				Generation: 4,
			},
			want: "4c 0270 01 02 6c 0000000000000005 02 73 01 46 67 0000000000000004",
		},
		"put": {
			write: &Write{Kind: WriteKindPut, StartTS: 300, ShortValue: []byte("v")},
			want:  "50 ac02 76 01 76",
		},
		"delete": {write: &Write{Kind: WriteKindDelete, StartTS: 1}, want: "44 01"},
		"protected rollback": {
			write: &Write{Kind: WriteKindRollback, StartTS: 1, ShortValue: []byte("p")},
			want:  "52 01 76 01 70",
		},
		"written again": {
			write: &Write{
				Kind: WriteKindPut, StartTS: 1, OverlappedRollback: true, Fence: &fence,
				LastChange: LastChange{Versions: 1}, TxnSource: 3,
			},
			want: "50 01 52 46 0000000000000007 6c 0000000000000000 01 53 03",
		},
	} {
		want, err := hex.DecodeString(stripSpaces(c.want))
		require.NoError(t, err, name)
		if c.lock != nil {
			require.Equal(t, want, CodecTiKV.EncodeLock(c.lock), name)
			got, err := CodecTiKV.DecodeLock(want)
			require.NoError(t, err, name)
			require.Equal(t, *c.lock, got, name)
			continue
		}
		require.Equal(t, want, CodecTiKV.EncodeWrite(c.write), name)
		got, err := CodecTiKV.DecodeWrite(want)
		require.NoError(t, err, name)
		require.Equal(t, *c.write, got, name)
	}
}

func stripSpaces(s string) string {
	out := ""
	for _, r := range s {
		if r != ' ' {
			out += string(r)
		}
	}
	return out
}

// TestUnknownFields: a write record may have fields of newer versions behind the known ones; a lock
// may not.
func TestUnknownFields(t *testing.T) {
	w, err := CodecTiKV.DecodeWrite([]byte{'P', 5, 'z', 1, 2, 3})
	require.NoError(t, err)
	require.Equal(t, Write{Kind: WriteKindPut, StartTS: 5}, w)
	_, err = CodecTiKV.DecodeLock([]byte{'P', 2, 'k', 5, 1, 'z', 1})
	require.ErrorIs(t, err, ErrCorrupt)
	_, err = CodecTiKV.DecodeLock([]byte{'H', 2, 'k', 5, 1})
	require.ErrorIs(t, err, ErrCorrupt, "shared locks are not known")
}

func FuzzDecodeLock(f *testing.F) {
	f.Add([]byte{'P', 2, 'k', 5, 1, 'a', 1, 2, 's', 'v', 1, 1})
	f.Add([]byte{'S', 0, 1, 1, 'r', 1, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, c := range []Codec{CodecTiKV, CodecCourse} {
			l, err := c.DecodeLock(data)
			if err != nil {
				continue
			}
			if int(l.Kind) >= len(lockKinds) || lockKinds[l.Kind] == 0 {
				continue // the course's format has no check of it
			}
			again, err := c.DecodeLock(c.EncodeLock(&l))
			require.NoError(t, err)
			require.Equal(t, c.EncodeLock(&l), c.EncodeLock(&again))
		}
	})
}

func FuzzDecodeWrite(f *testing.F) {
	f.Add([]byte{'P', 5, 'v', 1, 1, 'R', 'F', 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, c := range []Codec{CodecTiKV, CodecCourse} {
			if w, err := c.DecodeWrite(data); err == nil {
				again, err := c.DecodeWrite(c.EncodeWrite(&w))
				if int(w.Kind) < len(writeKinds) && writeKinds[w.Kind] != 0 {
					require.NoError(t, err)
					require.Equal(t, w, again)
				}
			}
		}
	})
}

func FuzzSplitKey(f *testing.F) {
	f.Add(EncodeKey([]byte("key"), 5))
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, ts, err := SplitKey(data); err == nil {
			require.Equal(t, data, EncodeKey(key, ts))
		}
	})
}

// TestNewerVersionsSortFirst: by key, then newest first.
func TestNewerVersionsSortFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 0, 12).Draw(t, "key")
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		require.Equal(t, a > b, string(EncodeKey(key, a)) < string(EncodeKey(key, b)))
	})
}
