package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// writer sends the attempts at one write by hand, as a client would that gets no answers.
type writer struct {
	t   *testing.T
	c   *cluster.Cluster
	key string
	id  message.WriteID
	n   uint32
}

func newWriter(t *testing.T, c *cluster.Cluster, key string, number uint64) *writer {
	return &writer{t: t, c: c, key: key, id: message.WriteID{Client: 99, Number: number}}
}

// next is an attempt after all others. Origins are those before it whose outcome is unknown.
func (w *writer) next(position uint64, origins ...message.Origin) message.Identity {
	w.n++
	return message.Identity{ID: w.id, Attempt: w.n, Position: position, Origins: origins}
}

// begin sends an attempt to the region of the key on a store, and does not wait for the answer.
func (w *writer) begin(n *cluster.Node, value string, id message.Identity) *message.Callback {
	w.t.Helper()
	r, err := w.c.Placement.GetRegion(context.Background(), []byte(w.key))
	require.NoError(w.t, err)
	m := &message.Write{
		Header: message.Header{
			RegionID: r.Meta.Id, Peer: cluster.OnStore(r.Meta, n.ID), Epoch: r.Meta.RegionEpoch,
		},
		MinKey: []byte(w.key), MaxKey: []byte(w.key), Callback: message.NewCallback(), Identity: id,
		Deadline: time.Now().Add(20 * time.Second),
		Payload: message.AppendPut(message.AppendWriteID(nil, id.ID), "default", []byte(w.key),
			[]byte(value)),
	}
	n.Store().Write(m)
	return m.Callback
}

// send is begin, and the answer.
func (w *writer) send(n *cluster.Node, value string, id message.Identity) message.Result {
	w.t.Helper()
	return wait(w.t, w.begin(n, value, id))
}

func wait(t *testing.T, cb *message.Callback) message.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := cb.Wait(ctx)
	require.NoError(t, err)
	return res
}

// position is a committed index of the first region's log that is new enough for its leader.
func position(t *testing.T, c *cluster.Cluster, key string) uint64 {
	t.Helper()
	var stale *regionerr.StalePositionError
	c.Eventually(20*time.Second, func() string {
		r, err := c.Placement.GetRegion(context.Background(), []byte(key))
		if err != nil {
			return err.Error()
		}
		if r == nil {
			return "the region is not known yet"
		}
		n := c.WaitLeader(r.Meta.Id)
		res := newWriter(t, c, key, 1<<40).send(n, "x",
			message.Identity{ID: message.WriteID{Client: 1, Number: 1}, Attempt: 1})
		if !errors.As(res.Err, &stale) {
			return fmt.Sprintf("a write without a position was answered: %v", res.Err)
		}
		return ""
	})
	return stale.Position
}

// first is the region that everything begins in.
const first = cluster.FirstRegionID

// moveLeader makes another store lead the first region.
func moveLeader(t *testing.T, c *cluster.Cluster) *cluster.Node {
	t.Helper()
	old := c.WaitLeader(first)
	for _, p := range c.Placement.Region(first).Peers {
		if p.StoreId != old.ID {
			c.TransferLeader(first, p)
			break
		}
	}
	n := c.WaitLeader(first)
	require.NotEqual(t, old.ID, n.ID)
	return n
}

// TestRetryDoesNotOverwrite: a write takes effect, its answer is lost, another client writes and
// reads the key. The retry must not write again (A-B-A), wherever it goes: to the same leader, to
// the next one, to one that restarted.
func TestRetryDoesNotOverwrite(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	w := newWriter(t, c, "k", 1)
	p := position(t, c, "k")
	require.NoError(t, w.send(leader, "A", w.next(p)).Err)
	mustPut(t, c, cl, "k", "B")
	mustGet(t, c, cl, "k", "B")
	origin := message.Origin{RegionID: first, Position: p}

	res := w.send(leader, "A", w.next(p, origin))
	require.NoError(t, res.Err)
	require.Greater(t, res.Index, p)
	mustGet(t, c, cl, "k", "B")

	require.NoError(t, w.send(moveLeader(t, c), "A", w.next(p, origin)).Err)
	mustGet(t, c, cl, "k", "B")

	for _, n := range c.Nodes() {
		n.Crash(faultfs.DropAll)
	}
	for _, n := range c.Nodes() {
		n.Restart()
	}
	require.NoError(t, w.send(c.WaitLeader(first), "A", w.next(p, origin)).Err)
	mustGet(t, c, cl, "k", "B")
	c.CheckConsistency()
}

