package tests

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// termOf is the region's term at a store.
func termOf(c *cluster.Cluster, n *cluster.Node) (term uint64) {
	if p := cluster.PeerOf(c, n.ID, cluster.FirstRegionID); p != nil {
		term = p.Term
	}
	return term
}

// TestLeaderOutlivesASlowSync: a leader's raft worker waits for a sync for longer than any election
// timeout. The store lives and says so, and it leads on in its term. If the sync hangs for good,
// another store leads.
func TestLeaderOutlivesASlowSync(t *testing.T) {
	tick := 50 * time.Millisecond
	c, ctls := watched(t, 3, func(cfg *config.Config) {
		cfg.Raftstore.TickInterval, cfg.Raftstore.HibernateAfter = config.Dur(tick), config.Dur(0)
		cfg.Raftstore.RaftWorkers = 1
	})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	leader := c.WaitLeader(cluster.FirstRegionID)
	term := termOf(c, leader)
	require.NotZero(t, term)

	heard := make(chan struct{}, 1) // a follower has had a heartbeat of which one can tell
	c.Net.Tap(func(from uint64, m *rspb.RaftMessage) {
		beat := m.GetMessage().GetMsgType() == eraftpb.MessageType_MsgHeartbeat
		if beat && from == leader.ID && m.Message.Term == term && m.Message.Commit > 0 {
			select {
			case heard <- struct{}{}:
			default:
			}
		}
	})
	for range 4 { // rounds of two followers
		select {
		case <-heard:
		case <-time.After(20 * time.Second):
			require.FailNow(t, "the leader sends no heartbeats")
		}
	}
	c.Net.Tap(nil)

	number := uint64(0)
	hang := func() (release func()) {
		number++
		w := newWriter(t, c, "k", number)
		id := w.next(position(t, c, "k"))
		hangs, until := make(chan struct{}, 1), make(chan struct{})
		release = sync.OnceFunc(func() {
			ctls[leader.ID].Set(nil)
			close(until)
		})
		t.Cleanup(release) // before the cluster's end, which waits for it
		ctls[leader.ID].Set(func(op faultfs.Op) error {
			if op.Layer == "fs" && op.Kind == "sync" {
				select {
				case hangs <- struct{}{}:
				default:
				}
				<-until
			}
			return nil
		})
		w.begin(leader, "w", id) // committed by the others; its answer is of no matter
		select {
		case <-hangs:
		case <-time.After(20 * time.Second):
			require.FailNow(t, "the write is not synced")
		}
		return release
	}
	release := hang()
	before := leader.Store().Work().RepeatedBeats
	time.Sleep(26 * tick) // more than two election timeouts of ten ticks: what is to be outlived
	require.Greater(t, leader.Store().Work().RepeatedBeats, before)
	release()
	c.Eventually(10*time.Second, func() string {
		if p := cluster.PeerOf(c, leader.ID, cluster.FirstRegionID); p == nil || !p.IsLeader {
			return "the store does not lead"
		}
		return ""
	})
	for _, n := range c.Nodes() {
		require.Equal(t, term, termOf(c, n), fmt.Sprint("store ", n.ID))
	}

	release = hang()
	defer release()
	waitOtherLeader(t, c, leader)
	mustPut(t, c, cl, "k", "after")
}
