package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	pb "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/id"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/storage"
	"github.com/tinykv/tinykv/scheduler/server/tso"
)

var (
	errNotLeader = status.Error(codes.Unavailable, "not leader")
	errNotReady  = status.Error(codes.Unavailable, "server is starting")
	errStopped   = status.Error(codes.Unavailable, "server is stopping")
)

// service is the gRPC face of a server: decode, check, call, answer.
type service struct{ s *Server }

var _ pb.SchedulerServer = (*service)(nil)

func (v *service) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: v.s.clusterID}
}

func (v *service) errorHeader(t pb.ErrorType, format string, args ...any) *pb.ResponseHeader {
	h := v.header()
	h.Error = &pb.Error{Type: t, Message: fmt.Sprintf(format, args...)}
	return h
}

func (v *service) notBootstrapped() *pb.ResponseHeader {
	if ok, _ := v.s.bootstrapped(); ok {
		return nil
	}
	return v.errorHeader(pb.ErrorType_NOT_BOOTSTRAPPED, "cluster is not bootstrapped")
}

// validate refuses requests that this member may not answer, or that are for another cluster.
func (v *service) validate(h *pb.RequestHeader) error {
	select {
	case <-v.s.ready:
	default:
		return errNotLeader
	}
	if v.s.leadership() == nil {
		return v.s.noLeader()
	}
	return v.validateCluster(h)
}

func (v *service) validateCluster(h *pb.RequestHeader) error {
	if h.GetClusterId() != v.s.clusterID {
		return status.Errorf(codes.FailedPrecondition, "mismatch cluster id, need %d but got %d",
			v.s.clusterID, h.GetClusterId())
	}
	return nil
}

// rpcErr gives an internal error its gRPC code: what another try may cure is Unavailable.
func rpcErr(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, id.ErrNotLeader), errors.Is(err, tso.ErrNotLeader),
		errors.Is(err, errNotLeader):
		return errNotLeader
	case hasCode(err, codes.ResourceExhausted):
		return status.Errorf(codes.Unavailable, "%v: %s", err, reclaimHint)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.Is(err, tso.ErrWindow):
		return status.Error(codes.Unavailable, err.Error())
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}

// GetMembers is answered by every member and checks no header: clients learn the cluster id here.
func (v *service) GetMembers(
	ctx context.Context, _ *pb.GetMembersRequest,
) (*pb.GetMembersResponse, error) {
	select {
	case <-v.s.ready:
	default:
		return nil, status.Error(codes.Unavailable, "server not started")
	}
	resp := &pb.GetMembersResponse{Header: v.header()}
	etcdLeader := v.s.node.quorumLeader()
	for _, m := range v.s.members() {
		resp.Members = append(resp.Members, m.Member)
		if m.MemberId == etcdLeader {
			resp.EtcdLeader = m.Member
		}
	}
	leader, _ := v.s.elector.Leader()
	// A member that leads but is not ready yet must not be found: its first answer would be "no".
	if leader.GetMemberId() != v.s.self.MemberId || v.s.IsLeader() {
		resp.Leader = leader
	}
	return resp, ctx.Err()
}

func (v *service) Tso(stream pb.Scheduler_TsoServer) error {
	if v.s.leadership() == nil {
		return v.s.forward.tso(stream)
	}
	return v.whileLeading(func() error { return v.serveTSO(stream) })
}

// whileLeading runs a stream's loop and returns when it ends or this member stops leading. The loop
// itself cannot notice that, as it waits in Recv; it ends when the handler has returned.
func (v *service) whileLeading(loop func() error) error {
	ctx := v.s.leaderContext()
	if ctx == nil {
		return errNotLeader
	}
	ended := make(chan error, 1)
	go func() { ended <- loop() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return errNotLeader
	}
}

func (v *service) serveTSO(stream pb.Scheduler_TsoServer) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := v.validate(req.GetHeader()); err != nil {
			return err
		}
		fence, _, ok := v.s.fence()
		if !ok {
			return errNotLeader
		}
		physical, logical, err := v.s.tso.Generate(stream.Context(), fence, req.GetCount())
		if err != nil {
			return rpcErr(err)
		}
		// A member that lost the leadership while it computed must not answer.
		if v.s.leadership() == nil {
			return errNotLeader
		}
		v.s.metrics.tsoHandled.Add(uint64(req.Count))
		err = stream.Send(&pb.TsoResponse{
			Header: v.header(), Count: req.Count,
			Timestamp: &pb.Timestamp{Physical: physical, Logical: logical},
		})
		if err != nil {
			return err
		}
	}
}

