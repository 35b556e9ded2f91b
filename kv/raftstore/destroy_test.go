package raftstore

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// listening keeps what a store sends and reports.
type listening struct {
	lonely
	mu      sync.Mutex
	sent    []*rspb.RaftMessage
	reports []*metapb.Region
}

func (l *listening) Send(_ uint64, msgs []*rspb.RaftMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, msgs...)
}

func (l *listening) RegionHeartbeat(req *schedulerpb.RegionHeartbeatRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reports = append(l.reports, req.Region)
}

func (l *listening) messages(match func(*rspb.RaftMessage) bool) (out []*rspb.RaftMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.sent {
		if match(m) {
			out = append(out, m)
		}
	}
	return out
}

func (l *listening) reported(id, version uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.reports {
		if r.Id == id && r.RegionEpoch.Version == version {
			return true
		}
	}
	return false
}

func listenTo(s *Store) *listening {
	l := &listening{}
	s.trans, s.placement = l, l
	return l
}

func trio() *metapb.Region {
	return region(1, "", "m", 2, 2, voter(1, 1), voter(2, 2), voter(3, 3))
}

func envelope(r *metapb.Region, from, to *metapb.Peer, m eraftpb.Message) *rspb.RaftMessage {
	m.From, m.To = from.Id, to.Id
	return &rspb.RaftMessage{
		RegionId: r.Id, FromPeer: from, ToPeer: to, RegionEpoch: r.RegionEpoch, Message: &m,
		ClusterId: 7,
		StartKey:  r.StartKey, EndKey: r.EndKey,
	}
}

func vote(r *metapb.Region, from, to *metapb.Peer) *rspb.RaftMessage {
	return envelope(r, from, to,
		eraftpb.Message{MsgType: eraftpb.MessageType_MsgRequestVote, Term: 6, Index: 9, LogTerm: 9})
}

func tombstone(r *metapb.Region, confVer uint64, to *metapb.Peer) *rspb.RaftMessage {
	return &rspb.RaftMessage{
		RegionId: r.Id, FromPeer: voter(2, 2), ToPeer: to, IsTombstone: true, ClusterId: 7,
		RegionEpoch: &metapb.RegionEpoch{Version: r.RegionEpoch.Version, ConfVer: confVer},
	}
}

// peerID is the id of the store's peer of a region, 0 if there is none. It waits for what was sent
// before.
func peerID(t testing.TB, s *Store, regionID uint64) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	info, err := s.Peer(ctx, regionID)
	if _, gone := err.(*regionerr.RegionNotFoundError); gone {
		return 0
	}
	require.NoError(t, err)
	return info.Peer.Id
}

// waitPeerID waits for a peer to be there, or with 0 for the last one to be gone and cleared away.
func waitPeerID(t testing.TB, s *Store, regionID, want uint64) {
	t.Helper()
	require.Eventually(t, func() bool {
		return peerID(t, s, regionID) == want && (want != 0 || s.router.get(regionID) == nil)
	}, 10*time.Second, time.Millisecond)
}

// handleInOrder hands messages to the store worker and waits until it has judged all of them: it
// creates a peer of region 99 last.
func handleInOrder(t testing.TB, s *Store, msgs ...*rspb.RaftMessage) {
	t.Helper()
	for _, m := range msgs {
		require.NoError(t, s.HandleRaft(m))
	}
	last := vote(region(99, "x", "y", 1, 1), voter(992, 2), voter(991, 1))
	require.NoError(t, s.HandleRaft(last))
	waitPeerID(t, s, 99, 991)
}

// TestPeerIDsDecide: a message for an earlier peer of this store is not heard, one for a later peer
// ends the present one and creates the later, with the same message (G2, G3).
func TestPeerIDsDecide(t *testing.T) {
	r := trio()
	r.Peers[0].Id = 5
	s, e := newTestStore(t, r)
	b := e.NewBatch()
	b.Put(engine.DataKey(engine.CFDefault, []byte("a")), []byte("v"))
	require.NoError(t, e.Write(b, true))
	startTestStore(t, s)
	require.NoError(t, s.HandleRaft(vote(r, voter(2, 2), voter(4, 1))))
	require.EqualValues(t, 5, peerID(t, s, 1))
	require.NoError(t,
		s.Inspect(context.Background(), 1, func(v *PeerView) {
			require.EqualValues(t, meta.InitLogTerm, v.Status().Term)
		}))

	newer := region(1, "", "m", 2, 4, voter(9, 1), voter(2, 2), voter(3, 3))
	require.NoError(t, s.HandleRaft(vote(newer, voter(2, 2), voter(9, 1))))
	waitPeerID(t, s, 1, 9)
	_, found, err := e.Get(engine.DataKey(engine.CFDefault, []byte("a")))
	require.NoError(t, err)
	require.False(t, found, "the earlier peer's data is gone before the later peer begins")
	info, err := s.Peer(context.Background(), 1)
	require.NoError(t, err)
	require.Empty(t, info.Region.Peers, "and the later peer knows nothing of it")
}

