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
	data = message.AppendPut(message.AppendWriteID(data, message.WriteID{Client: 1, Number: n}), "default", []byte("k"), []byte("v"))
	return &eraftpb.Entry{Index: index, Term: 1, Data: message.AppendChecksum(data)}
}

// TestRecentWrites: what is remembered of (from, to] is complete, replaced entries are forgotten, entries of another version
// were not carried out, and a gap ends the memory.
func TestRecentWrites(t *testing.T) {
	versions := []message.VersionMark{{Index: 0, Version: 3}}
	r := &recentWrites{from: 10, to: 10}
	of := func(n, from, to uint64) fate {
		require.True(t, r.covers(from, to))
		return r.fateOf(message.WriteID{Client: 1, Number: n}, from, to, versions, new(apply.Swaps))
	}
	for i := uint64(1); i <= 5; i++ {
		require.True(t, r.add(writeOf(10+i, i, 3)))
	}
	require.Equal(t, fateDone, of(2, 10, 15))
	require.Equal(t, fateNone, of(2, 12, 15), "not behind its own index")
	require.Equal(t, fateNone, of(5, 10, 14), "not applied yet")
	require.False(t, r.covers(9, 15))
	require.False(t, r.covers(10, 16))

	require.True(t, r.add(writeOf(13, 9, 3)), "a new leader's entry")
	require.Equal(t, uint64(13), r.to)
	require.Equal(t, fateNone, of(3, 10, 13), "replaced")
	require.Equal(t, fateDone, of(9, 10, 13))
	require.True(t, r.add(writeOf(14, 10, 2)))
	require.Equal(t, fateNone, of(10, 10, 14), "refused when it was applied: of an older version")
	require.True(t, r.add(&eraftpb.Entry{Index: 15, Term: 2}), "a leader's first entry")

	require.False(t, r.add(writeOf(17, 11, 3)), "a gap: a raft snapshot came between")
	require.False(t, r.add(writeOf(10, 11, 3)), "all of it is replaced")
	require.False(t, (*recentWrites)(nil).covers(1, 1))
}

// TestRecentWritesAreBounded: the older half is forgotten, and that is not covered any more.
func TestRecentWritesAreBounded(t *testing.T) {
	r := &recentWrites{}
	for i := uint64(1); i <= 10*maxRecent; i++ {
		require.True(t, r.add(writeOf(i, i, 1)))
		require.LessOrEqual(t, r.ids, maxRecent)
		require.Len(t, r.entries, r.ids)
		require.Equal(t, r.entries[0].index, r.from+1)
	}
	require.Greater(t, r.from, uint64(8*maxRecent))
	require.True(t, r.covers(r.from, 10*maxRecent))
	require.False(t, r.covers(r.from-1, 10*maxRecent))
}
