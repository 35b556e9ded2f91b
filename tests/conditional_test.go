package tests

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// conditional sends a conditional request to a region's leader, by way of the region as it is
// given.
func conditional(
	n *cluster.Node, r *metapb.Region, key string, payload []byte, id message.Identity, done *message.Answer,
) *message.Callback {
	m := &message.Write{
		Header: message.Header{
			RegionID: r.Id, Peer: cluster.OnStore(r, n.ID), Epoch: r.RegionEpoch,
		},
		MinKey: []byte(key), MaxKey: []byte(key), Callback: message.NewCallback(), Identity: id,
		Deadline:    time.Now().Add(20 * time.Second),
		Payload:     append(message.AppendWriteID(nil, id.ID), payload...),
		Conditional: &message.Condition{Needs: feature.ConditionalOps, IfDone: done},
	}
	n.Store().Write(m)
	return m.Callback
}

// swap sends an attempt at a compare-and-swap to a store.
func (w *writer) swap(n *cluster.Node, expected, value string, id message.Identity) message.Result {
	w.t.Helper()
	r, err := w.c.Placement.GetRegion(context.Background(), []byte(w.key))
	require.NoError(w.t, err)
	payload := message.AppendSwap(nil, &raft_cmdpb.CompareAndSwapRequest{
		Cf: "default", Key: []byte(w.key), Value: []byte(value),
		Expected: &raft_cmdpb.ExpectedValue{Value: []byte(expected)},
	})
	done := &message.Answer{
		Swap: &message.Swap{Swapped: true, Found: true, Previous: []byte(expected)},
	}
	return wait(w.t, conditional(n, r.Meta, w.key, payload, id, done))
}

func requireSwap(t *testing.T, res message.Result, swapped bool, previous string) {
	t.Helper()
	require.NoError(t, res.Err)
	require.Equal(t, &message.Swap{Swapped: swapped, Found: true, Previous: []byte(previous)},
		res.Swap())
}

// TestRetriedSwapIsNotDecidedAgain: a compare-and-swap swaps, its answer is lost, another client
// puts the old value back. The retry must not swap again, and the answer says that it has: by the
// same leader, by the next one, after a split. When all stores have started again nobody knows any
// more how it ended, and nobody guesses.
func TestRetriedSwapIsNotDecidedAgain(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	w := newWriter(t, c, "k", 1)
	p := position(t, c, "k")
	mustPut(t, c, cl, "k", "A")
	requireSwap(t, w.swap(leader, "A", "B", w.next(p)), true, "A")
	mustGet(t, c, cl, "k", "B")
	mustPut(t, c, cl, "k", "A")
	origin := message.Origin{RegionID: first, Position: p}

	requireSwap(t, w.swap(leader, "A", "B", w.next(p, origin)), true, "A")
	mustGet(t, c, cl, "k", "A")
	requireSwap(t, w.swap(moveLeader(t, c), "A", "B", w.next(p, origin)), true, "A")
	mustGet(t, c, cl, "k", "A")
	c.Split([]byte("j"))
	right, err := c.Placement.GetRegion(context.Background(), []byte("k"))
	require.NoError(t, err)
	requireSwap(t,
		w.swap(c.WaitLeader(right.Meta.Id), "A", "B", w.next(position(t, c, "k"), origin)), true,
		"A")
	mustGet(t, c, cl, "k", "A")

	for _, n := range c.Nodes() {
		n.Crash(faultfs.DropAll)
	}
	for _, n := range c.Nodes() {
		n.Restart()
	}
	var undetermined *regionerr.UndeterminedError
	res := w.swap(c.WaitLeader(right.Meta.Id), "A", "B", w.next(position(t, c, "k"), origin))
	require.ErrorAs(t, res.Err, &undetermined)
	mustGet(t, c, cl, "k", "A")
	c.CheckConsistency()
}