// TestGCMessageNeedsNewerEpoch: a peer believes that it was removed only from a newer
// configuration, and only if it is meant itself; saying it twice does no harm (G7, G11).
func TestGCMessageNeedsNewerEpoch(t *testing.T) {
	r := trio()
	s, _ := newTestStore(t, r)
	startTestStore(t, s)
	for _, m := range []*rspb.RaftMessage{
		tombstone(r, 1, r.Peers[0]), tombstone(r, 2, r.Peers[0]), tombstone(r, 9, voter(8, 1)),
	} {
		require.NoError(t, s.HandleRaft(m))
		require.EqualValues(t, 1, peerID(t, s, 1))
	}
	for range 3 {
		require.NoError(t, s.HandleRaft(tombstone(r, 3, r.Peers[0])))
	}
	waitPeerID(t, s, 1, 0)
	require.NoError(t, s.HandleRaft(tombstone(r, 3, r.Peers[0])))
	handleInOrder(t, s)
	requireAlive(t, s, 99)
}

// TestTombstoneOutlivesRestart: what a destroyed peer leaves on disk is its tombstone alone, and
// after a restart that refuses the same peer id as before (G5, G10).
func TestTombstoneOutlivesRestart(t *testing.T) {
	r := trio()
	s, e := newTestStore(t, r)
	startTestStore(t, s)
	require.NoError(t, s.HandleRaft(tombstone(r, 3, r.Peers[0])))
	waitPeerID(t, s, 1, 0)
	s.Stop()
	st, err := meta.LoadRegionState(e, 1)
	require.NoError(t, err)
	require.Equal(t, rspb.PeerState_Tombstone, st.State)
	require.EqualValues(t, 3, st.Region.RegionEpoch.ConfVer)
	require.EqualValues(t, 1, st.Peer.Id)
	apply, err := meta.LoadApplyRecord(e, 1)
	require.NoError(t, err)
	require.Nil(t, apply)
	_, ok := s.log.State(1)
	require.False(t, ok, "the raft log of the region is gone")

	s = again(t, s)
	newer := region(1, "", "m", 2, 5, voter(9, 1), voter(2, 2), voter(3, 3))
	handleInOrder(t, s, vote(newer, voter(2, 2), voter(1, 1)))
	require.Zero(t, peerID(t, s, 1), "the removed peer is back")
	require.NoError(t, s.HandleRaft(vote(newer, voter(2, 2), voter(9, 1))))
	waitPeerID(t, s, 1, 9)
}

// again is the store after a restart on the same disks.
func again(t testing.TB, s *Store) *Store {
	t.Helper()
	s.Stop()
	n := New(Options{
		Config: s.cfg, ClusterID: s.clusterID, StoreID: s.storeID, Engine: s.engine, Log: s.log,
		Snapshots: s.snaps,
		Transport: s.trans, Placement: s.placement, Logger: s.logger, Seed: s.seed,
	})
	startTestStore(t, n)
	return n
}

// TestStartFinishesDestruction: a crash anywhere in a destruction leaves a tombstone with a log, an
// apply state or data; the next start clears all of it, and nobody else's (G10).
func TestStartFinishesDestruction(t *testing.T) {
	s, e := newTestStore(t, trio(), region(2, "p", "", 1, 1, voter(4, 1)))
	b := e.NewBatch()
	meta.PutRegionState(b, rspb.PeerState_Tombstone, trio(), voter(1, 1))
	for _, key := range []string{"a", "n", "q"} { // of the dead, of nobody, of region 2
		b.Put(engine.DataKey(engine.CFWrite, []byte(key)), []byte("v"))
	}
	require.NoError(t, e.Write(b, true))
	var lb logBatch
	initialLogState(&lb, s.log, 1)
	require.NoError(t, s.log.Write(&lb, true))
	startTestStore(t, s)
	_, ok := s.log.State(1)
	require.False(t, ok)
	apply, err := meta.LoadApplyRecord(e, 1)
	require.NoError(t, err)
	require.Nil(t, apply)
	for key, want := range map[string]bool{"a": false, "n": false, "q": true} {
		_, found, err := e.Get(engine.DataKey(engine.CFWrite, []byte(key)))
		require.NoError(t, err)
		require.Equal(t, want, found, key)
	}
}

