package pdface

import (
	"context"

	"github.com/pingcap/kvproto/pkg/keyspacepb"
	"github.com/pingcap/kvproto/pkg/meta_storagepb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"google.golang.org/grpc"

	native "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Backend is what the face needs of a member beside its native service. Safe for concurrent use.
type Backend interface {
	// ClusterID is the cluster's id, 0 before the member has started.
	ClusterID() uint64
	// Check refuses a request that this member may not answer, or that names another cluster.
	Check(clusterID uint64) error
	// Bootstrapped tells whether the cluster has its first store.
	Bootstrapped() bool
	// IsLeader tells whether this member answers by itself.
	IsLeader() bool
	// Regions is the region map.
	Regions() *core.BasicCluster
	// WhileLeading runs a stream's loop and returns when it ends or this member stops leading.
	WhileLeading(loop func() error) error
	// ForwardStream copies a stream to the leader and back.
	ForwardStream(down grpc.ServerStream, method string, newReq, newResp func() any) error
	// SplitAt splits regions so that each key begins one, waits for it while ctx lasts, and returns
	// the regions that begin at the keys. Fewer regions than keys mean that the rest was not done
	// in time.
	SplitAt(ctx context.Context, keys [][]byte) []uint64
	// ScatterRegion spreads a region among the stores, as one of a group.
	ScatterRegion(regionID uint64) error
	// GC is the state of garbage collection.
	GC() SafePoints
}

// Face implements pdpb.PDServer over a native service. What it does not have answers Unimplemented.
type Face struct {
	pdpb.UnimplementedPDServer
	native native.SchedulerServer
	back   Backend
}

// New makes the face.
func New(service native.SchedulerServer, back Backend) *Face {
	return &Face{native: service, back: back}
}

// Register adds the face's services to a server.
func Register(gs *grpc.Server, f *Face) {
	pdpb.RegisterPDServer(gs, f)
	meta_storagepb.RegisterMetaStorageServer(gs, &metaStorage{back: f.back})
	keyspacepb.RegisterKeyspaceServer(gs, &keyspaces{back: f.back})
}

// ForEveryMember are the calls that each member answers by itself: clients find the leader by them.
func ForEveryMember(method string) bool {
	return method == "/pdpb.PD/GetMembers" || method == "/pdpb.PD/GetClusterInfo"
}

func (f *Face) header() *pdpb.ResponseHeader {
	return &pdpb.ResponseHeader{ClusterId: f.back.ClusterID()}
}

// GetMembers implements pdpb.PDServer.
func (f *Face) GetMembers(
	ctx context.Context,
	_ *pdpb.GetMembersRequest,
) (*pdpb.GetMembersResponse, error) {
	known, err := f.native.GetMembers(ctx, &native.GetMembersRequest{})
	if err != nil {
		return nil, err
	}
	resp := &pdpb.GetMembersResponse{
		Header: header(known.Header), Leader: Member(known.Leader),
		EtcdLeader: Member(known.EtcdLeader),
	}
	for _, m := range known.Members {
		resp.Members = append(resp.Members, Member(m))
	}
	return resp, nil
}

// GetClusterInfo implements pdpb.PDServer: one service has everything, timestamps too.
func (f *Face) GetClusterInfo(
	ctx context.Context,
	_ *pdpb.GetClusterInfoRequest,
) (*pdpb.GetClusterInfoResponse, error) {
	known, err := f.native.GetMembers(ctx, &native.GetMembersRequest{}) // refuses before the start
	if err != nil {
		return nil, err
	}
	return &pdpb.GetClusterInfoResponse{
		Header:       header(known.Header),
		ServiceModes: []pdpb.ServiceMode{pdpb.ServiceMode_PD_SVC_MODE},
	}, nil
}

// tsoStream is a stream of pdpb's timestamps as one of the native service's: the messages are the
// same on the wire.
type tsoStream struct{ grpc.ServerStream }

func (s tsoStream) Send(m *native.TsoResponse) error { return s.SendMsg(m) }

func (s tsoStream) Recv() (*native.TsoRequest, error) {
	m := new(native.TsoRequest)
	return m, s.RecvMsg(m)
}

// Tso implements pdpb.PDServer.
func (f *Face) Tso(stream pdpb.PD_TsoServer) error { return f.native.Tso(tsoStream{stream}) }

// IsBootstrapped implements pdpb.PDServer.
func (f *Face) IsBootstrapped(
	ctx context.Context,
	req *pdpb.IsBootstrappedRequest,
) (*pdpb.IsBootstrappedResponse, error) {
	known, err := f.native.IsBootstrapped(
		ctx,
		&native.IsBootstrappedRequest{Header: request(req.GetHeader())},
	)
	if err != nil {
		return nil, err
	}
	return &pdpb.IsBootstrappedResponse{
		Header:       header(known.Header),
		Bootstrapped: known.Bootstrapped,
	}, nil
}

// IsSnapshotRecovering implements pdpb.PDServer.
func (f *Face) IsSnapshotRecovering(_ context.Context, req *pdpb.IsSnapshotRecoveringRequest,
) (*pdpb.IsSnapshotRecoveringResponse, error) {
	if err := f.back.Check(req.GetHeader().GetClusterId()); err != nil {
		return nil, err
	}
	return &pdpb.IsSnapshotRecoveringResponse{Header: f.header()}, nil
}

// AllocID implements pdpb.PDServer. A client that asks for several ids gets them one by one: they
// need not follow each other.
func (f *Face) AllocID(
	ctx context.Context,
	req *pdpb.AllocIDRequest,
) (*pdpb.AllocIDResponse, error) {
	known, err := f.native.AllocID(ctx, &native.AllocIDRequest{Header: request(req.GetHeader())})
	if err != nil {
		return nil, err
	}
	return &pdpb.AllocIDResponse{Header: header(known.Header), Id: known.Id, Count: 1}, nil
}

// GetStore implements pdpb.PDServer.
func (f *Face) GetStore(
	ctx context.Context,
	req *pdpb.GetStoreRequest,
) (*pdpb.GetStoreResponse, error) {
	known, err := f.native.GetStore(
		ctx,
		&native.GetStoreRequest{Header: request(req.GetHeader()), StoreId: req.GetStoreId()},
	)
	if err != nil {
		return nil, err
	}
	return &pdpb.GetStoreResponse{
		Header: header(known.Header),
		Store:  Store(known.Store),
		Stats:  stats(known.Stats),
	}, nil
}

// GetAllStores implements pdpb.PDServer.
func (f *Face) GetAllStores(
	ctx context.Context,
	req *pdpb.GetAllStoresRequest,
) (*pdpb.GetAllStoresResponse, error) {
	known, err := f.native.GetAllStores(ctx, &native.GetAllStoresRequest{
		Header: request(req.GetHeader()), ExcludeTombstoneStores: req.GetExcludeTombstoneStores(),
	})
	if err != nil {
		return nil, err
	}
	resp := &pdpb.GetAllStoresResponse{Header: header(known.Header)}
	for _, st := range known.Stores {
		resp.Stores = append(resp.Stores, Store(st))
	}
	return resp, nil
}

// GetOperator implements pdpb.PDServer.
func (f *Face) GetOperator(
	ctx context.Context,
	req *pdpb.GetOperatorRequest,
) (*pdpb.GetOperatorResponse, error) {
	known, err := f.native.GetOperator(ctx, &native.GetOperatorRequest{
		Header: request(req.GetHeader()), RegionId: req.GetRegionId(),
	})
	if err != nil {
		return nil, err
	}
	return &pdpb.GetOperatorResponse{
		Header: header(known.Header), RegionId: known.RegionId, Desc: known.Desc, Kind: known.Kind,
		Status: pdpb.OperatorStatus(known.Status),
	}, nil
}
