package raftstore

import (
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/raft"
)

// Log compaction: the leader proposes how far (compactor.propose) -> every replica moves its
// truncated state when it applies that -> runner.RaftLogGC makes the engine's data durable ->
// compactor.onDurable truncates the raft log.

// propose asks all replicas to compact their logs up to what every live follower has, or further
// when the log has grown beyond its limits: a follower that far behind gets a raft snapshot.
func (lc *compactor) propose() {
	cfg := &lc.p.store.cfg.Raftstore
	first := lc.p.ps.truncated.Index + 1
	if lc.p.appliedIndex < first {
		return
	}
	compact := lc.p.appliedIndex
	lc.p.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if id == lc.p.self.Id {
			return
		}
		if pr.State == raft.ProgressSnapshot {
			// A raft snapshot on its way must find the entries that follow it (D8).
			compact = min(compact, max(pr.PendingSnapshot, pr.Match))
			return
		}
		compact = min(compact, pr.Match)
	})
	tooLong := lc.p.appliedIndex-first+1 >= cfg.LogGCCountLimit ||
		lc.p.stats.logBytes >= uint64(cfg.LogGCSizeLimit)
	if tooLong {
		compact = max(compact, lc.p.appliedIndex)
	}
	full := lc.p.store.diskFull.Load()
	if !full {
		compact = min(compact, lc.recent())
	}
	// On a full disk each entry counts; a follower that needs a raft snapshot would cost more than
	// it brings.
	worth := tooLong || full || compact-first+1 >= cfg.LogGCThreshold
	if compact < first || !worth {
		return
	}
	if compact <= lc.p.stats.lastCompactRequest {
		return
	}
	term, err := lc.p.ps.Term(compact)
	if err != nil {
		return
	}
	a := &message.Admin{
		Header: message.Header{RegionID: lc.p.regionID, Peer: lc.p.self},
		Request: &raft_cmdpb.AdminRequest{
			CmdType:    raft_cmdpb.AdminCmdType_CompactLog,
			CompactLog: &raft_cmdpb.CompactLogRequest{CompactIndex: compact, CompactTerm: term},
		},
	}
	lc.p.flushWrites()
	if lc.p.proposeAdmin(a) {
		lc.p.stats.lastCompactRequest = compact
		lc.p.stats.logBytes = 0
	}
}

// recent is the index behind which the log stays for a while although all have it: retried writes
// are looked for there. Half of the limits on its length is for that.
func (lc *compactor) recent() uint64 {
	cfg := &lc.p.store.cfg.Raftstore
	index := lc.p.once.marks.recent(lc.p.store.clock.Now(), lc.p.once.appended,
		cfg.LogGCKeep.Duration, uint64(cfg.LogGCSizeLimit)/2)
	return max(index, lc.p.appliedIndex-min(lc.p.appliedIndex, cfg.LogGCCountLimit/2))
}

// compactor is a peer's part in it.
type compactor struct {
	p *peer
}

// onDurable drops raft-log entries that the engine has made durable. The request may come from an
// earlier life of the region on this store, or from before a raft snapshot: only what this peer
// itself has compacted counts.
func (lc *compactor) onDurable(t *turn, m *message.LogGC) {
	if lc.p.installing != 0 || m.Index > lc.p.ps.truncated.Index {
		return
	}
	if st, ok := lc.p.store.log.State(lc.p.regionID); !ok || m.Index <= st.TruncatedIndex ||
		m.Index > st.Last {
		return
	}
	t.log.Truncate(lc.p.regionID, m.Index, m.Term)
	lc.p.rn.CompactTo(m.Index)
}