// TestRetriedSwapThatFoundAnotherValue has changed nothing: the retry is decided by the value of
// its own moment, once.
func TestRetriedSwapThatFoundAnotherValue(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	w := newWriter(t, c, "k", 1)
	p := position(t, c, "k")
	mustPut(t, c, cl, "k", "Z")
	requireSwap(t, w.swap(leader, "A", "B", w.next(p)), false, "Z")
	origin := message.Origin{RegionID: first, Position: p}
	requireSwap(t, w.swap(leader, "A", "B", w.next(p, origin)), false, "Z")
	mustPut(t, c, cl, "k", "A")
	requireSwap(t, w.swap(leader, "A", "B", w.next(p, origin)), true, "A")
	mustGet(t, c, cl, "k", "B")
	mustPut(t, c, cl, "k", "A")
	requireSwap(t, w.swap(leader, "A", "B", w.next(p, origin)), true, "A")
	mustGet(t, c, cl, "k", "A")
	require.Equal(t, 3, entriesOf(t, leader, first, w.id),
		"the last retry was answered from the log")
}

// TestDeleteRangeBehindASplit: a delete of a range that was planned for the region before a split
// is refused as a whole. One that is applied is in the raft snapshot of a replica that comes later,
// and is not undone by a start.
func TestDeleteRangeBehindASplit(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 4, Replicas: 3})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	for i := range 26 {
		mustPut(t, c, cl, string(rune('a'+i)), "v")
	}
	before := c.Placement.Region(first)
	c.Split([]byte("m"))
	all := message.AppendDeleteRange(nil, "default", nil, nil)
	var epoch *regionerr.EpochNotMatchError
	require.ErrorAs(t, wait(t, conditional(leader, before, "", all, message.Identity{}, nil)).Err,
		&epoch)
	for i := range 26 {
		mustGet(t, c, cl, string(rune('a'+i)), "v")
	}
	left, err := c.Placement.GetRegion(context.Background(), []byte("a"))
	require.NoError(t, err)
	var out *regionerr.KeyNotInRegionError
	n := c.WaitLeader(left.Meta.Id)
	require.ErrorAs(t, wait(t, conditional(n, left.Meta, "", all, message.Identity{}, nil)).Err,
		&out)

	part := message.AppendDeleteRange(nil, "default", []byte("c"), []byte("m"))
	require.NoError(t, wait(t, conditional(n, left.Meta, "c", part, message.Identity{}, nil)).Err)
	mustPut(t, c, cl, "d", "again")
	gone := func() {
		t.Helper()
		for key, want := range map[string]string{
			"b": "v", "c": "", "d": "again", "l": "", "m": "v", "z": "v",
		} {
			c.Eventually(20*time.Second, func() string {
				v, found, err := cl.Get(context.Background(), []byte(key))
				if err != nil {
					return err.Error()
				}
				if found != (want != "") || string(v) != want {
					t.Fatalf("%s is %q, %v", key, v, found)
				}
				return ""
			})
		}
	}
	gone()
	require.NoError(t, c.CompactLog(left.Meta.Id))
	c.AddPeer(left.Meta.Id, 4)
	c.CheckConsistency()
	for _, n := range c.Nodes() {
		n.Crash(faultfs.DropAll)
	}
	for _, n := range c.Nodes() {
		n.Restart()
	}
	gone()
	c.CheckConsistency()
}

// TestReplicasDecideAlike: many compare-and-swaps on few keys, with puts between them, leaders that
// move and stores that start again. No increment is lost, and all replicas have the same values.
func TestReplicasDecideAlike(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "0")
	value := 0
	for i := range 60 {
		switch i % 20 {
		case 9:
			moveLeader(t, c)
		case 19:
			n := c.Node(uint64(1 + i/20%3))
			n.Crash(faultfs.DropAll)
			n.Restart()
		}
		mustPut(t, c, cl, "other", fmt.Sprint(i))
		w := newWriter(t, c, "k", uint64(100+i))
		res := w.swap(c.WaitLeader(first), fmt.Sprint(value), fmt.Sprint(value+1),
			message.Identity{})
		if res.Err != nil {
			continue // it did not lead any more: nothing was proposed, or the next round finds out
		}
		if !res.Swap().Swapped {
			_, err := fmt.Sscan(string(res.Swap().Previous), &value)
			require.NoError(t, err)
			continue
		}
		require.Equal(t, fmt.Sprint(value), string(res.Swap().Previous))
		value++
	}
	require.Greater(t, value, 40)
	c.CheckConsistency()
}