func (v *service) Bootstrap(
	ctx context.Context, req *pb.BootstrapRequest,
) (*pb.BootstrapResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	h, err := v.s.bootstrap(ctx, req)
	if err != nil {
		return nil, rpcErr(err)
	}
	if h == nil {
		h = v.header()
	}
	return &pb.BootstrapResponse{Header: h}, nil
}

func (v *service) IsBootstrapped(
	_ context.Context, req *pb.IsBootstrappedRequest,
) (*pb.IsBootstrappedResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	ok, _ := v.s.bootstrapped()
	return &pb.IsBootstrappedResponse{Header: v.header(), Bootstrapped: ok}, nil
}

func (v *service) AllocID(
	ctx context.Context, req *pb.AllocIDRequest,
) (*pb.AllocIDResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	n, err := v.s.ids.Alloc(ctx)
	if err != nil {
		return nil, rpcErr(err)
	}
	return &pb.AllocIDResponse{Header: v.header(), Id: n}, nil
}

func (v *service) GetStore(
	_ context.Context, req *pb.GetStoreRequest,
) (*pb.GetStoreResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetStoreResponse{Header: h}, nil
	}
	st := v.s.cluster.Core().Store(req.GetStoreId())
	if st == nil {
		return nil, status.Errorf(codes.Unknown, "invalid store ID %d, not found", req.GetStoreId())
	}
	return &pb.GetStoreResponse{Header: v.header(), Store: storeProto(st), Stats: st.Stats()}, nil
}

// storeProto is the store's description with what only answers carry.
func storeProto(s *core.StoreInfo) *metapb.Store {
	m := *s.Meta()
	if s.Stats() != nil {
		m.LastHeartbeat = s.LastHeartbeat().UnixNano()
	}
	return &m
}

func (v *service) PutStore(
	ctx context.Context, req *pb.PutStoreRequest,
) (*pb.PutStoreResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.PutStoreResponse{Header: h}, nil
	}
	if req.GetStore() == nil {
		return nil, status.Error(codes.InvalidArgument, "invalid put store: no store given")
	}
	if h := v.tombstone(req.Store.GetId()); h != nil {
		return &pb.PutStoreResponse{Header: h}, nil
	}
	if err := v.s.refuseDuplicate(ctx, req.Store); err != nil {
		return &pb.PutStoreResponse{Header: v.errorHeader(pb.ErrorType_DUPLICATE_STORE, "%v", err)},
			nil
	}
	incarnation, err := v.s.cluster.PutStore(req.Store, req.Rebuild, func(m *metapb.Store) error {
		return v.s.saveStore(ctx, m)
	})
	switch {
	case errors.Is(err, ErrOldCopy):
		return &pb.PutStoreResponse{Header: v.errorHeader(pb.ErrorType_OLD_COPY, "%v", err)}, nil
	case err != nil:
		return nil, rpcErr(err)
	}
	v.s.callbacks.start(req.Store)
	return &pb.PutStoreResponse{Header: v.header(), Incarnation: incarnation}, nil
}

func (v *service) tombstone(storeID uint64) *pb.ResponseHeader {
	if s := v.s.cluster.Core().Store(storeID); s != nil && s.IsTombstone() {
		return v.errorHeader(pb.ErrorType_STORE_TOMBSTONE,
			"store %d is tombstone: it was removed for good", storeID)
	}
	return nil
}

func (v *service) GetAllStores(
	_ context.Context, req *pb.GetAllStoresRequest,
) (*pb.GetAllStoresResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetAllStoresResponse{Header: h}, nil
	}
	resp := &pb.GetAllStoresResponse{Header: v.header()}
	for _, s := range v.s.cluster.Core().Stores() {
		if !(req.GetExcludeTombstoneStores() && s.IsTombstone()) {
			resp.Stores = append(resp.Stores, storeProto(s))
		}
	}
	return resp, nil
}