// TestStaleSenderIsTold: each message of a removed peer is answered with its removal, by a peer of
// the region and by a tombstone (G6).
func TestStaleSenderIsTold(t *testing.T) {
	r := trio()
	s, _ := newTestStore(t, r)
	l := listenTo(s)
	startTestStore(t, s)
	old := region(1, "", "m", 1, 1)
	told := func(n int) {
		t.Helper()
		var got []*rspb.RaftMessage
		require.Eventually(t, func() bool {
			got = l.messages(func(m *rspb.RaftMessage) bool {
				return m.IsTombstone && m.ToPeer.Id == 7
			})
			return len(got) >= n
		}, 10*time.Second, time.Millisecond)
		require.Equal(t, r.RegionEpoch.Version, got[n-1].RegionEpoch.Version)
	}
	for i, kind := range []eraftpb.MessageType{
		eraftpb.MessageType_MsgHeartbeat, eraftpb.MessageType_MsgRequestVote,
		eraftpb.MessageType_MsgAppend,
	} {
		require.NoError(t,
			s.HandleRaft(envelope(old, voter(7, 7), voter(1, 1),
				eraftpb.Message{MsgType: kind, Term: 6})))
		told(i + 1)
	}
	require.NoError(t, s.HandleRaft(tombstone(r, 3, r.Peers[0])))
	waitPeerID(t, s, 1, 0)
	require.NoError(t, s.HandleRaft(vote(old, voter(7, 7), voter(1, 1))))
	told(4)
	require.Empty(t,
		l.messages(func(m *rspb.RaftMessage) bool { return m.IsTombstone && m.ToPeer.Id != 7 }))
}

// TestRemovedPeerBelievesTheTruth: a peer that asked the placement service about itself goes if it
// is not in a newer region, and stays otherwise (G6).
func TestRemovedPeerBelievesTheTruth(t *testing.T) {
	s, _ := newTestStore(t, trio())
	startTestStore(t, s)
	others := []*metapb.Peer{voter(2, 2), voter(3, 3)}
	for _, truth := range []*metapb.Region{nil, trio(), region(1, "", "m", 2, 1, others...),
		region(1, "", "m", 2, 2, others...),
		region(1, "", "m", 2, 9, voter(1, 1))} {
		require.NoError(t, s.Send(1, &message.RegionTruth{Region: truth}))
		require.EqualValues(t, 1, peerID(t, s, 1), "%v", truth)
	}
	require.NoError(t, s.Send(1, &message.RegionTruth{Region: region(1, "", "m", 2, 3, others...)}))
	waitPeerID(t, s, 1, 0)
}

// TestEmptyPeerDoesNotBelieveOlderTruth: a peer that knows nothing yet was a member when the
// message that created it was sent. The placement service, or another store, that has not heard of
// that yet must not make it go, because no later message could bring a peer of that id back: a
// group of four with one dead store would be lost. Found by chaos. (G6, G7)
func TestEmptyPeerDoesNotBelieveOlderTruth(t *testing.T) {
	s, _ := newTestStore(t)
	startTestStore(t, s)
	born := region(1, "", "m", 2, 4)
	require.NoError(t, s.HandleRaft(vote(born, voter(2, 2), voter(1, 1))))
	waitPeerID(t, s, 1, 1)
	others := []*metapb.Peer{voter(2, 2), voter(3, 3)}
	for range 2 {
		for _, confVer := range []uint64{1, 3, 4} {
			require.NoError(t,
				s.Send(1, &message.RegionTruth{Region: region(1, "", "m", 2, confVer, others...)}))
			require.NoError(t, s.HandleRaft(tombstone(born, confVer, voter(1, 1))))
			require.EqualValues(t, 1, peerID(t, s, 1), "conf version %d", confVer)
		}
		s = again(t, s) // it is known after a restart, too
	}
	require.NoError(t, s.Send(1, &message.RegionTruth{Region: region(1, "", "m", 2, 5, others...)}))
	waitPeerID(t, s, 1, 0)
}

// TestDestroyedPeerAnswersItsQueue: commands that wait behind the end of a peer are answered (G16).
func TestDestroyedPeerAnswersItsQueue(t *testing.T) {
	r := trio()
	s, _ := newTestStore(t, r)
	startTestStore(t, s)
	held, release := make(chan struct{}), make(chan struct{})
	require.NoError(t, s.Send(1, &message.Inspect{Fn: func(any) { close(held); <-release }}))
	<-held
	require.NoError(t, s.HandleRaft(tombstone(r, 3, r.Peers[0])))
	h := message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch}
	w := &message.Write{
		Header: h, MinKey: []byte("a"), MaxKey: []byte("a"), Payload: make([]byte, 100),
		Callback: message.NewCallback(),
	}
	rd := &message.Read{Header: h, Callback: message.NewCallback()}
	ad := &message.Admin{
		Header: h, Request: &raft_cmdpb.AdminRequest{}, Callback: message.NewCallback(),
	}
	s.Write(w)
	s.Read(rd)
	s.Admin(ad)
	close(release)
	for _, cb := range []*message.Callback{w.Callback, rd.Callback, ad.Callback} {
		requireNotFound(t, cb)
	}
	waitPeerID(t, s, 1, 0)
	require.Zero(t, s.inflight.Load(), "the bytes of refused writes are given back")
}

func requireNotFound(t testing.TB, cb *message.Callback) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	res, err := cb.Wait(ctx)
	require.NoError(t, err)
	var gone *regionerr.RegionNotFoundError
	require.ErrorAs(t, res.Err, &gone)
}
