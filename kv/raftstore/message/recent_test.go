package message

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// writeOf is an entry with one put of a client's write of that number.
func writeOf(index uint64) *eraftpb.Entry {
	data := AppendHeader(nil, 1, &metapb.RegionEpoch{Version: 1})
	data = AppendPut(AppendWriteID(data, WriteID{Client: 1, Number: index}), "default", []byte("k"),
		[]byte("v"))
	return &eraftpb.Entry{Index: index, Term: 1, Data: AppendChecksum(data)}
}

// TestRecentWritesAreBounded: the older half is forgotten, and that is not covered any more.
func TestRecentWritesAreBounded(t *testing.T) {
	r := &RecentWrites{}
	for i := uint64(1); i <= 10*maxRecent; i++ {
		require.True(t, r.Add(writeOf(i)))
		require.LessOrEqual(t, r.ids, maxRecent)
		require.Len(t, r.entries, r.ids)
		require.Equal(t, r.entries[0].index, r.from+1)
	}
	require.Greater(t, r.from, uint64(8*maxRecent))
	require.True(t, r.Covers(r.from, 10*maxRecent))
	require.False(t, r.Covers(r.from-1, 10*maxRecent))
}

// TestClonedRecentWrites: a copy knows what was known when it was made, whatever comes after.
func TestClonedRecentWrites(t *testing.T) {
	require.Nil(t, (*RecentWrites)(nil).Clone())
	r := NewRecentWrites(0)
	for i := uint64(1); i <= maxRecent; i++ {
		require.True(t, r.Add(writeOf(i)))
	}
	c := r.Clone()
	for i := uint64(maxRecent + 1); i <= 3*maxRecent; i++ {
		require.True(t, r.Add(writeOf(i)))
	}
	require.True(t, c.Covers(0, maxRecent))
	require.False(t, c.Covers(0, maxRecent+1))
	for i := uint64(1); i <= maxRecent; i++ {
		seen := []uint64{}
		c.Visit(WriteID{Client: 1, Number: i}, 0, maxRecent, func(index, _ uint64, _ bool) {
			seen = append(seen, index)
		})
		require.Equal(t, []uint64{i}, seen)
	}
}
