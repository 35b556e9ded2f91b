package raftstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// oracle is a placement service that knows one region.
type oracle struct {
	lonely
	truth atomic.Pointer[metapb.Region]
	asked atomic.Int64
}

func (o *oracle) RegionByID(context.Context, uint64) (*metapb.Region, error) {
	o.asked.Add(1)
	return o.truth.Load(), nil
}

// TestRemovedPeerDoesNotSleepForEver: a sleeping follower to whom the news of its removal got lost
// gets no message any more. It asks after a while, sleeps on if it still belongs, and goes if it
// does not (G6).
func TestRemovedPeerDoesNotSleepForEver(t *testing.T) {
	s, _ := newTestStore(t, trio())
	o := &oracle{}
	o.truth.Store(trio())
	s.placement = o
	s.cfg.Raftstore.StalePeerCheck = config.Dur(time.Millisecond)
	startTestStore(t, s)
	// it was dormant
	require.NoError(t,
		s.Inspect(t.Context(), 1, func(v *PeerView) { v.p.sleep.wake(); v.p.sleep.begin() }))
	asked := func(n int64) func() bool {
		return func() bool {
			s.router.tick(1, s.live.now(), s.stalls)
			return o.asked.Load() >= n
		}
	}
	require.Eventually(t, asked(3), 10*time.Second, time.Millisecond)
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		require.True(t, v.p.sleep.asleep, "an answer without news does not wake")
	}))
	o.truth.Store(region(1, "", "m", 2, 3, voter(2, 2), voter(3, 3)))
	require.Eventually(t, func() bool {
		s.router.tick(1, s.live.now(), s.stalls)
		return peerID(t, s, 1) == 0
	}, 10*time.Second, time.Millisecond)
}

// TestRemovedLearnerAsks: a learner knows a leader, and misses its own removal. Nothing has it look
// for another leader, so only the placement service tells (G6).
func TestRemovedLearnerAsks(t *testing.T) {
	learner := &metapb.Peer{Id: 1, StoreId: 1, Role: metapb.PeerRole_Learner}
	r := region(1, "", "m", 2, 2, learner, voter(2, 2), voter(3, 3))
	s, _ := newTestStore(t, r)
	o := &oracle{}
	o.truth.Store(r)
	s.placement = o
	s.cfg.Raftstore.StalePeerCheck = config.Dur(time.Millisecond)
	startTestStore(t, s)
	beat := envelope(r, voter(2, 2), learner,
		eraftpb.Message{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 9})
	require.NoError(t, s.HandleRaft(beat))
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		require.Equal(t, uint64(2), v.p.rn.Lead())
		require.False(t, v.p.sleep.asleep)
	}))
	o.truth.Store(region(1, "", "m", 2, 3, voter(2, 2), voter(3, 3)))
	require.Eventually(t, func() bool {
		s.router.tick(1, s.live.now(), s.stalls)
		return peerID(t, s, 1) == 0
	}, 10*time.Second, time.Millisecond)
}

// TestSleepingFollowerAsksSeldom: not with each tick, and after it was awake no later than one
// without a leader.
func TestSleepingFollowerAsksSeldom(t *testing.T) {
	s, _ := newTestStore(t, trio())
	o := &oracle{}
	s.placement = o
	startTestStore(t, s)
	check := s.cfg.Raftstore.StalePeerCheck.Duration
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		p := v.p
		p.sleep.wake() // it was dormant
		p.sleep.begin()
		began := s.clock.Now()
		require.GreaterOrEqual(t, p.times.stale.Sub(p.sleep.began), sleepingChecks*check)
		require.EqualValues(t, p.times.stale.Sub(s.clock.Base()), p.box.duty.Load())
		p.sleep.doDuty(began)
		p.sleep.wake()
		require.LessOrEqual(t, p.times.stale.Sub(s.clock.Now()), check*3/2)
	}))
	require.Zero(t, o.asked.Load())
}

// handClock moves by hand.
type handClock struct {
	base time.Time
	mu   sync.Mutex
	now  time.Time
}

func newHandClock() *handClock {
	now := time.Now()
	return &handClock{base: now, now: now}
}

func (c *handClock) Base() time.Time { return c.base }

func (c *handClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// sentKinds counts what a store sends, by kind.
type sentKinds struct {
	lonely
	mu    sync.Mutex
	kinds map[eraftpb.MessageType]int
}

func (s *sentKinds) Send(_ uint64, msgs []*rspb.RaftMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range msgs {
		if m.Message != nil && !m.Message.Reject {
			s.kinds[m.Message.MsgType]++
		}
	}
}

func (s *sentKinds) count(kind eraftpb.MessageType) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kinds[kind]
}

