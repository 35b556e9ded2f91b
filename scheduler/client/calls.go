package client

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	pb "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// Region is what the placement service knows about a region.
type Region struct {
	Meta         *metapb.Region
	Leader       *metapb.Peer // nil if unknown
	PendingPeers []*metapb.Peer
	DownPeers    []*pb.PeerStats
}

// Voters is how many of the region's peers have a vote; the others are on their way to one.
func (r *Region) Voters() int {
	n := 0
	for _, p := range r.Meta.GetPeers() {
		if p.GetRole() != metapb.PeerRole_Learner {
			n++
		}
	}
	return n
}

// response is any answer with a header.
type response interface{ GetHeader() *pb.ResponseHeader }

// unary is one call with its header check.
func unary[Req any, Resp response](ctx context.Context, c *Client, name string, req Req,
	method func(pb.SchedulerClient, context.Context, Req, ...grpc.CallOption) (Resp, error),
) (Resp, error) {
	var resp Resp
	err := c.call(ctx, name, func(ctx context.Context, stub pb.SchedulerClient) error {
		var err error
		resp, err = method(stub, ctx, req)
		return err
	})
	if err != nil {
		return resp, err
	}
	return resp, headerError(resp.GetHeader())
}

// AllocID returns an id that is never given out again.
func (c *Client) AllocID(ctx context.Context) (uint64, error) {
	resp, err := unary(ctx, c, "alloc id", &pb.AllocIDRequest{Header: c.header()},
		pb.SchedulerClient.AllocID)
	return resp.GetId(), err
}

// Bootstrap makes the store the first of the cluster. The same store may repeat it;
// ErrAlreadyBootstrapped means that another store was first.
func (c *Client) Bootstrap(ctx context.Context, store *metapb.Store, region *metapb.Region) error {
	_, err := unary(ctx, c, "bootstrap",
		&pb.BootstrapRequest{Header: c.header(), Store: store, Region: region},
		pb.SchedulerClient.Bootstrap)
	return err
}

// IsBootstrapped tells whether a store has bootstrapped the cluster.
func (c *Client) IsBootstrapped(ctx context.Context) (bool, error) {
	resp, err := unary(ctx, c, "is bootstrapped", &pb.IsBootstrappedRequest{Header: c.header()},
		pb.SchedulerClient.IsBootstrapped)
	return resp.GetBootstrapped(), err
}

// PutStore registers a store or updates its address.
func (c *Client) PutStore(ctx context.Context, store *metapb.Store) error {
	_, err := c.RegisterRun(ctx, store, false)
	return err
}

// RegisterRun registers a run of a store and returns its incarnation. rebuild says that the store
// serves nothing of the data it has. ErrOldCopy, ErrDuplicateStore, ErrStoreTombstone.
func (c *Client) RegisterRun(
	ctx context.Context, store *metapb.Store, rebuild bool,
) (incarnation uint64, err error) {
	resp, err := unary(ctx, c, "put store",
		&pb.PutStoreRequest{Header: c.header(), Store: store, Rebuild: rebuild},
		pb.SchedulerClient.PutStore)
	return resp.GetIncarnation(), err
}

// GetStore returns a store.
func (c *Client) GetStore(ctx context.Context, id uint64) (*metapb.Store, error) {
	store, _, err := c.GetStoreStats(ctx, id)
	return store, err
}

// GetStoreStats returns a store and its last heartbeat (nil if there was none).
func (c *Client) GetStoreStats(
	ctx context.Context, id uint64,
) (*metapb.Store, *pb.StoreStats, error) {
	resp, err := unary(ctx, c, "get store", &pb.GetStoreRequest{Header: c.header(), StoreId: id},
		pb.SchedulerClient.GetStore)
	if err == nil && resp.GetStore() == nil {
		err = ErrStoreNotFound
	}
	return resp.GetStore(), resp.GetStats(), err
}

