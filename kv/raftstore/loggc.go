package raftstore

import (
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/raft"
)

// Log compaction: the leader proposes how far (proposeLogGC) -> every replica moves its truncated state when it applies
// that -> runner.RaftLogGC makes the engine's data durable -> onLogGC truncates the raft log.

// proposeLogGC asks all replicas to compact their logs up to what every live follower has, or further
// when the log has grown beyond its limits: a follower that far behind gets a raft snapshot.
func (p *peer) proposeLogGC() {
	cfg := &p.store.cfg.Raftstore
	first := p.ps.truncated.Index + 1
	if p.appliedIndex < first {
		return
	}
	compact := p.appliedIndex
	p.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if id == p.meta.Id {
			return
		}
		if pr.State == raft.ProgressSnapshot {
			// A raft snapshot on its way must find the entries that follow it (D8).
			compact = min(compact, max(pr.PendingSnapshot, pr.Match))
			return
		}
		compact = min(compact, pr.Match)
	})
	tooLong := p.appliedIndex-first+1 >= cfg.LogGCCountLimit || p.stats.logBytes >= uint64(cfg.LogGCSizeLimit)
	if tooLong {
		compact = max(compact, p.appliedIndex)
	}
	full := p.store.diskFull.Load()
	if !full {
		compact = min(compact, p.recentLog())
	}
	// On a full disk each entry counts; a follower that needs a raft snapshot would cost more than it brings.
	worth := tooLong || full || compact-first+1 >= cfg.LogGCThreshold
	if compact < first || !worth {
		return
	}
	if compact <= p.stats.lastCompactRequest {
		return
	}
	term, err := p.ps.Term(compact)
	if err != nil {
		return
	}
	a := &message.Admin{
		Header: message.Header{RegionID: p.regionID, Peer: p.meta},
		Request: &raft_cmdpb.AdminRequest{
			CmdType:    raft_cmdpb.AdminCmdType_CompactLog,
			CompactLog: &raft_cmdpb.CompactLogRequest{CompactIndex: compact, CompactTerm: term},
		},
	}
	p.flushWrites()
	if p.proposeAdmin(a) {
		p.stats.lastCompactRequest = compact
		p.stats.logBytes = 0
	}
}

// recentLog is the index behind which the log stays for a while although all have it: retried writes are looked for
// there. Half of the limits on its length is for that.
func (p *peer) recentLog() uint64 {
	cfg := &p.store.cfg.Raftstore
	index := p.once.marks.recent(p.store.clock.Now(), p.once.appended, cfg.LogGCKeep.Duration, uint64(cfg.LogGCSizeLimit)/2)
	return max(index, p.appliedIndex-min(p.appliedIndex, cfg.LogGCCountLimit/2))
}

// onLogGC drops raft-log entries that the engine has made durable. The request may come from an earlier
// life of the region on this store, or from before a raft snapshot: only what this peer itself has
// compacted counts.
func (p *peer) onLogGC(t *turn, m *message.LogGC) {
	if p.installing != 0 || m.Index > p.ps.truncated.Index {
		return
	}
	if st, ok := p.store.log.State(p.regionID); !ok || m.Index <= st.TruncatedIndex || m.Index > st.Last {
		return
	}
	t.log.Truncate(p.regionID, m.Index, m.Term)
	p.rn.CompactTo(m.Index)
}
