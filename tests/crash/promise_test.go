package crash

import (
	"maps"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// peerKey names a peer; a region can have several on a store, one after the other.
type peerKey struct{ store, region, peer uint64 }

// promise is what a peer has told others.
type promise struct {
	term  uint64 // the highest term it has used
	vote  uint64 // for whom it voted in that term, 0: nobody that we heard of
	index uint64 // up to where it has confirmed the log in that term
}

type promises map[peerKey]promise

// witness sees every raft message that is sent.
type witness struct {
	mu  sync.Mutex
	all promises
}

func newWitness() *witness { return &witness{all: promises{}} }

func (w *witness) promises(store uint64) promises {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := maps.Clone(w.all)
	maps.DeleteFunc(out, func(k peerKey, _ promise) bool { return k.store != store })
	return out
}

func (w *witness) sent(from uint64, rm *rspb.RaftMessage) {
	m := rm.Message
	if m == nil {
		return
	}
	var vote, index uint64
	switch m.MsgType {
	case eraftpb.MessageType_MsgRequestVote:
		vote = m.From
	case eraftpb.MessageType_MsgRequestVoteResponse:
		if m.Reject {
			return
		}
		vote = m.To
	case eraftpb.MessageType_MsgAppendResponse:
		if m.Reject {
			return
		}
		index = m.Index
	case eraftpb.MessageType_MsgAppend, eraftpb.MessageType_MsgHeartbeat,
		eraftpb.MessageType_MsgHeartbeatResponse,
		eraftpb.MessageType_MsgSnapshot:
	default:
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := peerKey{from, rm.RegionId, m.From}
	p := w.all[k]
	if m.Term < p.term {
		return
	}
	if m.Term > p.term {
		p = promise{term: m.Term}
	}
	if vote != 0 {
		p.vote = vote
	}
	p.index = max(p.index, index)
	w.all[k] = p
}

// check compares what a store has said with what its disks hold after the crash.
func (ps promises) check(t *testing.T, e *memengine.Engine, log *raftlog.Log) {
	for k, p := range ps {
		st, err := meta.LoadRegionState(e, k.region)
		require.NoError(t, err)
		switch {
		case st != nil && st.State == rspb.PeerState_Tombstone && st.GetPeer().GetId() >= k.peer:
			continue // destroyed: it says nothing any more
		case st != nil && st.GetPeer().GetId() > k.peer:
			continue // a newer peer
		}
		ls, ok := log.State(k.region)
		require.True(t, ok, "region %d has no raft log, but promised %+v", k.region, p)
		hs := ls.HardState
		require.GreaterOrEqual(t, hs.Term, p.term, "region %d: term went back: %+v, promised %+v",
			k.region, hs, p)
		if hs.Term == p.term && p.vote != 0 {
			require.Equal(t, p.vote, hs.Vote, "region %d: vote forgotten: %+v, promised %+v",
				k.region, hs, p)
		}
		if st.GetState() == rspb.PeerState_Applying && st.GetApplying().GetIndex() >= p.index {
			continue // the log is reset to the raft snapshot at start
		}
		if hs.Term == p.term {
			require.GreaterOrEqual(t, max(ls.Last, ls.TruncatedIndex), p.index,
				"region %d: confirmed entries are gone: %+v, promised %+v", k.region, ls, p)
		}
	}
}
