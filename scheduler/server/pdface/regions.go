package pdface

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/pingcap/kvproto/pkg/pdpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	native "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

const (
	// maxQueried bounds the keys and ids of one QueryRegion request.
	maxQueried = 10_000
	// maxScanned bounds the regions of one answer to a client that sets no limit.
	maxScanned = 10_000
)

func found(known *native.GetRegionResponse, err error) (*pdpb.GetRegionResponse, error) {
	if err != nil {
		return nil, err
	}
	return &pdpb.GetRegionResponse{
		Header: header(known.Header), Region: region(known.Region), Leader: peer(known.Leader),
		DownPeers: downPeers(known.DownPeers), PendingPeers: peers(known.PendingPeers),
	}, nil
}

// GetRegion implements pdpb.PDServer.
func (f *Face) GetRegion(
	ctx context.Context,
	req *pdpb.GetRegionRequest,
) (*pdpb.GetRegionResponse, error) {
	return found(f.native.GetRegion(ctx, &native.GetRegionRequest{
		Header: request(req.GetHeader()), RegionKey: req.GetRegionKey(),
	}))
}

// GetPrevRegion implements pdpb.PDServer.
func (f *Face) GetPrevRegion(
	ctx context.Context,
	req *pdpb.GetRegionRequest,
) (*pdpb.GetRegionResponse, error) {
	return found(f.native.GetPrevRegion(ctx, &native.GetRegionRequest{
		Header: request(req.GetHeader()), RegionKey: req.GetRegionKey(),
	}))
}

// GetRegionByID implements pdpb.PDServer.
func (f *Face) GetRegionByID(
	ctx context.Context,
	req *pdpb.GetRegionByIDRequest,
) (*pdpb.GetRegionResponse, error) {
	return found(f.native.GetRegionByID(ctx, &native.GetRegionByIDRequest{
		Header: request(req.GetHeader()), RegionId: req.GetRegionId(),
	}))
}

// notBootstrapped is the header of an answer that a cluster without stores cannot give; nil if it
// has one.
func (f *Face) notBootstrapped() *pdpb.ResponseHeader {
	if f.back.Bootstrapped() {
		return nil
	}
	return f.failure(pdpb.ErrorType_NOT_BOOTSTRAPPED, "cluster is not bootstrapped")
}

func (f *Face) failure(t pdpb.ErrorType, msg string) *pdpb.ResponseHeader {
	h := f.header()
	h.Error = &pdpb.Error{Type: t, Message: msg}
	return h
}