// TestLateAttemptIsRefused: the attempt before comes after its retry has been carried out and
// overwritten. It is refused by the leader that has seen the retry, and by the next one, which has
// not.
func TestLateAttemptIsRefused(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	w := newWriter(t, c, "k", 1)
	p := position(t, c, "k")
	late := w.next(p)
	require.NoError(t,
		w.send(leader, "A", w.next(p, message.Origin{RegionID: first, Position: p})).Err)
	mustPut(t, c, cl, "k", "B")

	var busy *regionerr.BusyError
	require.ErrorAs(t, w.send(leader, "A", late).Err, &busy)
	mustGet(t, c, cl, "k", "B")

	var stale *regionerr.StalePositionError
	require.ErrorAs(t, w.send(moveLeader(t, c), "A", late).Err, &stale)
	mustGet(t, c, cl, "k", "B")
}

// TestRetryWaitsForTheFirstAttempt: the first attempt is in the leader's log and not committed when
// the retry comes. The retry waits for it and does not become a second entry.
func TestRetryWaitsForTheFirstAttempt(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	w := newWriter(t, c, "k", 1)
	p := position(t, c, "k")
	c.Net.Hold(func(to uint64, m *rspb.RaftMessage) bool {
		return to == leader.ID &&
			m.GetMessage().GetMsgType() == eraftpb.MessageType_MsgAppendResponse
	})
	before := w.begin(leader, "A", w.next(p))
	retry := w.begin(leader, "A", w.next(p, message.Origin{RegionID: first, Position: p}))
	c.Eventually(10*time.Second, func() string {
		if n := c.Net.Held(func(uint64, *rspb.RaftMessage) bool { return true }); n < 2 {
			return fmt.Sprintf("%d answers are held", n)
		}
		return ""
	})
	require.False(t, retry.Answered())
	c.Net.Hold(nil)
	c.Net.Release(func(uint64, *rspb.RaftMessage) bool { return true })
	require.NoError(t, wait(t, before).Err)
	require.NoError(t, wait(t, retry).Err)
	require.Equal(t, 1, entriesOf(t, leader, first, w.id))
	mustGet(t, c, cl, "k", "A")
}

// entriesOf counts the entries of a write in a region's log.
func entriesOf(t *testing.T, n *cluster.Node, region uint64, id message.WriteID) (count int) {
	t.Helper()
	st, ok := n.Log().State(region)
	require.True(t, ok)
	ents, err := n.Log().Entries(region, st.First, st.Last+1, 1<<30)
	require.NoError(t, err)
	for _, e := range ents {
		cmd, err := message.DecodeEntry(e.Data)
		require.NoError(t, err)
		cmd.VisitIDs(func(got message.WriteID) {
			if got == id {
				count++
			}
		})
	}
	return count
}

// TestRetryAfterASplit: the first attempt went to the region before it was split, the retry goes to
// the new one. Its leader searches the log of the region that the data came from.
func TestRetryAfterASplit(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	done, lost := newWriter(t, c, "y", 1), newWriter(t, c, "z", 2)
	p := position(t, c, "y")
	require.NoError(t, done.send(leader, "A", done.next(p)).Err)
	lost.next(p) // never arrives
	mustPut(t, c, cl, "y", "B")
	c.Split([]byte("m"))
	c.Split([]byte("t"))
	q := position(t, c, "y")
	r, err := c.Placement.GetRegion(context.Background(), []byte("y"))
	require.NoError(t, err)
	require.NotEqual(t, uint64(first), r.Meta.Id)
	leader = c.WaitLeader(r.Meta.Id)
	origin := message.Origin{RegionID: first, Position: p}
	require.NoError(t, done.send(leader, "A", done.next(q, origin)).Err)
	mustGet(t, c, cl, "y", "B")
	require.NoError(t, lost.send(leader, "A", lost.next(q, origin)).Err)
	mustGet(t, c, cl, "z", "A")
	require.Equal(t, 0, entriesOf(t, leader, r.Meta.Id, done.id))
	require.Equal(t, 1, entriesOf(t, leader, r.Meta.Id, lost.id))

	// A store that did not apply the split has no log to search.
	strange := lost.next(q, message.Origin{RegionID: 12345, Position: p})
	var undetermined *regionerr.UndeterminedError
	require.ErrorAs(t, lost.send(leader, "C", strange).Err, &undetermined)
	mustGet(t, c, cl, "z", "A")
}

// TestRetryWithoutLogIsUndetermined: when the log does not reach back to where the write began,
// nobody can tell whether it was carried out, and it must not be carried out again.
func TestRetryWithoutLogIsUndetermined(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3, Tune: func(cfg *config.Config) {
		cfg.Raftstore.LogGCKeep, cfg.Raftstore.LogGCThreshold = config.Dur(time.Millisecond), 1
	}})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	w := newWriter(t, c, "k", 1)
	p := position(t, c, "k")
	require.NoError(t, w.send(leader, "A", w.next(p)).Err)
	c.Eventually(20*time.Second, func() string {
		mustPut(t, c, cl, "k", "B")
		if st, _ := leader.Log().State(first); st.TruncatedIndex <= p {
			return fmt.Sprintf("the log begins at %d", st.First)
		}
		return ""
	})
	var undetermined *regionerr.UndeterminedError
	require.ErrorAs(t,
		w.send(leader, "A", w.next(p, message.Origin{RegionID: first, Position: p})).Err,
		&undetermined)
	mustGet(t, c, cl, "k", "B")
}

