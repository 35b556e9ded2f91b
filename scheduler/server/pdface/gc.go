package pdface

import (
	"context"
	"math"
	"time"
	"unicode/utf8"

	"github.com/pingcap/kvproto/pkg/pdpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// SafePoints is the state of garbage collection: GC <= Txn <= every barrier that is set.
type SafePoints interface {
	// State reads everything.
	State(ctx context.Context) (GCState, error)
	// AdvanceTxn raises the point below which no transaction may begin, up to the first barrier,
	// and returns the old and the new one, with the barrier that stopped it.
	AdvanceTxn(
		ctx context.Context,
		target uint64,
	) (before, after uint64, blocker *Barrier, err error)
	// AdvanceGC raises the point below which old versions may be removed, up to the first barrier.
	// It never goes back.
	AdvanceGC(ctx context.Context, target uint64) (uint64, error)
	// SetBarrier sets or moves a barrier.
	SetBarrier(ctx context.Context, b Barrier) error
	// DeleteBarrier removes a barrier and returns it; nil if there was none.
	DeleteBarrier(ctx context.Context, id string) (*Barrier, error)
}

// GCState is what SafePoints holds.
type GCState struct {
	Txn, GC  uint64
	Barriers []Barrier
}

// Barrier keeps the safe points at TS or below until it expires; a zero time is never.
type Barrier struct {
	ID      string    `json:"id"`
	TS      uint64    `json:"ts"`
	Expires time.Time `json:"expires"`
}

// TTL is how many seconds a barrier has left.
func (b *Barrier) TTL(now time.Time) int64 {
	if b.Expires.IsZero() {
		return math.MaxInt64
	}
	return max(0, int64(b.Expires.Sub(now)/time.Second))
}

// NewBarrier makes a barrier that lasts ttl seconds; one that would outlast time itself never
// expires.
func NewBarrier(id string, ts uint64, ttl int64, now time.Time) Barrier {
	b := Barrier{ID: id, TS: ts}
	if ttl < math.MaxInt64/int64(time.Second)/2 {
		b.Expires = now.Add(time.Duration(ttl) * time.Second)
	}
	return b
}

// gcWorker is the id under which old clients keep the transactions' safe point itself.
const gcWorker = "gc_worker"

// errBarrierID: barriers are kept as JSON, which would change the id, so that nobody could delete
// the barrier by it.
var errBarrierID = status.Error(codes.InvalidArgument, "the id of a barrier must be UTF-8")

func (b *Barrier) proto(now time.Time) *pdpb.GCBarrierInfo {
	if b == nil {
		return nil
	}
	return &pdpb.GCBarrierInfo{BarrierId: b.ID, BarrierTs: b.TS, TtlSeconds: b.TTL(now)}
}

// gcScope refuses keyspaces with a state of their own.
func (f *Face) gcScope(h *pdpb.RequestHeader, scope *pdpb.KeyspaceScope) error {
	if err := f.back.Check(h.GetClusterId()); err != nil {
		return err
	}
	id, ok := scope.GetKeyspace().(*pdpb.KeyspaceScope_KeyspaceId)
	if scope.GetKeyspace() != nil &&
		(!ok || id.KeyspaceId != 0 && id.KeyspaceId != math.MaxUint32) {
		return status.Error(codes.InvalidArgument, "there is one keyspace only, "+defaultKeyspace)
	}
	return nil
}

// GetGCSafePoint implements pdpb.PDServer.
func (f *Face) GetGCSafePoint(
	ctx context.Context,
	req *pdpb.GetGCSafePointRequest,
) (*pdpb.GetGCSafePointResponse, error) {
	if err := f.gcScope(req.GetHeader(), nil); err != nil {
		return nil, err
	}
	st, err := f.back.GC().State(ctx)
	if err != nil {
		return nil, err
	}
	return &pdpb.GetGCSafePointResponse{Header: f.header(), SafePoint: st.GC}, nil
}

// UpdateGCSafePoint implements pdpb.PDServer.
func (f *Face) UpdateGCSafePoint(
	ctx context.Context,
	req *pdpb.UpdateGCSafePointRequest,
) (*pdpb.UpdateGCSafePointResponse, error) {
	if err := f.gcScope(req.GetHeader(), nil); err != nil {
		return nil, err
	}
	now, err := f.back.GC().AdvanceGC(ctx, req.GetSafePoint())
	if err != nil {
		return nil, err
	}
	return &pdpb.UpdateGCSafePointResponse{Header: f.header(), NewSafePoint: now}, nil
}

// AdvanceGCSafePoint implements pdpb.PDServer.
func (f *Face) AdvanceGCSafePoint(
	ctx context.Context,
	req *pdpb.AdvanceGCSafePointRequest,
) (*pdpb.AdvanceGCSafePointResponse, error) {
	if err := f.gcScope(req.GetHeader(), req.GetKeyspaceScope()); err != nil {
		return nil, err
	}
	before, err := f.back.GC().State(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetTarget() < before.GC {
		return nil, status.Errorf(
			codes.FailedPrecondition,
			"trying to update GC safe point to a smaller value, current: %d, target: %d",
			before.GC,
			req.GetTarget(),
		)
	}
	now, err := f.back.GC().AdvanceGC(ctx, req.GetTarget())
	if err != nil {
		return nil, err
	}
	return &pdpb.AdvanceGCSafePointResponse{
		Header:         f.header(),
		OldGcSafePoint: before.GC,
		NewGcSafePoint: now,
	}, nil
}

// AdvanceTxnSafePoint implements pdpb.PDServer.
func (f *Face) AdvanceTxnSafePoint(
	ctx context.Context,
	req *pdpb.AdvanceTxnSafePointRequest,
) (*pdpb.AdvanceTxnSafePointResponse, error) {
	if err := f.gcScope(req.GetHeader(), req.GetKeyspaceScope()); err != nil {
		return nil, err
	}
	before, after, blocker, err := f.back.GC().AdvanceTxn(ctx, req.GetTarget())
	if err != nil {
		return nil, err
	}
	resp := &pdpb.AdvanceTxnSafePointResponse{
		Header:          f.header(),
		OldTxnSafePoint: before,
		NewTxnSafePoint: after,
	}
	if blocker != nil {
		resp.BlockerDescription = "barrier " + blocker.ID
	}
	return resp, nil
}

// UpdateServiceGCSafePoint implements pdpb.PDServer. The id of the garbage collector stands for the
// transactions' safe point, every other one for a barrier. A safe point behind what is given up
// already is not set; the answer tells.
func (f *Face) UpdateServiceGCSafePoint(
	ctx context.Context,
	req *pdpb.UpdateServiceGCSafePointRequest,
) (*pdpb.UpdateServiceGCSafePointResponse, error) {
	if err := f.gcScope(req.GetHeader(), nil); err != nil {
		return nil, err
	}
	gc, id, ttl := f.back.GC(), string(req.GetServiceId()), req.GetTTL()
	var err error
	switch {
	case id == gcWorker && ttl != math.MaxInt64:
		err = status.Errorf(
			codes.InvalidArgument,
			"TTL of %s's service safe point must be infinity",
			gcWorker,
		)
	case id == gcWorker:
		_, _, _, err = gc.AdvanceTxn(ctx, req.GetSafePoint())
	case ttl <= 0:
		_, err = gc.DeleteBarrier(ctx, id)
	case !utf8.ValidString(id):
		err = errBarrierID
	default:
		err = gc.SetBarrier(ctx, NewBarrier(id, req.GetSafePoint(), ttl, time.Now()))
	}
	if err != nil &&
		status.Code(err) != codes.FailedPrecondition { // which is a safe point that lies behind
		return nil, err
	}
	st, err := gc.State(ctx)
	if err != nil {
		return nil, err
	}
	least := Barrier{ID: gcWorker, TS: st.Txn}
	for _, b := range st.Barriers {
		if b.TS < least.TS {
			least = b
		}
	}
	return &pdpb.UpdateServiceGCSafePointResponse{
		Header: f.header(), ServiceId: []byte(least.ID), TTL: least.TTL(time.Now()),
		MinSafePoint: least.TS,
	}, nil
}

// SetGCBarrier implements pdpb.PDServer.
func (f *Face) SetGCBarrier(
	ctx context.Context,
	req *pdpb.SetGCBarrierRequest,
) (*pdpb.SetGCBarrierResponse, error) {
	if err := f.gcScope(req.GetHeader(), req.GetKeyspaceScope()); err != nil {
		return nil, err
	}
	now := time.Now()
	b, err := f.setBarrier(ctx, req.GetBarrierId(), req.GetBarrierTs(), req.GetTtlSeconds(), now)
	if err != nil {
		return nil, err
	}
	return &pdpb.SetGCBarrierResponse{Header: f.header(), NewBarrierInfo: b.proto(now)}, nil
}

func (f *Face) setBarrier(
	ctx context.Context,
	id string,
	ts uint64,
	ttl int64,
	now time.Time,
) (*Barrier, error) {
	if id == "" || id == gcWorker || ttl <= 0 {
		return nil, status.Errorf(
			codes.InvalidArgument,
			"invalid barrier %q with a TTL of %d seconds",
			id,
			ttl,
		)
	}
	if !utf8.ValidString(id) {
		return nil, errBarrierID
	}
	b := NewBarrier(id, ts, ttl, now)
	return &b, f.back.GC().SetBarrier(ctx, b)
}

// DeleteGCBarrier implements pdpb.PDServer.
func (f *Face) DeleteGCBarrier(
	ctx context.Context,
	req *pdpb.DeleteGCBarrierRequest,
) (*pdpb.DeleteGCBarrierResponse, error) {
	if err := f.gcScope(req.GetHeader(), req.GetKeyspaceScope()); err != nil {
		return nil, err
	}
	b, err := f.back.GC().DeleteBarrier(ctx, req.GetBarrierId())
	if err != nil {
		return nil, err
	}
	return &pdpb.DeleteGCBarrierResponse{
		Header:             f.header(),
		DeletedBarrierInfo: b.proto(time.Now()),
	}, nil
}

// GetGCState implements pdpb.PDServer.
func (f *Face) GetGCState(
	ctx context.Context,
	req *pdpb.GetGCStateRequest,
) (*pdpb.GetGCStateResponse, error) {
	if err := f.gcScope(req.GetHeader(), req.GetKeyspaceScope()); err != nil {
		return nil, err
	}
	st, err := f.gcState(ctx, req.GetExcludeGcBarriers())
	if err != nil {
		return nil, err
	}
	resp := &pdpb.GetGCStateResponse{Header: f.header(), GcState: st}
	if req.GetIncludeGlobalGcBarriers() {
		resp.GlobalGcBarriers = &pdpb.GlobalGCBarriersInfo{}
	}
	return resp, nil
}

// GetAllKeyspacesGCStates implements pdpb.PDServer.
func (f *Face) GetAllKeyspacesGCStates(
	ctx context.Context,
	req *pdpb.GetAllKeyspacesGCStatesRequest,
) (*pdpb.GetAllKeyspacesGCStatesResponse, error) {
	if err := f.gcScope(req.GetHeader(), nil); err != nil {
		return nil, err
	}
	st, err := f.gcState(ctx, req.GetExcludeGcBarriers())
	if err != nil {
		return nil, err
	}
	return &pdpb.GetAllKeyspacesGCStatesResponse{
		Header:   f.header(),
		GcStates: []*pdpb.GCState{st},
	}, nil
}

func (f *Face) gcState(ctx context.Context, bare bool) (*pdpb.GCState, error) {
	st, err := f.back.GC().State(ctx)
	if err != nil {
		return nil, err
	}
	out := &pdpb.GCState{
		KeyspaceScope: &pdpb.KeyspaceScope{
			Keyspace: &pdpb.KeyspaceScope_KeyspaceId{KeyspaceId: math.MaxUint32},
		},
		TxnSafePoint: st.Txn, GcSafePoint: st.GC,
	}
	if !bare {
		now := time.Now()
		for _, b := range st.Barriers {
			out.GcBarriers = append(out.GcBarriers, b.proto(now))
		}
	}
	return out, nil
}
