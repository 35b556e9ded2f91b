package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// TestReadsOverRegions: scans in both orders, and batch gets, agree with a map: over regions that
// begin at keys, between keys and at prefixes of keys, with limits, and with what the transaction
// itself has written.
func TestReadsOverRegions(t *testing.T) {
	c, cl := txnCluster(t, 0, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := rand.New(rand.NewPCG(1, 2))
	twin, all := map[string]string{}, []string{}
	require.NoError(t, cl.Run(ctx, func(x *txn.Txn) error {
		for i := range 600 {
			key := strings.Repeat("k", i%3+1) + strings.Repeat("\x00", i%2) +
				fmt.Sprintf("%04d", i*7) + strings.Repeat("\xff", i%11)
			twin[key] = fmt.Sprint(i, strings.Repeat("v", i%400))
			x.Set([]byte(key), []byte(twin[key]))
		}
		return nil
	}))
	for key := range twin {
		all = append(all, key)
	}
	slices.Sort(all)
	for _, at := range []string{
		all[20], all[21], all[100] + "\x00", "kk", all[300], all[400][:3] + "\xff", all[599],
	} {
		c.Split(memcomparable.Encode([]byte(at)))
	}
	x, err := cl.Begin(ctx)
	require.NoError(t, err)
	for i := range 40 {
		if key := all[r.IntN(len(all))]; i%2 == 0 {
			x.Delete([]byte(key))
			delete(twin, key)
		} else {
			x.Set([]byte(key+"!"), []byte("mine"))
			twin[key+"!"] = "mine"
		}
	}
	bound := func() []byte {
		switch key := all[r.IntN(len(all))]; r.IntN(5) {
		case 0:
			return nil
		case 1:
			return []byte(key[:len(key)-1])
		case 2:
			return []byte(key + "\x00")
		default:
			return []byte(key)
		}
	}
	for range 60 {
		start, end, limit := bound(), bound(), r.IntN(700)
		for _, reverse := range []bool{false, true} {
			var want []string
			for key := range twin {
				if key >= string(start) && (len(end) == 0 || key < string(end)) {
					want = append(want, key)
				}
			}
			slices.Sort(want)
			scan := x.Scan
			if reverse {
				slices.Reverse(want)
				scan = x.ReverseScan
			}
			if limit > 0 && len(want) > limit {
				want = want[:limit]
			}
			pairs, err := scan(ctx, start, end, limit)
			require.NoError(t, err)
			var got []string
			for _, kv := range pairs {
				got = append(got, string(kv.Key))
				require.Equal(t, twin[string(kv.Key)], string(kv.Value))
			}
			require.Equal(t, want, got, "[%q, %q), at most %d, reverse %v", start, end, limit,
				reverse)
		}
	}
	keys := [][]byte{[]byte("nothing"), []byte(all[0]), []byte(all[0])}
	for _, key := range all {
		keys = append(keys, []byte(key), []byte(key+"!"))
	}
	got, err := x.BatchGet(ctx, keys)
	require.NoError(t, err)
	require.Len(t, got, len(twin))
	for key, value := range got {
		require.Equal(t, twin[key], string(value))
	}
}

// TestRecordsAndLocks: what people are shown of a key, and of the locks of all regions.
func TestRecordsAndLocks(t *testing.T) {
	c, cl := txnCluster(t, 20, 4)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	long := make([]byte, 1000)
	for _, value := range [][]byte{[]byte("1"), long} {
		require.NoError(t,
			cl.Run(ctx, func(x *txn.Txn) error { x.Set(bankKey(3), value); return nil }))
	}
	require.NoError(t, cl.Run(ctx, func(x *txn.Txn) error { x.Delete(bankKey(3)); return nil }))
	info, err := cl.Records(ctx, bankKey(3))
	require.NoError(t, err)
	require.Nil(t, info.Lock)
	require.Len(t, info.Writes, 3)
	require.Equal(t, "delete", info.Writes[0].Type)
	require.False(t, info.Writes[1].HasShortValue)
	require.Equal(t, "1", string(info.Writes[2].ShortValue))
	require.Equal(t, []*kvrpcpb.MvccValue{{StartTs: info.Writes[1].StartTs, Value: long}},
		info.Values)

	// A client dies when its primary is committed: the keys of other regions stay locked.
	kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient {
		return dying{s, bankKey(1)}
	})
	dead := txn.New(kv, c.Placement)
	dead.SetCommits(txn.TwoPhases) // the primary is committed when Commit returns
	x, err := dead.Begin(ctx)
	require.NoError(t, err)
	for _, i := range []int{1, 7, 15, 19} {
		x.Set(bankKey(i), []byte("new"))
	}
	require.NoError(t, x.Commit(ctx))
	dead.Close()
	kv.Close()
	now, err := cl.Timestamp(ctx)
	require.NoError(t, err)
	locks := func(maxTS uint64, start, end []byte, most int) (out []int) {
		require.NoError(t, cl.Locks(ctx, maxTS, start, end, func(l *kvrpcpb.LockInfo) bool {
			i := slices.IndexFunc([]int{1, 7, 15, 19}, func(i int) bool {
				return string(bankKey(i)) == string(l.Key)
			})
			require.Equal(t, x.StartTS(), l.LockVersion)
			require.Equal(t, bankKey(1), l.PrimaryLock)
			require.Equal(t, "put", l.Type)
			out = append(out, i)
			return len(out) < most
		}))
		return out
	}
	require.Equal(t, []int{1, 2, 3}, locks(now, nil, nil, 9))
	require.Equal(t, []int{2}, locks(now, bankKey(8), bankKey(19), 9))
	require.Equal(t, []int{1, 2}, locks(now, nil, nil, 2))
	require.Empty(t, locks(x.StartTS()-1, nil, nil, 9))
	info, err = cl.Records(ctx, bankKey(7))
	require.NoError(t, err)
	require.Equal(t, "new", string(info.LockValue))
	require.Equal(t, x.StartTS(), info.Lock.LockVersion)
}
