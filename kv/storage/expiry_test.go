package storage_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/engines"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/storage"
)

// TestLivingKeysOfEveryEngine: over each engine, a view that hides what has expired shows to gets
// and to iterators that turn round at will what a list has.
func TestLivingKeysOfEveryEngine(t *testing.T) {
	for _, name := range []string{"pebble", "badger", "memory"} {
		t.Run(name, func(t *testing.T) {
			var e engine.Engine = memengine.New()
			if name != "memory" {
				var err error
				e, err = engines.Open(name, engine.Options{Dir: t.TempDir()})
				require.NoError(t, err)
			}
			defer func() { require.NoError(t, e.Close()) }()
			for seed := range uint64(20) {
				checkLiving(t, e, rand.New(rand.NewPCG(seed, 3)))
			}
		})
	}
}

func checkLiving(t *testing.T, e engine.Engine, rng *rand.Rand) {
	t.Helper()
	require.NoError(t, engine.ClearFamilies(e, nil, nil))
	const now = 50
	b, living := e.NewBatch(), []string{}
	for i := range 40 {
		key := []byte(fmt.Sprintf("k%02d", i))
		at := rng.Uint64N(100)
		switch rng.IntN(4) {
		case 0:
			continue
		case 1:
			at = 0
		default:
			b.Put(engine.DataKey(engine.CFWrite.Expiry(), key),
				engine.AppendExpiry(nil, max(1, at)))
			b.Put(engine.DataKey(engine.CFDefault, key), []byte("of another family"))
			at = max(1, at)
		}
		b.Put(engine.DataKey(engine.CFWrite, key), []byte("v"))
		if at == 0 || at > now {
			living = append(living, string(key))
		}
	}
	require.NoError(t, e.Write(b, false))
	v := storage.NewView(e.NewSnapshot(), []byte("k02"), []byte("k38")).HideExpired(now)
	defer v.Close()
	living = slices.DeleteFunc(living, func(k string) bool { return k < "k02" || k >= "k38" })
	for i := 2; i < 38; i++ {
		key := fmt.Sprintf("k%02d", i)
		_, found, err := v.Get(engine.CFWrite, []byte(key))
		require.NoError(t, err)
		require.Equal(t, slices.Contains(living, key), found, key)
	}
	it := v.Iterate(engine.CFWrite, nil, nil)
	defer it.Close()
	walk(t, it, living, rng)
}

// walk moves an iterator at random and compares where it is with a place in a list.
func walk(t *testing.T, it storage.Iterator, want []string, rng *rand.Rand) {
	t.Helper()
	at := -1
	for range 200 {
		inside := at >= 0 && at < len(want)
		key := fmt.Sprintf("k%02d", rng.IntN(40))
		place, _ := slices.BinarySearch(want, key)
		switch move := rng.IntN(8); {
		case move == 0:
			it.First()
			at = 0
		case move == 1:
			it.Last()
			at = len(want) - 1
		case move == 2 || !inside && move%2 == 0:
			it.SeekGE([]byte(key))
			at = place
		case move == 3 || !inside:
			it.SeekLT([]byte(key))
			at = place - 1
		case move < 6:
			it.Next()
			at++
		default:
			it.Prev()
			at--
		}
		require.NoError(t, it.Err())
		if at < 0 || at >= len(want) {
			require.False(t, it.Valid())
			continue
		}
		require.True(t, it.Valid())
		require.Equal(t, want[at], string(it.Key()))
	}
}

func TestDamagedExpiryTimeIsAnError(t *testing.T) {
	e := memengine.New()
	b := e.NewBatch()
	b.Put(engine.DataKey(engine.CFDefault, []byte("k")), []byte("v"))
	b.Put(engine.DataKey(engine.CFDefault.Expiry(), []byte("k")), []byte("short"))
	require.NoError(t, e.Write(b, false))
	var reported []error
	v := storage.NewView(e.NewSnapshot(), nil, nil).HideExpired(1).Report(func(err error) {
		reported = append(reported, err)
	})
	defer v.Close()
	_, found, err := v.Get(engine.CFDefault, []byte("k"))
	require.ErrorIs(t, err, engine.ErrCorrupt)
	require.False(t, found)
	it := v.Iterate(engine.CFDefault, nil, nil)
	defer it.Close()
	it.First()
	require.False(t, it.Valid())
	require.ErrorIs(t, it.Err(), engine.ErrCorrupt)
	_, _, err = v.TTL(engine.CFDefault, []byte("k"))
	require.ErrorIs(t, err, engine.ErrCorrupt)
	require.Len(t, reported, 3)
}

func TestSeconds(t *testing.T) {
	for _, c := range []struct{ now, at, want uint64 }{
		{5000, 5000, 0}, {5000, 4000, 0}, {5000, 5001, 1}, {5000, 6000, 1}, {5000, 6001, 2},
		{0, 1<<64 - 1, 18446744073709552},
	} {
		require.Equal(t, c.want, storage.Seconds(c.now, c.at), "%v", c)
	}
	require.NoError(t, storage.CheckTTL(storage.MaxTTL))
	require.Error(t, storage.CheckTTL(storage.MaxTTL+1))
}