func (v *service) StoreHeartbeat(
	ctx context.Context, req *pb.StoreHeartbeatRequest,
) (*pb.StoreHeartbeatResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if req.GetStats() == nil {
		return nil, status.Error(codes.InvalidArgument, "invalid store heartbeat: no stats given")
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.StoreHeartbeatResponse{Header: h}, nil
	}
	if h := v.tombstone(req.Stats.StoreId); h != nil {
		return &pb.StoreHeartbeatResponse{Header: h}, nil
	}
	err := v.s.cluster.HandleStoreHeartbeat(req.Stats)
	if errors.Is(err, ErrDuplicateStore) {
		return &pb.StoreHeartbeatResponse{
			Header: v.errorHeader(pb.ErrorType_DUPLICATE_STORE, "%v", err),
		}, nil
	}
	if err != nil {
		return nil,
			status.Errorf(codes.Unknown, "invalid store ID %d, not found", req.Stats.StoreId)
	}
	v.s.metrics.storeHeartbeats.Add(1)
	return &pb.StoreHeartbeatResponse{Header: v.header(), Features: uint64(v.s.agreeFeatures(ctx))},
		nil
}

// lockedStream lets the handler and the command queue send on one stream.
type lockedStream struct {
	mu sync.Mutex
	pb.Scheduler_RegionHeartbeatServer
}

func (l *lockedStream) Send(resp *pb.RegionHeartbeatResponse) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Scheduler_RegionHeartbeatServer.Send(resp)
}

func (v *service) RegionHeartbeat(raw pb.Scheduler_RegionHeartbeatServer) error {
	if v.s.leadership() == nil {
		return v.s.forward.regionHeartbeat(raw)
	}
	stream := &lockedStream{Scheduler_RegionHeartbeatServer: raw}
	ctx, cancel := context.WithCancel(raw.Context())
	defer cancel()
	defer v.s.streams.unbind(stream)

	// A deposed leader closes its streams itself, so that stores look for the new one at once.
	return v.whileLeading(func() error { return v.receiveHeartbeats(ctx, stream) })
}

func (v *service) receiveHeartbeats(ctx context.Context, stream *lockedStream) error {
	var bound uint64
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := v.validate(req.GetHeader()); err != nil {
			return err
		}
		if h := v.notBootstrapped(); h != nil {
			return stream.Send(&pb.RegionHeartbeatResponse{Header: h})
		}
		if err := v.heartbeat(ctx, stream, req, &bound); err != nil {
			return err
		}
	}
}

// heartbeat handles one report. Only a broken stream is an error: a bad report is answered.
func (v *service) heartbeat(
	ctx context.Context, stream *lockedStream, req *pb.RegionHeartbeatRequest, bound *uint64,
) error {
	store := req.GetLeader().GetStoreId()
	if req.GetLeader() == nil {
		v.s.cluster.stats.invalid.Add(1)
		return nil
	}
	if store != *bound {
		s := v.s.cluster.Core().Store(store)
		switch {
		case s == nil:
			return v.refuse(stream, req, pb.ErrorType_UNKNOWN,
				fmt.Sprintf("store %d is not registered", store))
		case s.IsTombstone():
			return v.refuse(stream, req, pb.ErrorType_STORE_TOMBSTONE,
				fmt.Sprintf("store %d is tombstone", store))
		}
		v.s.streams.bind(ctx, store, stream)
		v.s.cluster.heard(s)
		*bound = store
	}
	err := v.s.cluster.HandleRegionHeartbeat(req)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, core.ErrStale):
		v.s.logger.Debug("stale region heartbeat", zap.Error(err))
		return nil
	default:
		return v.refuse(stream, req, pb.ErrorType_UNKNOWN, err.Error())
	}
}

func (v *service) refuse(
	stream *lockedStream, req *pb.RegionHeartbeatRequest, t pb.ErrorType, msg string,
) error {
	return stream.Send(&pb.RegionHeartbeatResponse{
		Header: v.errorHeader(t, "%s", msg), RegionId: req.GetRegion().GetId(),
		RegionEpoch: req.GetRegion().GetRegionEpoch(), TargetPeer: req.GetLeader(),
	})
}

func (v *service) regionResponse(r *core.RegionInfo) *pb.GetRegionResponse {
	resp := &pb.GetRegionResponse{Header: v.header()}
	fillRegion(resp, r)
	return resp
}

func fillRegion(resp *pb.GetRegionResponse, r *core.RegionInfo) {
	if r != nil {
		resp.Region, resp.Leader = r.Meta(), r.LeaderProto()
		resp.PendingPeers, resp.DownPeers = r.PendingProto(), r.DownProto()
	}
}

func (v *service) lookup(
	h *pb.RequestHeader, find func() *core.RegionInfo,
) (*pb.GetRegionResponse, error) {
	if err := v.validate(h); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetRegionResponse{Header: h}, nil
	}
	return v.regionResponse(find()), nil
}

