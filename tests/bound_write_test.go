package tests

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/storage/raftstorage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// leaderStorage is the storage of a region's leader, and the context of requests to it.
func leaderStorage(
	t *testing.T, c *cluster.Cluster, regionID uint64,
) (*cluster.Node, *raftstorage.Storage, *kvrpcpb.Context) {
	t.Helper()
	n := c.WaitLeader(regionID)
	info := cluster.PeerOf(c, n.ID, regionID)
	require.NotNil(t, info)
	return n, raftstorage.New(n.Store(), n.Engine(), 10*time.Second),
		&kvrpcpb.Context{RegionId: regionID, RegionEpoch: info.Region.RegionEpoch, Peer: info.Peer}
}

type boundOutcome struct {
	err   error
	known bool
}

func writeBound(
	st storage.BoundStorage, rc *kvrpcpb.Context, term uint64, key, value string,
) boundOutcome {
	done := make(chan boundOutcome, 1)
	mods := []storage.Modify{{CF: engine.CFDefault, Key: []byte(key), Value: []byte(value)}}
	st.WriteBound(rc, storage.Bound{Term: term}, mods, time.Now().Add(10*time.Second),
		func(err error, known bool) {
			done <- boundOutcome{err, known}
		})
	return <-done
}

// TestDecisionOfAnEarlierTermIsRefused: a leader decides on a view, loses the leadership to another
// store that writes the same key, and gets it back. Its write would undo what it has not seen.
func TestDecisionOfAnEarlierTermIsRefused(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "0")
	first, st, rc := leaderStorage(t, c, cluster.FirstRegionID)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, term, err := st.BoundReader(ctx, rc, []byte("k"))
	require.NoError(t, err)
	r.Close()
	require.Equal(t, boundOutcome{nil, true}, writeBound(st, rc, term, "k", "1"),
		"in the same term it is carried out")

	for _, n := range c.Nodes() {
		if n != first {
			c.TransferLeader(cluster.FirstRegionID,
				cluster.PeerOf(c, n.ID, cluster.FirstRegionID).Peer)
			break
		}
	}
	out := writeBound(st, rc, term, "k", "stale")
	var notLeader *regionerr.NotLeaderError
	require.ErrorAs(t, out.err, &notLeader)
	require.True(t, out.known)
	mustPut(t, c, cl, "k", "2")
	c.TransferLeader(cluster.FirstRegionID, rc.Peer)

	out = writeBound(st, rc, term, "k", "stale")
	var stale *regionerr.StaleCommandError
	require.ErrorAs(t, out.err, &stale)
	require.True(t, out.known)
	mustGet(t, c, cl, "k", "2")
	again, err := st.Leadership(rc)
	require.NoError(t, err)
	require.Greater(t, again, term)
}

// TestBoundWriteOfAnEarlierEpochIsRefused: the region was split since the view was taken.
func TestBoundWriteOfAnEarlierEpochIsRefused(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "0")
	mustPut(t, c, cl, "z", "0")
	_, st, rc := leaderStorage(t, c, cluster.FirstRegionID)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, term, err := st.BoundReader(ctx, rc, []byte("a"))
	require.NoError(t, err)
	r.Close()
	c.Split([]byte("m"))
	out := writeBound(st, rc, term, "a", "stale")
	require.Error(t, out.err)
	require.True(t, out.known)
	mustGet(t, c, cl, "a", "0")
}

// TestBoundReaderWithoutALease names the term of the proof.
func TestBoundReaderWithoutALease(t *testing.T) {
	c := cluster.New(t,
		cluster.Options{Stores: 3, Tune: func(cfg *config.Config) {
			cfg.Raftstore.ReadMode = "read-index"
		}})
	_, st, rc := leaderStorage(t, c, cluster.FirstRegionID)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, term, err := st.BoundReader(ctx, rc, []byte("k"))
	require.NoError(t, err)
	r.Close()
	require.Equal(t, boundOutcome{nil, true}, writeBound(st, rc, term, "k", "1"))
}
