package raftstore

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// writeOf is an entry with one put of a client's n-th write.
func writeOf(index, n, version uint64) *eraftpb.Entry {
	data := message.AppendHeader(nil, 1, &metapb.RegionEpoch{Version: version})
	data = message.AppendPut(message.AppendWriteID(data, message.WriteID{Client: 1, Number: n}),
		"default", []byte("k"), []byte("v"))
	return &eraftpb.Entry{Index: index, Term: 1, Data: message.AppendChecksum(data)}
}

// TestRecentWrites: what is remembered of (from, to] is complete, replaced entries are forgotten,
// entries of another version were not carried out, and a gap ends the memory.
func TestRecentWrites(t *testing.T) {
	versions := []message.VersionMark{{Index: 0, Version: 3}}
	r := message.NewRecentWrites(10)
	of := func(n, from, to uint64) fate {
		require.True(t, r.Covers(from, to))
		return fateIn(r, message.WriteID{Client: 1, Number: n}, from, to, versions,
			new(apply.Swaps))
	}
	for i := uint64(1); i <= 5; i++ {
		require.True(t, r.Add(writeOf(10+i, i, 3)))
	}
	require.Equal(t, fateDone, of(2, 10, 15))
	require.Equal(t, fateNone, of(2, 12, 15), "not behind its own index")
	require.Equal(t, fateNone, of(5, 10, 14), "not applied yet")
	require.False(t, r.Covers(9, 15))
	require.False(t, r.Covers(10, 16))

	require.True(t, r.Add(writeOf(13, 9, 3)), "a new leader's entry")
	require.True(t, r.Covers(10, 13))
	require.False(t, r.Covers(10, 14))
	require.Equal(t, fateNone, of(3, 10, 13), "replaced")
	require.Equal(t, fateDone, of(9, 10, 13))
	require.True(t, r.Add(writeOf(14, 10, 2)))
	require.Equal(t, fateNone, of(10, 10, 14), "refused when it was applied: of an older version")
	require.True(t, r.Add(&eraftpb.Entry{Index: 15, Term: 2}), "a leader's first entry")

	require.False(t, r.Add(writeOf(17, 11, 3)), "a gap: a raft snapshot came between")
	require.False(t, r.Add(writeOf(10, 11, 3)), "all of it is replaced")
	require.False(t, (*message.RecentWrites)(nil).Covers(1, 1))
}