func (v *service) GetRegion(
	_ context.Context, req *pb.GetRegionRequest,
) (*pb.GetRegionResponse, error) {
	return v.lookup(req.GetHeader(), func() *core.RegionInfo {
		return v.s.cluster.Core().RegionByKey(req.GetRegionKey())
	})
}

// maxLookups bounds the keys of one GetRegions request.
const maxLookups = 1024

func (v *service) GetRegions(
	_ context.Context, req *pb.GetRegionsRequest,
) (*pb.GetRegionsResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if len(req.GetRegionKeys()) > maxLookups {
		return nil,
			status.Errorf(codes.InvalidArgument, "invalid get regions: %d keys, at most %d",
				len(req.RegionKeys), maxLookups)
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetRegionsResponse{Header: h}, nil
	}
	resp := &pb.GetRegionsResponse{
		Header: v.header(), Regions: make([]*pb.GetRegionResponse, len(req.RegionKeys)),
	}
	answers := make([]pb.GetRegionResponse, len(req.RegionKeys))
	for i, key := range req.RegionKeys {
		resp.Regions[i] = &answers[i]
		fillRegion(&answers[i], v.s.cluster.Core().RegionByKey(key))
	}
	return resp, nil
}

func (v *service) GetPrevRegion(
	_ context.Context, req *pb.GetRegionRequest,
) (*pb.GetRegionResponse, error) {
	return v.lookup(req.GetHeader(), func() *core.RegionInfo {
		return v.s.cluster.Core().PrevRegion(req.GetRegionKey())
	})
}

func (v *service) GetRegionByID(
	_ context.Context, req *pb.GetRegionByIDRequest,
) (*pb.GetRegionResponse, error) {
	return v.lookup(req.GetHeader(), func() *core.RegionInfo {
		return v.s.cluster.Core().Region(req.GetRegionId())
	})
}

func (v *service) ScanRegions(
	_ context.Context, req *pb.ScanRegionsRequest,
) (*pb.ScanRegionsResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.ScanRegionsResponse{Header: h}, nil
	}
	resp := &pb.ScanRegionsResponse{Header: v.header()}
	for _, r := range v.s.cluster.Core().ScanRegions(req.GetStartKey(), req.GetEndKey(),
		int(req.GetLimit())) {
		leader := r.LeaderProto()
		if leader == nil {
			leader = &metapb.Peer{}
		}
		resp.Regions, resp.Leaders = append(resp.Regions, r.Meta()), append(resp.Leaders, leader)
	}
	return resp, nil
}

func (v *service) AskSplit(
	ctx context.Context, req *pb.AskSplitRequest,
) (*pb.AskSplitResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.AskSplitResponse{Header: h}, nil
	}
	m := req.GetRegion()
	if m == nil {
		return nil, status.Error(codes.InvalidArgument, "invalid ask split: no region given")
	}
	known := v.s.cluster.Core().RegionByKey(m.GetStartKey())
	if known == nil {
		return nil, status.Errorf(codes.Unknown, "ask split: region %d is not known yet", m.GetId())
	}
	e := m.GetRegionEpoch()
	if e.GetVersion() < known.Version() || e.GetConfVer() < known.ConfVer() {
		return nil,
			status.Errorf(codes.Unknown, "ask split: region %d has epoch v%d/c%d, known is v%d/c%d",
				m.GetId(), e.GetVersion(), e.GetConfVer(), known.Version(), known.ConfVer())
	}
	n := uint64(len(m.GetPeers()))
	first, err := v.s.ids.AllocN(ctx, n+1)
	if err != nil {
		return nil, rpcErr(err)
	}
	resp := &pb.AskSplitResponse{Header: v.header(), NewRegionId: first}
	for i := range n {
		resp.NewPeerIds = append(resp.NewPeerIds, first+1+i)
	}
	return resp, nil
}

// ReportSplit installs both halves at once, so that routing has no hole until their heartbeats. The
// left half keeps the parent's id and stays led by the same store.
func (v *service) ReportSplit(
	_ context.Context, req *pb.ReportSplitRequest,
) (*pb.ReportSplitResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.ReportSplitResponse{Header: h}, nil
	}
	if err := v.s.cluster.ReportSplit(req.GetLeft(), req.GetRight()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &pb.ReportSplitResponse{Header: v.header()}, nil
}

