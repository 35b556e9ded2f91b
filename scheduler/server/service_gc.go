package server

import (
	"context"
	"time"

	pb "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// GetGCState implements schedulerpb.SchedulerServer.
func (v *service) GetGCState(ctx context.Context, req *pb.GetGCStateRequest) (*pb.GetGCStateResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.GetGCStateResponse{Header: h}, nil
	}
	p := safePoints{s: v.s}
	st, err := p.State(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.GetGCStateResponse{Header: v.header(), TxnSafePoint: st.Txn, GcSafePoint: st.GC}
	now := time.Now()
	for i := range st.Barriers {
		b := &st.Barriers[i]
		resp.Barriers = append(resp.Barriers, &pb.GCBarrier{Id: b.ID, Ts: b.TS, TtlSeconds: b.TTL(now)})
	}
	at, _, err := p.clientAt(ctx)
	if err != nil {
		return nil, rpcErr(err)
	}
	if resp.ByClient = !at.IsZero(); resp.ByClient {
		resp.ClientAgoMs = uint64(max(0, now.Sub(at).Milliseconds()))
	}
	return resp, nil
}

// AdvanceSafePoints implements schedulerpb.SchedulerServer.
func (v *service) AdvanceSafePoints(
	ctx context.Context, req *pb.AdvanceSafePointsRequest,
) (*pb.AdvanceSafePointsResponse, error) {
	if err := v.validate(req.GetHeader()); err != nil {
		return nil, err
	}
	if h := v.notBootstrapped(); h != nil {
		return &pb.AdvanceSafePointsResponse{Header: h}, nil
	}
	st, err := safePoints{s: v.s}.advance(ctx, req.GetTxnTarget(), req.GetGcTarget())
	if err != nil {
		return nil, err
	}
	return &pb.AdvanceSafePointsResponse{Header: v.header(), TxnSafePoint: st.Txn, GcSafePoint: st.GC}, nil
}
