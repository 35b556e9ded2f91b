package raftstorage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// destroyPause is how long DestroyRange waits before it tries a region again.
const destroyPause = 20 * time.Millisecond

// SetOthers implements storage.Destroyer.
func (s *Storage) SetOthers(o storage.Others) { s.others = o }

// DestroyRange implements storage.Conditional. Clients send it to all stores. It ends once the
// range is deleted in every region of which this store has a replica: by this store where it leads,
// else by the leader, which this store asks. So no region is left out whose leader changes between
// the answers of two stores. A region that is split or loses its leader meanwhile is looked at
// again, until ctx or the request timeout ends.
func (s *Storage) DestroyRange(ctx context.Context, start, end []byte) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	for {
		open, err := s.destroyOnce(ctx, start, end)
		if err != nil || open == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", ctx.Err(), open)
		case <-time.After(destroyPause):
		}
	}
}

// destroyOnce deletes what this store leads now, then has other stores delete the rest; open is why
// some of it is still there.
func (s *Storage) destroyOnce(ctx context.Context, start, end []byte) (open, err error) {
	peers, err := s.store.Peers(ctx)
	if err != nil {
		return nil, err
	}
	for _, led := range []bool{true, false} {
		for i := range peers {
			lower, upper := clip(peers[i].Region, start, end)
			if peers[i].IsLeader != led || !concerns(peers[i].Region, lower, upper) {
				continue
			}
			var again error
			if led {
				again, err = s.destroyLed(ctx, &peers[i], lower, upper)
			} else {
				again, err = s.destroyElsewhere(ctx, &peers[i], lower, upper)
			}
			if err != nil {
				return nil, fmt.Errorf("region %d: %w", peers[i].Region.Id, err)
			}
			if again != nil {
				open = again
			}
		}
	}
	return open, nil
}

// destroyLed deletes a part of a region that this store leads.
func (s *Storage) destroyLed(
	ctx context.Context, p *raftstore.PeerInfo, lower, upper []byte,
) (open, err error) {
	c := &kvrpcpb.Context{RegionId: p.Region.Id, RegionEpoch: p.Region.RegionEpoch, Peer: p.Peer}
	for _, cf := range engine.CFs {
		switch _, err := s.DeleteRange(ctx, c, cf, lower, upper); {
		case err == nil:
		case moved(err):
			open = err
		default:
			return nil, err
		}
	}
	return open, nil
}

// destroyElsewhere has the leader of a region delete a part of it.
func (s *Storage) destroyElsewhere(
	ctx context.Context, p *raftstore.PeerInfo, lower, upper []byte,
) (open, err error) {
	switch {
	case s.others == nil:
		return nil, nil // a store by itself
	case p.Leader == nil:
		return &regionerr.NotLeaderError{RegionID: p.Region.Id}, nil
	}
	resp, err := s.others.DestroyIn(ctx, p.Leader.StoreId, &kvrpcpb.DestroyRangeRequest{
		Context: &kvrpcpb.Context{
			RegionId: p.Region.Id, RegionEpoch: p.Region.RegionEpoch, Peer: p.Leader,
		},
		StartKey: lower, EndKey: upper,
	})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil, nil // of a version in which each store deletes only what it leads
	case err != nil:
		return err, nil
	case resp.Error != "":
		return nil, fmt.Errorf("store %d: %s", p.Leader.StoreId, resp.Error)
	case resp.RegionError == nil || stale(p, resp.RegionError):
		return nil, nil
	}
	return fmt.Errorf("store %d: %s", p.Leader.StoreId, resp.RegionError.Message), nil
}

// stale tells whether a region's leader has answered that this store's replica does not belong to
// the region any more: those that do belong to it see to the range.
func stale(p *raftstore.PeerInfo, e *errorpb.Error) bool {
	for _, r := range e.EpochNotMatch.GetCurrentRegions() {
		if r.Id == p.Region.Id && r.RegionEpoch.GetConfVer() > p.Region.RegionEpoch.GetConfVer() {
			return regions.PeerByID(r, p.Peer.Id) == nil
		}
	}
	return false
}

// DestroyIn implements storage.Destroyer. Mostly the leader has deleted the range by itself when
// the others ask it; then there is nothing to write.
func (s *Storage) DestroyIn(
	ctx context.Context, c *kvrpcpb.Context, start, end []byte,
) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	view, err := s.Reader(ctx, c, start)
	if err != nil {
		return err
	}
	defer view.Close()
	if from, to := view.Range(); bytes.Compare(start, from) < 0 ||
		len(to) > 0 && (len(end) == 0 || bytes.Compare(end, to) > 0) {
		return regionerr.Invalidf("the range to destroy is not within region %d", c.RegionId)
	}
	for _, cf := range engine.CFs {
		some, err := holds(view, cf, start, end)
		if err == nil && some {
			_, err = s.DeleteRange(ctx, c, cf, start, end)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// holds tells whether a column family has a key of [start, end).
func holds(view storage.Reader, cf engine.CF, start, end []byte) (bool, error) {
	if len(end) == 0 {
		end = nil
	}
	it := view.Iterate(cf, start, end)
	defer it.Close()
	it.First()
	return it.Valid(), it.Err()
}

// concerns tells whether a region has a part of the range, which clip has cut to [lower, upper). A
// replica that has no data yet, and may never have any, does not know its region's range or leader:
// the replicas that have data see to it.
func concerns(r *metapb.Region, lower, upper []byte) bool {
	return regions.IsInitialized(r) && (len(upper) == 0 || bytes.Compare(lower, upper) < 0)
}

// clip is the part of [start, end) that lies in a region; empty ends are the end of the key space.
func clip(r *metapb.Region, start, end []byte) (lower, upper []byte) {
	lower, upper = start, end
	if bytes.Compare(r.StartKey, lower) > 0 {
		lower = r.StartKey
	}
	if len(r.EndKey) > 0 && (len(upper) == 0 || bytes.Compare(r.EndKey, upper) < 0) {
		upper = r.EndKey
	}
	return lower, upper
}

// moved tells whether a delete failed because of a change of its region, so that it is worth
// another look. Deleting twice does no harm.
func moved(err error) bool {
	var (
		leader  *regionerr.NotLeaderError
		epoch   *regionerr.EpochNotMatchError
		gone    *regionerr.RegionNotFoundError
		busy    *regionerr.BusyError
		unknown *regionerr.UnknownError
		lost    *regionerr.OverwrittenError
	)
	return errors.As(err, &leader) || errors.As(err, &epoch) || errors.As(err, &gone) ||
		errors.As(err, &busy) ||
		errors.As(err, &unknown) || errors.As(err, &lost)
}