// QueryRegion implements pdpb.PDServer: one answer for each request, in order.
func (f *Face) QueryRegion(stream pdpb.PD_QueryRegionServer) error {
	if !f.back.IsLeader() {
		return f.back.ForwardStream(
			stream,
			"/pdpb.PD/QueryRegion",
			func() any { return new(pdpb.QueryRegionRequest) },
			func() any { return new(pdpb.QueryRegionResponse) },
		)
	}
	return f.back.WhileLeading(func() error {
		for {
			req, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			resp, err := f.query(req)
			if err != nil {
				return err
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
	})
}

func (f *Face) query(req *pdpb.QueryRegionRequest) (*pdpb.QueryRegionResponse, error) {
	if err := f.back.Check(req.GetHeader().GetClusterId()); err != nil {
		return nil, err
	}
	if n := len(req.Keys) + len(req.PrevKeys) + len(req.Ids); n > maxQueried {
		return nil, status.Errorf(
			codes.InvalidArgument,
			"invalid query: %d keys and ids, at most %d",
			n,
			maxQueried,
		)
	}
	resp := &pdpb.QueryRegionResponse{
		Header:      f.header(),
		RegionsById: map[uint64]*pdpb.RegionResponse{},
	}
	if h := f.notBootstrapped(); h != nil {
		resp.Header = h
		return resp, nil
	}
	note := func(r *core.RegionInfo) uint64 {
		if r == nil {
			return 0
		}
		if _, ok := resp.RegionsById[r.ID()]; !ok {
			resp.RegionsById[r.ID()] = &pdpb.RegionResponse{
				Region: region(r.Meta()), Leader: peer(r.LeaderProto()),
				DownPeers: downPeers(r.DownProto()), PendingPeers: peers(r.PendingProto()),
			}
		}
		return r.ID()
	}
	for _, key := range req.Keys {
		resp.KeyIdMap = append(resp.KeyIdMap, note(f.back.Regions().RegionByKey(key)))
	}
	for _, key := range req.PrevKeys {
		resp.PrevKeyIdMap = append(resp.PrevKeyIdMap, note(f.back.Regions().PrevRegion(key)))
	}
	for _, id := range req.Ids {
		note(f.back.Regions().Region(id))
	}
	return resp, nil
}

// ScanRegions implements pdpb.PDServer. Old clients read the two flat lists, new ones regions.
func (f *Face) ScanRegions(
	_ context.Context,
	req *pdpb.ScanRegionsRequest,
) (*pdpb.ScanRegionsResponse, error) {
	if err := f.back.Check(req.GetHeader().GetClusterId()); err != nil {
		return nil, err
	}
	if h := f.notBootstrapped(); h != nil {
		return &pdpb.ScanRegionsResponse{Header: h}, nil
	}
	resp := &pdpb.ScanRegionsResponse{Header: f.header()}
	limit := limitOf(req.GetLimit())
	for _, r := range f.back.Regions().ScanRegions(req.GetStartKey(), req.GetEndKey(), limit) {
		one := regionOf(r)
		resp.Regions = append(resp.Regions, one)
		resp.RegionMetas = append(resp.RegionMetas, one.Region)
		resp.Leaders = append(resp.Leaders, one.Leader)
	}
	return resp, nil
}

func limitOf(limit int32) int {
	if limit <= 0 || limit > maxScanned {
		return maxScanned
	}
	return int(limit)
}

// BatchScanRegions implements pdpb.PDServer: the regions of several ranges, each region once.
func (f *Face) BatchScanRegions(
	_ context.Context,
	req *pdpb.BatchScanRegionsRequest,
) (*pdpb.BatchScanRegionsResponse, error) {
	if err := f.back.Check(req.GetHeader().GetClusterId()); err != nil {
		return nil, err
	}
	if h := f.notBootstrapped(); h != nil {
		return &pdpb.BatchScanRegionsResponse{Header: h}, nil
	}
	resp := &pdpb.BatchScanRegionsResponse{Header: f.header()}
	room := limitOf(req.GetLimit())
	var last *core.RegionInfo
	for i, rng := range req.GetRanges() {
		if end := rng.GetEndKey(); len(end) > 0 && bytes.Compare(rng.GetStartKey(), end) > 0 {
			return nil, status.Errorf(
				codes.InvalidArgument,
				"invalid batch scan: range %d ends before it begins",
				i,
			)
		}
		if room == 0 {
			break
		}
		list := f.back.Regions().ScanRegions(rng.GetStartKey(), rng.GetEndKey(), room+1)
		if req.GetContainAllKeyRange() && !covers(list, rng, len(list) > room) {
			return &pdpb.BatchScanRegionsResponse{
				Header: f.failure(pdpb.ErrorType_REGIONS_NOT_CONTAIN_ALL_KEY_RANGE,
					"the regions known do not cover the ranges; some are changing"),
			}, nil
		}
		for _, r := range list {
			if last != nil && last.ID() == r.ID() {
				continue
			}
			if room == 0 {
				break
			}
			resp.Regions, last = append(resp.Regions, regionOf(r)), r
			room--
		}
	}
	return resp, nil
}

// covers tells whether regions leave no gap in a range; cut says that the list goes on.
func covers(list []*core.RegionInfo, rng *pdpb.KeyRange, cut bool) bool {
	at := rng.GetStartKey()
	for _, r := range list {
		if bytes.Compare(r.StartKey(), at) > 0 {
			return false
		}
		if at = r.EndKey(); len(at) == 0 {
			return true
		}
	}
	return cut || len(rng.GetEndKey()) > 0 && bytes.Compare(at, rng.GetEndKey()) >= 0
}

// ScatterRegion implements pdpb.PDServer. It is done as far as it can be; the answer says which
// regions were not.
func (f *Face) ScatterRegion(
	_ context.Context,
	req *pdpb.ScatterRegionRequest,
) (*pdpb.ScatterRegionResponse, error) {
	if err := f.back.Check(req.GetHeader().GetClusterId()); err != nil {
		return nil, err
	}
	if h := f.notBootstrapped(); h != nil {
		return &pdpb.ScatterRegionResponse{Header: h}, nil
	}
	ids := req.GetRegionsId()
	if len(ids) == 0 {
		//lint:ignore SA1019 old clients set nothing else
		id := req.GetRegionId()
		if id == 0 {
			id = req.GetRegion().GetId()
		}
		if err := f.back.ScatterRegion(id); err != nil && f.back.Regions().Region(id) == nil {
			return &pdpb.ScatterRegionResponse{
				Header: f.failure(pdpb.ErrorType_REGION_NOT_FOUND, err.Error()),
			}, nil
		}
		return &pdpb.ScatterRegionResponse{Header: f.header(), FinishedPercentage: 100}, nil
	}
	failed := f.scatter(ids)
	return &pdpb.ScatterRegionResponse{
		Header: f.header(), FinishedPercentage: percent(len(ids)-len(failed), len(ids)),
		FailedRegionsId: failed,
	}, nil
}

func (f *Face) scatter(ids []uint64) (failed []uint64) {
	for _, id := range ids {
		if err := f.back.ScatterRegion(id); err != nil {
			failed = append(failed, id)
		}
	}
	return failed
}

func percent(n, of int) uint64 {
	if of == 0 {
		return 100
	}
	return uint64(n * 100 / of)
}

// SplitRegions implements pdpb.PDServer.
func (f *Face) SplitRegions(
	ctx context.Context,
	req *pdpb.SplitRegionsRequest,
) (*pdpb.SplitRegionsResponse, error) {
	if err := f.back.Check(req.GetHeader().GetClusterId()); err != nil {
		return nil, err
	}
	if h := f.notBootstrapped(); h != nil {
		return &pdpb.SplitRegionsResponse{Header: h}, nil
	}
	ids := f.back.SplitAt(ctx, req.GetSplitKeys())
	return &pdpb.SplitRegionsResponse{
		Header: f.header(), FinishedPercentage: percent(len(ids), len(req.GetSplitKeys())),
		RegionsId: ids,
	}, nil
}

// SplitAndScatterRegions implements pdpb.PDServer.
func (f *Face) SplitAndScatterRegions(ctx context.Context, req *pdpb.SplitAndScatterRegionsRequest,
) (*pdpb.SplitAndScatterRegionsResponse, error) {
	if err := f.back.Check(req.GetHeader().GetClusterId()); err != nil {
		return nil, err
	}
	if h := f.notBootstrapped(); h != nil {
		return &pdpb.SplitAndScatterRegionsResponse{Header: h}, nil
	}
	ids := f.back.SplitAt(ctx, req.GetSplitKeys())
	failed := f.scatter(ids)
	return &pdpb.SplitAndScatterRegionsResponse{
		Header: f.header(), SplitFinishedPercentage: percent(len(ids), len(req.GetSplitKeys())),
		ScatterFinishedPercentage: percent(len(ids)-len(failed), len(ids)), RegionsId: ids,
	}, nil
}
