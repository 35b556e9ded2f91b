package tikv

import (
	"context"
	"errors"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	ownerror "github.com/tinykv/tinykv/proto/pkg/errorpb"
	own "github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	ownmeta "github.com/tinykv/tinykv/proto/pkg/metapb"
)

// requestContext is a translated context with all that it points at, in one piece of memory.
type requestContext struct {
	own.Context
	epoch ownmeta.RegionEpoch
	peer  ownmeta.Peer
}

// translate takes over what says whom a request is for. Writes of TiKV's clients have no identity.
func translate(c *kvrpcpb.Context) (*own.Context, error) {
	if v := c.GetApiVersion(); v > kvrpcpb.APIVersion_V1TTL {
		return nil, &requestError{
			"API version " + v.String() + " is not served: this cluster has V1 and V1TTL",
		}
	}
	out := &requestContext{}
	out.RegionId, out.Term, out.ClusterId = c.GetRegionId(), c.GetTerm(), c.GetClusterId()
	if e := c.GetRegionEpoch(); e != nil {
		out.epoch = ownmeta.RegionEpoch{Version: e.Version, ConfVer: e.ConfVer}
		out.RegionEpoch = &out.epoch
	}
	if p := c.GetPeer(); p != nil {
		out.peer = ownmeta.Peer{Id: p.Id, StoreId: p.StoreId}
		out.Peer = &out.peer
	}
	return &out.Context, nil
}

// requestError is a fault of the request itself.
type requestError struct{ reason string }

func (e *requestError) Error() string { return e.reason }

// outcome sorts an error into the three places where a client finds it: a region error, a message,
// or the status of the call.
func outcome(err error) (region *errorpb.Error, text string, rpc error) {
	var invalid *requestError
	var missing *regionerr.FeatureError
	switch {
	case err == nil:
		return nil, "", nil
	case errors.As(err, &invalid):
		return nil, invalid.Error(), nil
	case errors.As(err, &missing):
		return nil, missing.Error(), nil
	case errors.Is(err, context.DeadlineExceeded):
		return nil, "", status.Error(
			codes.DeadlineExceeded,
			"deadline exceeded; the outcome is unknown: a write may still be carried out",
		)
	case errors.Is(err, context.Canceled):
		return nil, "", status.Error(codes.Canceled, err.Error())
	case errors.Is(err, regionerr.ErrStopping),
		errors.Is(err, regionerr.ErrFailed),
		errors.Is(err, engine.ErrClosed):
		return nil, "", status.Error(codes.Unavailable, err.Error())
	}
	if pb, ok := regionerr.ToProto(err); ok {
		return regionError(pb), "", nil
	}
	return nil, "", status.Error(codes.Internal, err.Error())
}

// readOutcome is outcome for answers that have no place for a message: the status of the call says
// it.
func readOutcome(err error) (*errorpb.Error, error) {
	region, text, rpc := outcome(err)
	if text != "" {
		rpc = status.Error(codes.InvalidArgument, text)
	}
	return region, rpc
}

// regionError is a region error in TiKV's form. What TiKV does not have is left with its text, at
// which clients try another replica.
func regionError(e *ownerror.Error) *errorpb.Error {
	out := &errorpb.Error{Message: e.Message}
	switch {
	case e.NotLeader != nil:
		out.NotLeader = &errorpb.NotLeader{
			RegionId: e.NotLeader.RegionId,
			Leader:   peer(e.NotLeader.Leader),
		}
	case e.RegionNotFound != nil:
		out.RegionNotFound = &errorpb.RegionNotFound{RegionId: e.RegionNotFound.RegionId}
	case e.KeyNotInRegion != nil:
		k := e.KeyNotInRegion
		out.KeyNotInRegion = &errorpb.KeyNotInRegion{
			Key:      k.Key,
			RegionId: k.RegionId,
			StartKey: k.StartKey,
			EndKey:   k.EndKey,
		}
	case e.EpochNotMatch != nil:
		out.EpochNotMatch = &errorpb.EpochNotMatch{
			CurrentRegions: regions(e.EpochNotMatch.CurrentRegions),
		}
	case e.ServerIsBusy != nil:
		out.ServerIsBusy = &errorpb.ServerIsBusy{
			Reason:    e.ServerIsBusy.Reason,
			BackoffMs: e.ServerIsBusy.BackoffMs,
		}
	case e.StaleCommand != nil:
		out.StaleCommand = &errorpb.StaleCommand{}
	case e.StoreNotMatch != nil:
		m := e.StoreNotMatch
		out.StoreNotMatch = &errorpb.StoreNotMatch{
			RequestStoreId: m.RequestStoreId,
			ActualStoreId:  m.ActualStoreId,
		}
	case e.RaftEntryTooLarge != nil:
		l := e.RaftEntryTooLarge
		out.RaftEntryTooLarge = &errorpb.RaftEntryTooLarge{
			RegionId:  l.RegionId,
			EntrySize: l.EntrySize,
		}
	case e.DiskFull != nil:
		out.DiskFull = &errorpb.DiskFull{StoreId: e.DiskFull.StoreId, Reason: e.DiskFull.Reason}
	case e.UndeterminedResult != nil:
		out.UndeterminedResult = &errorpb.UndeterminedResult{Message: e.UndeterminedResult.Message}
	}
	return out
}

func peer(p *ownmeta.Peer) *metapb.Peer {
	if p == nil {
		return nil
	}
	return &metapb.Peer{Id: p.Id, StoreId: p.StoreId, Role: metapb.PeerRole(p.Role)}
}

func region(r *ownmeta.Region) *metapb.Region {
	out := &metapb.Region{
		Id: r.Id, StartKey: r.StartKey, EndKey: r.EndKey,
		RegionEpoch: &metapb.RegionEpoch{
			Version: r.GetRegionEpoch().GetVersion(),
			ConfVer: r.GetRegionEpoch().GetConfVer(),
		},
	}
	for _, p := range r.Peers {
		out.Peers = append(out.Peers, peer(p))
	}
	return out
}

func regions(list []*ownmeta.Region) []*metapb.Region {
	var out []*metapb.Region
	for _, r := range list {
		out = append(out, region(r))
	}
	return out
}