// GetAllStores returns all stores, without tombstones if asked so.
func (c *Client) GetAllStores(ctx context.Context, excludeTombstone bool) ([]*metapb.Store, error) {
	resp, err := unary(ctx, c, "get all stores",
		&pb.GetAllStoresRequest{Header: c.header(), ExcludeTombstoneStores: excludeTombstone},
		pb.SchedulerClient.GetAllStores)
	return resp.GetStores(), err
}

func toRegion(resp *pb.GetRegionResponse) *Region {
	if resp.GetRegion() == nil {
		return nil
	}
	return &Region{
		Meta: resp.Region, Leader: resp.Leader,
		PendingPeers: resp.PendingPeers, DownPeers: resp.DownPeers,
	}
}

// GetPrevRegion returns the left neighbour of the region that contains the key.
func (c *Client) GetPrevRegion(ctx context.Context, key []byte) (*Region, error) {
	resp, err := unary(ctx, c, "get previous region",
		&pb.GetRegionRequest{Header: c.header(), RegionKey: key}, pb.SchedulerClient.GetPrevRegion)
	return toRegion(resp), err
}

// GetRegionByID returns a region, nil if it is not known.
func (c *Client) GetRegionByID(ctx context.Context, id uint64) (*Region, error) {
	resp, err := unary(ctx, c, "get region by id",
		&pb.GetRegionByIDRequest{Header: c.header(), RegionId: id},
		pb.SchedulerClient.GetRegionByID)
	return toRegion(resp), err
}

// ScanRegions returns regions in key order from the one that contains start up to end (exclusive,
// empty is +inf), at most limit of them; limit <= 0 is no limit.
func (c *Client) ScanRegions(ctx context.Context, start, end []byte, limit int) ([]*Region, error) {
	resp, err := unary(ctx, c, "scan regions",
		&pb.ScanRegionsRequest{
			Header: c.header(), StartKey: start, EndKey: end, Limit: int32(limit),
		}, pb.SchedulerClient.ScanRegions)
	if err != nil {
		return nil, err
	}
	out := make([]*Region, len(resp.GetRegions()))
	for i, m := range resp.GetRegions() {
		out[i] = &Region{Meta: m}
		if i < len(resp.Leaders) && resp.Leaders[i].GetId() != 0 {
			out[i].Leader = resp.Leaders[i]
		}
	}
	return out, nil
}

// AskSplit returns ids for the region that a split will make and for its peers.
func (c *Client) AskSplit(
	ctx context.Context, region *metapb.Region,
) (*pb.AskSplitResponse, error) {
	return unary(ctx, c, "ask split", &pb.AskSplitRequest{Header: c.header(), Region: region},
		pb.SchedulerClient.AskSplit)
}

// ReportSplit tells both halves of a split at once, so that routing has no hole until their first
// heartbeats.
func (c *Client) ReportSplit(ctx context.Context, left, right *metapb.Region) error {
	_, err := unary(ctx, c, "report split",
		&pb.ReportSplitRequest{Header: c.header(), Left: left, Right: right},
		pb.SchedulerClient.ReportSplit)
	return err
}

// StoreHeartbeat reports a store's state.
func (c *Client) StoreHeartbeat(ctx context.Context, stats *pb.StoreStats) error {
	_, err := c.Heartbeat(ctx, stats)
	return err
}

// Heartbeat reports a store's state and returns the features in force in the cluster.
func (c *Client) Heartbeat(ctx context.Context, stats *pb.StoreStats) (feature.Set, error) {
	resp, err := unary(ctx, c, "store heartbeat",
		&pb.StoreHeartbeatRequest{Header: c.header(), Stats: stats},
		pb.SchedulerClient.StoreHeartbeat)
	return feature.Set(resp.GetFeatures()), err
}