func (v *service) GetClusterConfig(
	_ context.Context, req *pb.GetClusterConfigRequest,
) (*pb.GetClusterConfigResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetClusterConfigResponse{Header: h}, nil
	}
	v.s.leaderMu.RLock()
	defer v.s.leaderMu.RUnlock()
	return &pb.GetClusterConfigResponse{Header: v.header(), Cluster: v.s.leaderMu.meta}, nil
}

func (v *service) PutClusterConfig(
	ctx context.Context, req *pb.PutClusterConfigRequest,
) (*pb.PutClusterConfigResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.PutClusterConfigResponse{Header: h}, nil
	}
	if err := v.s.putClusterConfig(ctx, req.GetCluster()); err != nil {
		return nil, rpcErr(err)
	}
	return &pb.PutClusterConfigResponse{Header: v.header()}, nil
}

func (v *service) ScatterRegion(
	_ context.Context, req *pb.ScatterRegionRequest,
) (*pb.ScatterRegionResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	// Best effort by contract: old clients expect success whatever happens.
	if _, err := v.s.cluster.Scatter(req.GetRegionId(), "asked for by a client"); err != nil {
		v.s.logger.Debug("scatter refused", log.RegionID(req.GetRegionId()), zap.Error(err))
	}
	return &pb.ScatterRegionResponse{Header: v.header()}, nil
}

func (v *service) GetGCSafePoint(
	ctx context.Context, req *pb.GetGCSafePointRequest,
) (*pb.GetGCSafePointResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetGCSafePointResponse{Header: h}, nil
	}
	sp, _, err := v.s.gcSafePoint(ctx)
	if err != nil {
		return nil, rpcErr(err)
	}
	return &pb.GetGCSafePointResponse{Header: v.header(), SafePoint: sp}, nil
}

func (v *service) UpdateGCSafePoint(
	ctx context.Context, req *pb.UpdateGCSafePointRequest,
) (*pb.UpdateGCSafePointResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.UpdateGCSafePointResponse{Header: h}, nil
	}
	sp, err := safePoints{s: v.s}.AdvanceGC(ctx, req.GetSafePoint())
	if err != nil {
		return nil, err
	}
	return &pb.UpdateGCSafePointResponse{Header: v.header(), NewSafePoint: sp}, nil
}

func (v *service) GetOperator(
	_ context.Context, req *pb.GetOperatorRequest,
) (*pb.GetOperatorResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetOperatorResponse{Header: h}, nil
	}
	rec, ok := v.s.cluster.Controller().Find(req.GetRegionId())
	if !ok {
		return &pb.GetOperatorResponse{
			Header: v.errorHeader(pb.ErrorType_REGION_NOT_FOUND, "Not Found"),
		}, nil
	}
	return &pb.GetOperatorResponse{
		Header: v.header(), RegionId: rec.RegionID, Desc: []byte(rec.Desc),
		Kind: []byte(rec.Kind.String()), Status: operatorStatus(rec.Status),
	}, nil
}

func operatorStatus(s operator.Status) pb.OperatorStatus {
	switch s {
	case operator.Success:
		return pb.OperatorStatus_SUCCESS
	case operator.Timeout, operator.Expired:
		return pb.OperatorStatus_TIMEOUT
	case operator.Canceled:
		return pb.OperatorStatus_CANCEL
	case operator.Replaced:
		return pb.OperatorStatus_REPLACE
	default:
		return pb.OperatorStatus_RUNNING
	}
}