// dormantStore recovers n regions of three peers, of which it has the first, and runs them. Nothing
// ticks.
func dormantStore(t *testing.T, n int) (*Store, *handClock, *sentKinds) {
	var regions []*metapb.Region
	for i := range n {
		r := region(uint64(i+1), fmt.Sprintf("%04d", i), fmt.Sprintf("%04d", i+1), 1, 1)
		id := 10 * r.Id
		r.Peers = []*metapb.Peer{voter(id+1, 1), voter(id+2, 2), voter(id+3, 3)}
		regions = append(regions, r)
	}
	s, _ := newTestStore(t, regions...)
	clock, sent := newHandClock(), &sentKinds{kinds: map[eraftpb.MessageType]int{}}
	s.clock, s.live.clock, s.trans, s.startTime = clock, clock, sent, clock.now
	require.NoError(t, (&recovery{s}).run())
	s.goIn(&s.workers, newRaftWorker(s, 0).run)
	t.Cleanup(s.Stop)
	return s, clock, sent
}

// look inspects a peer, after everything that was sent to it before. What came of that has been
// sent on when it returns: the second look has a turn of its own, after the one of the first.
func look(t *testing.T, s *Store, regionID uint64, f func(p *peer)) {
	t.Helper()
	require.NoError(t, s.Inspect(context.Background(), regionID, func(v *PeerView) { f(v.p) }))
	require.NoError(t, s.Inspect(context.Background(), regionID, func(*PeerView) {}))
}

func isDormant(t *testing.T, s *Store, regionID uint64) (out bool) {
	t.Helper()
	look(t, s, regionID, func(p *peer) { out = p.box.dormant.Load() && p.sleep.asleep })
	return out
}

func preVote(r uint64) *rspb.RaftMessage {
	return &rspb.RaftMessage{
		RegionId: r, ClusterId: 7, FromPeer: voter(10*r+2, 2), ToPeer: voter(10*r+1, 1),
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Message: &eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgPreVote, From: 10*r + 2, To: 10*r + 1, Term: 9,
			Index: 9, LogTerm: 8,
		},
	}
}

// A dormant peer wakes by a request and by messages, but not by the loss of a store. Before an
// election timeout has passed since the start it gives no vote, not even its own; afterwards it
// does so at once.
func TestDormantPeersWakeAndKeepTheirPromise(t *testing.T) {
	s, clock, sent := dormantStore(t, 5)
	require.Zero(t, s.router.awake.Load())
	ask := func(regionID uint64) {
		var notLeader *regionerr.NotLeaderError
		_, err := s.LocalRead(message.Header{RegionID: regionID, Peer: voter(10*regionID+1, 1)},
			nil)
		require.ErrorAs(t, err, &notLeader)
		require.False(t, isDormant(t, s, regionID))
	}
	timeout := s.cfg.Raftstore.ElectionTimeout()
	s.ReportStoreLost(2)
	require.True(t, isDormant(t, s, 1))

	clock.advance(timeout - time.Second)
	ask(1)
	require.Zero(t, sent.count(eraftpb.MessageType_MsgPreVote), "too early to vote for itself")
	require.NoError(t, s.HandleRaft(preVote(2)))
	require.False(t, isDormant(t, s, 2))
	require.Zero(t, sent.count(eraftpb.MessageType_MsgPreVoteResponse),
		"too early to vote for another")

	clock.advance(2 * time.Second)
	ask(3)
	look(t, s, 3, func(p *peer) { require.Equal(t, raft.StatePreCandidate, p.rn.State()) })
	require.Equal(t, 2, sent.count(eraftpb.MessageType_MsgPreVote))
	require.NoError(t, s.HandleRaft(preVote(4)))
	require.False(t, isDormant(t, s, 4))
	require.Equal(t, 1, sent.count(eraftpb.MessageType_MsgPreVoteResponse))
	require.True(t, isDormant(t, s, 5))
}

// Regions get their turn some at a time, none before votes count, and fewer while many are awake.
func TestRegionsAreRousedByAndBy(t *testing.T) {
	const regions = rouseAwake + 3*rouseMany
	s, clock, _ := dormantStore(t, regions)
	turn := func() int {
		before := s.router.awake.Load()
		s.ticker.rouse()
		for id := range uint64(regions) {
			isDormant(t, s, id+1) // after what was sent
		}
		return int(s.router.awake.Load() - before)
	}
	require.Zero(t, turn())
	clock.advance(s.cfg.Raftstore.ElectionTimeout())
	for range rouseAwake / rouseMany {
		require.Equal(t, rouseMany, turn())
	}
	for range 3 * rouseMany / rouseFew {
		require.Equal(t, rouseFew, turn(), "none of them finds a quorum, and still")
	}
	require.Zero(t, turn())
}
