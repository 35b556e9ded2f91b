package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// MergeOnce asks the source's leader once to begin a merge into the target, as the placement
// service knows it. Without an error the source is frozen; what becomes of the merge is another
// matter.
func (c *Cluster) MergeOnce(source, target uint64) error {
	t := c.Placement.Region(target)
	if t == nil {
		return errors.New("the target is not known")
	}
	return c.adminOnce(source, &raft_cmdpb.AdminRequest{
		CmdType:      raft_cmdpb.AdminCmdType_PrepareMerge,
		PrepareMerge: &raft_cmdpb.PrepareMergeRequest{Target: t},
	})
}

// Merge merges two regions and waits until no store has anything of the source but its tombstone.
func (c *Cluster) Merge(source, target uint64) {
	c.t.Helper()
	// on a busy machine attempts are given up, and come again
	c.Eventually(60*time.Second, func() string {
		if c.Placement.Region(source) == nil {
			return c.Remains(source)
		}
		err := c.MergeOnce(source, target)
		return fmt.Sprintf("merge of region %d into %d: %v", source, target, err)
	})
}

// Remains tells what is left of a region that went into another one, besides its tombstones; empty
// if nothing is.
func (c *Cluster) Remains(region uint64) string {
	for _, n := range c.Nodes() {
		s := n.Store()
		if s == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		info, err := s.Peer(ctx, region)
		cancel()
		st, loadErr := meta.LoadRegionState(n.Engine(), region)
		apply, applyErr := meta.LoadApplyRecord(n.Engine(), region)
		switch _, log := n.Log().State(region); {
		case errors.Join(loadErr, applyErr) != nil:
			return fmt.Sprintf("store %d: %v", n.ID, errors.Join(loadErr, applyErr))
		case err == nil:
			return fmt.Sprintf("store %d runs a peer of region %d: %+v, on disk %v", n.ID, region,
				info, st)
		case st != nil && st.State != rspb.PeerState_Tombstone:
			return fmt.Sprintf("store %d has region %d in state %v", n.ID, region, st.State)
		case log:
			return fmt.Sprintf("store %d has a raft log of region %d", n.ID, region)
		case apply != nil:
			return fmt.Sprintf("store %d has an apply state of region %d", n.ID, region)
		}
	}
	return ""
}

// CommitsMerge tells whether a raft message has a CommitMerge among its entries.
func CommitsMerge(m *rspb.RaftMessage) bool {
	for _, e := range m.GetMessage().GetEntries() {
		cmd, err := message.DecodeEntry(e.Data)
		var admin raft_cmdpb.AdminRequest
		if err == nil && cmd.Admin != nil && admin.Unmarshal(cmd.Admin) == nil &&
			admin.CmdType == raft_cmdpb.AdminCmdType_CommitMerge {
			return true
		}
	}
	return false
}