// bootstrap makes the first store and region known. A header is returned if it was refused.
func (s *Server) bootstrap(
	ctx context.Context, req *pb.BootstrapRequest,
) (*pb.ResponseHeader, error) {
	store := req.GetStore()
	if store.GetId() == 0 {
		return nil, status.Errorf(codes.Unknown, "invalid bootstrap: no store with an id given")
	}
	refuse := &pb.ResponseHeader{ClusterId: s.clusterID, Error: &pb.Error{
		Type: pb.ErrorType_ALREADY_BOOTSTRAPPED, Message: "cluster is already bootstrapped",
	}}
	if ok, by := s.bootstrapped(); ok {
		if by == store.Id {
			return nil, nil // its first answer was lost
		}
		return refuse, nil
	}
	if security.AnyHost(store.GetAddress()) {
		return nil,
			status.Errorf(codes.Unknown,
				"invalid bootstrap: nobody can reach store %d at %q; give the host that others "+
					"reach with --advertise-addr", store.Id, store.GetAddress())
	}
	if err := validateFirstRegion(req); err != nil {
		return nil, status.Error(codes.Unknown, err.Error())
	}
	fence, _, ok := s.fence()
	if !ok {
		return nil, errNotLeader
	}
	meta := &metapb.Cluster{
		Id: s.clusterID, MaxPeerCount: uint32(s.cluster.Settings().Replication.MaxReplicas), Mode: s.cfg.Mode,
	}
	first := *store
	first.State, first.LastHeartbeat = metapb.StoreState_Up, 0
	if first.Run != 0 {
		first.Incarnation++
	}
	metaValue, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	storeValue, err := first.Marshal()
	if err != nil {
		return nil, err
	}
	_, err = s.storage.Txn(ctx, []storage.Cond{fence, storage.RevisionIs(s.keys.Cluster(), 0)}, []storage.Op{
		storage.Put(s.keys.Cluster(), metaValue),
		storage.Put(s.keys.Store(first.Id), storeValue),
		storage.Put(s.keys.BootstrapTime(), storage.Uint64(uint64(time.Now().UnixNano()))),
		storage.Put(s.keys.BootstrapStore(), storage.Uint64(first.Id)),
		storage.Put(s.keys.Features(), storage.Uint64(first.Features)),
	})
	if errors.Is(err, storage.ErrConflict) {
		return nil, errNotLeader // or a concurrent bootstrap: the next try will tell
	}
	if err != nil {
		return nil, err
	}
	s.leaderMu.Lock()
	s.leaderMu.meta, s.leaderMu.bootstrapped, s.leaderMu.bootstrapper = meta, true, first.Id
	s.leaderMu.Unlock()
	s.cluster.Core().PutStore(core.NewStore(&first, time.Now()))
	s.cluster.features.Store(first.Features)
	if r := req.GetRegion(); r != nil {
		_, _ = s.cluster.Core().PutRegion(core.NewRegion(r, nil, core.WithSource(core.SourceReport)))
	}
	s.logger.Info("bootstrapped cluster", log.ClusterID(s.clusterID), log.StoreID(first.Id))
	s.cluster.events.add("bootstrapped", fmt.Sprintf("by store %d", first.Id))
	return nil, nil
}

func validateFirstRegion(req *pb.BootstrapRequest) error {
	r := req.GetRegion()
	if r == nil {
		return nil // stores of TinyKV do not send it
	}
	if len(r.StartKey) != 0 || len(r.EndKey) != 0 {
		return errors.New("invalid bootstrap: the first region must cover the whole key space")
	}
	if r.Id == 0 || len(r.Peers) != 1 || r.Peers[0].GetStoreId() != req.Store.Id ||
		r.Peers[0].GetId() == 0 {
		return fmt.Errorf(
			"invalid bootstrap: the first region needs an id and one peer on store %d",
			req.Store.Id)
	}
	return nil
}

func (s *Server) saveStore(ctx context.Context, m *metapb.Store) error {
	value, err := m.Marshal()
	if err != nil {
		return err
	}
	return s.write(ctx, storage.Put(s.keys.Store(m.Id), value))
}

func (s *Server) putClusterConfig(ctx context.Context, m *metapb.Cluster) error {
	if m == nil || m.MaxPeerCount == 0 {
		return status.Error(codes.InvalidArgument,
			"invalid cluster config: max_peer_count must be greater than 0")
	}
	s.leaderMu.RLock()
	mode := s.leaderMu.meta.GetMode() // it never changes
	s.leaderMu.RUnlock()
	stored := &metapb.Cluster{Id: s.clusterID, MaxPeerCount: m.MaxPeerCount, Mode: mode}
	value, err := stored.Marshal()
	if err != nil {
		return err
	}
	if err := s.write(ctx, storage.Put(s.keys.Cluster(), value)); err != nil {
		return err
	}
	s.leaderMu.Lock()
	s.leaderMu.meta = stored
	s.leaderMu.Unlock()
	s.applyMaxReplicas(int(stored.MaxPeerCount))
	return nil
}

func (s *Server) gcSafePoint(ctx context.Context) (uint64, int64, error) {
	kv, err := s.storage.Get(ctx, s.keys.GCSafePoint())
	if err != nil || kv.ModRevision == 0 {
		return 0, 0, err
	}
	sp, err := strconv.ParseUint(string(kv.Value), 16, 64)
	return sp, kv.ModRevision, err
}