// GetClusterConfig returns the cluster's description.
func (c *Client) GetClusterConfig(ctx context.Context) (*metapb.Cluster, error) {
	resp, err := unary(ctx, c, "get cluster config",
		&pb.GetClusterConfigRequest{Header: c.header()}, pb.SchedulerClient.GetClusterConfig)
	return resp.GetCluster(), err
}

// asAdmin adds the token to a call, if there is one.
func (c *Client) asAdmin(ctx context.Context) context.Context {
	if c.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// PutClusterConfig changes the number of replicas. It is for the admin: see WithToken.
func (c *Client) PutClusterConfig(ctx context.Context, cluster *metapb.Cluster) error {
	_, err := unary(c.asAdmin(ctx), c, "put cluster config",
		&pb.PutClusterConfigRequest{Header: c.header(), Cluster: cluster},
		pb.SchedulerClient.PutClusterConfig)
	return err
}

// GetOperator returns the running operator of a region, or the last one of the past ten minutes.
func (c *Client) GetOperator(
	ctx context.Context, regionID uint64,
) (*pb.GetOperatorResponse, error) {
	return unary(ctx, c, "get operator",
		&pb.GetOperatorRequest{Header: c.header(), RegionId: regionID},
		pb.SchedulerClient.GetOperator)
}

// ScatterRegion asks for a region's replicas to be spread over the stores.
func (c *Client) ScatterRegion(ctx context.Context, regionID uint64) error {
	_, err := unary(ctx, c, "scatter region",
		&pb.ScatterRegionRequest{Header: c.header(), RegionId: regionID},
		pb.SchedulerClient.ScatterRegion)
	return err
}

// GetGCSafePoint returns the timestamp below which old versions may be dropped.
func (c *Client) GetGCSafePoint(ctx context.Context) (uint64, error) {
	resp, err := unary(ctx, c, "get gc safe point", &pb.GetGCSafePointRequest{Header: c.header()},
		pb.SchedulerClient.GetGCSafePoint)
	return resp.GetSafePoint(), err
}

// UpdateGCSafePoint raises the safe point and returns the one in force: it never goes back. It is
// for the admin: see WithToken.
func (c *Client) UpdateGCSafePoint(ctx context.Context, safePoint uint64) (uint64, error) {
	resp, err := unary(c.asAdmin(ctx), c, "update gc safe point",
		&pb.UpdateGCSafePointRequest{Header: c.header(), SafePoint: safePoint},
		pb.SchedulerClient.UpdateGCSafePoint)
	return resp.GetNewSafePoint(), err
}

// GetGCState returns all safe points and what holds them back.
func (c *Client) GetGCState(ctx context.Context) (*pb.GetGCStateResponse, error) {
	return unary(ctx, c, "get gc state", &pb.GetGCStateRequest{Header: c.header()},
		pb.SchedulerClient.GetGCState)
}

// AdvanceSafePoints raises the safe point of transactions up to the first barrier, and that of
// garbage up to the former, and returns those in force. A target of 0 changes nothing. It is for
// stores.
func (c *Client) AdvanceSafePoints(
	ctx context.Context, txnTarget, gcTarget uint64,
) (txn, gc uint64, err error) {
	resp, err := unary(ctx, c, "advance safe points", &pb.AdvanceSafePointsRequest{
		Header: c.header(), TxnTarget: txnTarget, GcTarget: gcTarget,
	}, pb.SchedulerClient.AdvanceSafePoints)
	return resp.GetTxnSafePoint(), resp.GetGcSafePoint(), err
}

// GetMembers returns the members and the leader. Any member answers.
func (c *Client) GetMembers(ctx context.Context) (*pb.GetMembersResponse, error) {
	var errs []error
	for _, addr := range c.known() {
		attempt, cancel := context.WithTimeout(ctx, discoverTimeout)
		resp, err := c.ask(attempt, addr)
		cancel()
		if err == nil {
			return resp, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// LeaderAddress returns host:port of the placement leader as last seen.
func (c *Client) LeaderAddress() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.leader
}
