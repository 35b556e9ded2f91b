package mvcc_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/kv/util/engine_util"
)

func courseTxn(t *testing.T, startTS uint64, fill func(m *storage.MemStorage)) *mvcc.MvccTxn {
	t.Helper()
	mem := storage.NewMemStorage()
	if fill != nil {
		fill(mem)
	}
	r, err := mem.Reader(nil)
	require.NoError(t, err)
	return mvcc.NewMvccTxn(r, startTS)
}

// TestKeysAndTimestamps4A: user keys ascend, timestamps descend.
func TestKeysAndTimestamps4A(t *testing.T) {
	require.Equal(t, []byte{0, 0, 0, 0, 0, 0, 0, 0, 247, 255, 255, 255, 255, 255, 255, 255, 255},
		mvcc.EncodeKey(nil, 0))
	require.Equal(t, []byte{42, 0, 5, 0, 0, 0, 0, 0, 250, 0, 0, 39, 154, 52, 120, 65, 255},
		mvcc.EncodeKey([]byte{42, 0, 5}, ^uint64(43543258743295)))
	require.Equal(t, []byte{42, 0, 5},
		mvcc.DecodeUserKey(mvcc.EncodeKey([]byte{42, 0, 5}, 2342342355436234)))
	require.Nil(t, mvcc.DecodeUserKey([]byte{1, 2}))
	require.Less(t, string(mvcc.EncodeKey([]byte{1}, 5)), string(mvcc.EncodeKey([]byte{1}, 4)))
	require.Less(t, string(mvcc.EncodeKey([]byte{1}, 0)), string(mvcc.EncodeKey([]byte{1, 0}, 9)))
}

// TestChangesOfATransaction4A: what each method writes, and where.
func TestChangesOfATransaction4A(t *testing.T) {
	txn := courseTxn(t, 42, nil)
	lock := mvcc.Lock{Primary: []byte{16}, Ts: 100, Ttl: 100000, Kind: mvcc.WriteKindRollback}
	write := mvcc.Write{StartTS: 7, Kind: mvcc.WriteKindDelete}
	txn.PutLock([]byte{1}, &lock)
	txn.PutWrite([]byte{1}, 60, &write)
	txn.PutValue([]byte{1}, []byte{5})
	txn.DeleteLock([]byte{1})
	txn.DeleteValue([]byte{1})
	want := []any{
		storage.Put{Cf: engine_util.CfLock, Key: []byte{1}, Value: lock.ToBytes()},
		storage.Put{
			Cf: engine_util.CfWrite, Key: mvcc.EncodeKey([]byte{1}, 60), Value: write.ToBytes(),
		},
		storage.Put{
			Cf: engine_util.CfDefault, Key: mvcc.EncodeKey([]byte{1}, 42), Value: []byte{5},
		},
		storage.Delete{Cf: engine_util.CfLock, Key: []byte{1}},
		storage.Delete{Cf: engine_util.CfDefault, Key: mvcc.EncodeKey([]byte{1}, 42)},
	}
	var got []any
	for _, c := range txn.Writes() {
		got = append(got, c.Data)
		require.NotEmpty(t, c.Key())
		require.NotEmpty(t, c.Cf())
	}
	require.Equal(t, want, got)
	require.Len(t, lock.ToBytes(), 18)
	require.Len(t, write.ToBytes(), 9)
}

// TestWhatATransactionSees4A: locks, values by commit timestamp, its own record and the newest one.
func TestWhatATransactionSees4A(t *testing.T) {
	key := []byte{16, 240}
	lock := mvcc.Lock{Primary: []byte{16}, Ts: 100, Ttl: 100000, Kind: mvcc.WriteKindPut}
	fill := func(m *storage.MemStorage) {
		m.Set(engine_util.CfLock, key, lock.ToBytes())
		for _, w := range []struct {
			write  mvcc.Write
			commit uint64
		}{
			{mvcc.Write{StartTS: 40, Kind: mvcc.WriteKindPut}, 42},
			{mvcc.Write{StartTS: 50, Kind: mvcc.WriteKindRollback}, 50},
			{mvcc.Write{StartTS: 52, Kind: mvcc.WriteKindPut}, 54},
			{mvcc.Write{StartTS: 60, Kind: mvcc.WriteKindDelete}, 61},
		} {
			m.Set(engine_util.CfWrite, mvcc.EncodeKey(key, w.commit), w.write.ToBytes())
			if w.write.Kind == mvcc.WriteKindPut {
				m.Set(engine_util.CfDefault, mvcc.EncodeKey(key, w.write.StartTS),
					[]byte{byte(w.commit)})
			}
		}
	}
	got, err := courseTxn(t, 42, fill).GetLock(key)
	require.NoError(t, err)
	require.Equal(t, &lock, got)
	for at, want := range map[uint64][]byte{
		41: nil, 42: {42}, 50: {42}, 53: {42}, 54: {54}, 60: {54}, 61: nil, mvcc.TsMax: nil,
	} {
		value, err := courseTxn(t, at, fill).GetValue(key)
		require.NoError(t, err)
		require.Equal(t, want, value, "at %d", at)
	}
	for start, commit := range map[uint64]uint64{40: 42, 50: 50, 52: 54, 60: 61, 41: 0} {
		w, c, err := courseTxn(t, start, fill).CurrentWrite(key)
		require.NoError(t, err)
		require.Equal(t, commit, c)
		require.Equal(t, commit != 0, w != nil)
	}
	w, c, err := courseTxn(t, 1, fill).MostRecentWrite(key)
	require.NoError(t, err)
	require.Equal(t, uint64(61), c)
	require.Equal(t, uint64(60), w.StartTS)
	none, err := courseTxn(t, 99, fill).GetValue([]byte{17})
	require.NoError(t, err)
	require.Nil(t, none)
}

// TestCourseRecords4A: records come back as they were, and short ones are errors.
func TestCourseRecords4A(t *testing.T) {
	l := &mvcc.Lock{Primary: []byte("primary"), Ts: 1, Ttl: 2, Kind: mvcc.WriteKindDelete}
	got, err := mvcc.ParseLock(l.ToBytes())
	require.NoError(t, err)
	require.Equal(t, l, got)
	_, err = mvcc.ParseLock(make([]byte, 16))
	require.ErrorIs(t, err, mvcc.ErrCorrupt)
	w := &mvcc.Write{StartTS: 3, Kind: mvcc.WriteKindRollback}
	back, err := mvcc.ParseWrite(w.ToBytes())
	require.NoError(t, err)
	require.Equal(t, w, back)
	_, err = mvcc.ParseWrite([]byte{1})
	require.ErrorIs(t, err, mvcc.ErrCorrupt)
}