// TestClientsCountBySwaps: clients count by compare-and-swap while stores crash and the leadership
// moves with them. The answers that are lost with a store are asked for again; no increment is
// lost, and none is made twice.
func TestClientsCountBySwaps(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "counter", "0")
	const workers, each = 4, 40
	var done, unknown atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			last := []byte("0")
			for n := 0; n < each; {
				v, err := strconv.Atoi(string(last))
				if err != nil {
					t.Errorf("the counter is %q", last)
					return
				}
				previous, swapped, err := cl.CompareAndSwap(context.Background(), []byte("counter"),
					last, []byte(strconv.Itoa(v+1)))
				var open *client.UnknownError
				switch {
				case errors.As(err, &open):
					unknown.Add(1)
					n++
				case err != nil:
					t.Errorf("swap: %v", err)
					return
				case swapped && string(previous) != string(last):
					t.Errorf("%q was swapped for %q", previous, last)
					return
				case swapped:
					done.Add(1)
					n++
					last = []byte(strconv.Itoa(v + 1))
				default:
					last = previous
				}
			}
		}()
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	for crashes := 0; ; crashes++ {
		target := done.Load() + workers*each/8
		if crashes < 5 {
			c.Eventually(60*time.Second, func() string {
				select {
				case <-ended:
					return ""
				default:
				}
				if n := done.Load(); n < target {
					return fmt.Sprintf("%d increments of %d", n, target)
				}
				return ""
			})
			n := c.WaitLeader(first)
			n.Crash(faultfs.DropAll)
			n.Restart()
			continue
		}
		<-ended
		v, found, err := cl.Get(context.Background(), []byte("counter"))
		require.NoError(t, err)
		require.True(t, found)
		n, err := strconv.ParseInt(string(v), 10, 64)
		require.NoError(t, err)
		t.Logf("%d increments, %d of unknown outcome, %d crashes", done.Load(), unknown.Load(),
			crashes)
		require.GreaterOrEqual(t, n, done.Load(), "an increment is lost")
		require.LessOrEqual(t, n, done.Load()+unknown.Load(), "an increment was made twice")
		c.CheckConsistency()
		return
	}
}

// TestClientDeletesRanges over several regions, some of which are split since the client knows
// them, and counts.
func TestClientDeletesRanges(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	for i := range 26 {
		for j := range 4 {
			mustPut(t, c, cl, fmt.Sprintf("%c%d", 'a'+i, j), "v")
		}
	}
	for _, key := range []string{"d", "m", "t"} {
		c.Split([]byte(key))
	}
	ctx := context.Background()
	count := func(start, end string, want int) {
		t.Helper()
		n, err := cl.Count(ctx, []byte(start), []byte(end))
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	count("", "", 104)
	count("c2", "n", 42)
	require.NoError(t, cl.DeleteRange(ctx, []byte("c2"), []byte("n")))
	count("c2", "n", 0)
	count("", "", 62)
	c.Split([]byte("f"))
	mustPut(t, c, cl, "e", "again")
	require.NoError(t, cl.DeleteRange(ctx, []byte("n"), []byte("n")))
	require.NoError(t, cl.DeleteRange(ctx, []byte("x"), []byte("a")))
	count("", "", 63)
	require.NoError(t, cl.CF("lock").DeleteRange(ctx, nil, nil))
	count("", "", 63)
	require.NoError(t, cl.DeleteRange(ctx, []byte("d"), nil))
	count("", "", 10)
	count("d", "", 0)
	c.CheckConsistency()
}