// TestRetryAfterLogGCOfLargeEntries: log GC leaves few large entries, but the peers remember whose
// they were. So the leader can tell what became of a write whose entry is gone from the log, and so
// can the next leader, and those of the regions that are split off.
func TestRetryAfterLogGCOfLargeEntries(t *testing.T) {
	c := cluster.New(t,
		cluster.Options{Stores: 3, LogSegment: 8 << 20, Tune: func(cfg *config.Config) {
			cfg.Raftstore.LogGCKeep, cfg.Raftstore.LogGCThreshold = config.Dur(time.Millisecond), 1
		}})
	leader := c.WaitLeader(first)
	cl := c.Client()
	defer cl.Close()
	large := strings.Repeat("B", 2<<20)
	mustPut(t, c, cl, "k", large) // from here on they remember
	done, lost := newWriter(t, c, "k", 1), newWriter(t, c, "l", 2)
	right, lostRight := newWriter(t, c, "y", 3), newWriter(t, c, "z", 4)
	p := position(t, c, "k")
	require.NoError(t, done.send(leader, "A", done.next(p)).Err)
	require.NoError(t, right.send(leader, "A", right.next(p)).Err)
	lost.next(p) // never sent
	lostRight.next(p)
	c.Eventually(60*time.Second, func() string {
		mustPut(t, c, cl, "k", large)
		for _, n := range c.Nodes() {
			if st, _ := n.Log().State(first); st.TruncatedIndex <= p {
				return fmt.Sprintf("the log of store %d begins at %d", n.ID, st.First)
			}
		}
		return ""
	})
	retry := func(leader *cluster.Node, w *writer, position uint64) {
		t.Helper()
		before := leader.Store().Work()
		require.NoError(t,
			w.send(leader, "A", w.next(position, message.Origin{RegionID: first, Position: p})).Err)
		after := leader.Store().Work()
		require.Equal(t, before.RetriesFound+1, after.RetriesFound)
		require.Zero(t, after.RetriesUndetermined)
		mustGet(t, c, cl, "k", large)
	}
	retry(leader, done, p)
	next := leader.ID%3 + 1
	require.NoError(t, c.Transfer(first, cluster.OnStore(c.Placement.Region(first), next)))
	c.Eventually(20*time.Second, func() string {
		if leader = c.WaitLeader(first); leader.ID != next {
			return fmt.Sprintf("store %d leads", leader.ID)
		}
		return ""
	})
	retry(leader, done, p)
	require.NoError(t,
		lost.send(leader, "C", lost.next(p, message.Origin{RegionID: first, Position: p})).Err)
	mustGet(t, c, cl, "l", "C")

	mustPut(t, c, cl, "y", "B")
	c.Split([]byte("m"))
	c.Split([]byte("t"))
	q := position(t, c, "y")
	r, err := c.Placement.GetRegion(context.Background(), []byte("y"))
	require.NoError(t, err)
	leader = c.WaitLeader(r.Meta.Id)
	retry(leader, right, q)
	mustGet(t, c, cl, "y", "B")
	require.NoError(t,
		lostRight.send(leader, "C",
			lostRight.next(q, message.Origin{RegionID: first, Position: p})).Err)
	mustGet(t, c, cl, "z", "C")
}

// TestPositionBeforeANewReplicaIsStale: a new replica has no log from before it came, and might
// lead when the write is sent again. So a first attempt has to have a position from after that.
func TestPositionBeforeANewReplicaIsStale(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3, Replicas: 2})
	leader := c.WaitLeader(first)
	w := newWriter(t, c, "k", 1)
	p := position(t, c, "k")
	require.NoError(t, w.send(leader, "A", w.next(p)).Err)
	w = newWriter(t, c, "k", 2)
	require.NoError(t,
		c.ChangePeer(first, eraftpb.ConfChangeType_AddNode,
			&metapb.Peer{Id: c.Placement.AllocID(), StoreId: 3}))
	leader = c.WaitLeader(first)
	var stale *regionerr.StalePositionError
	require.ErrorAs(t, w.send(leader, "B", w.next(p)).Err, &stale)
	require.Greater(t, stale.Position, p)
	require.NoError(t, w.send(leader, "B", w.next(stale.Position)).Err)
}
