package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/pdface"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// maxBarriers bounds the barriers, which are one value of the storage.
const maxBarriers = 1024

// safePoints keeps the state of garbage collection in the storage. Each change compares the
// revisions that it was decided on, so that two at once cannot break the order GC <= Txn <= every
// barrier.
//
// The safe point of transactions lies where TiKV's clients read it through etcd's API, in decimal
// as they expect it. The barriers are one JSON array. Part of the on-disk format; do not change.
type safePoints struct {
	s *Server
	// client: it is a client of PD's that asks, and not a store of this cluster.
	client bool
}

// minAge is how far below the time of now every safe point stays: a client whose clock is ahead
// must not reach the transactions that are under way.
const minAge = time.Minute

// latestSafePoint is the largest safe point that is accepted.
func latestSafePoint() uint64 { return uint64(time.Now().Add(-minAge).UnixMilli()) << 18 }

// noteClient remembers that a client takes care of the safe points, so that the stores need not.
func (p safePoints) noteClient(ctx context.Context) error {
	if !p.client {
		return nil
	}
	last, rev, err := p.clientAt(ctx)
	if err != nil || time.Since(last).Abs() < time.Minute {
		return err
	}
	fence, _, ok := p.s.fence()
	if !ok {
		return errNotLeader
	}
	_, err = p.s.storage.Txn(ctx,
		[]storage.Cond{fence, storage.RevisionIs(p.s.keys.GCClient(), rev)},
		[]storage.Op{
			storage.Put(p.s.keys.GCClient(), []byte(strconv.FormatInt(time.Now().UnixMilli(), 10))),
		})
	if errors.Is(err, storage.ErrConflict) {
		return nil // another one has noted it just now
	}
	return rpcErr(err)
}

// clientAt is when a client has raised a safe point; the zero time is never.
func (p safePoints) clientAt(ctx context.Context) (at time.Time, rev int64, err error) {
	kv, err := p.s.storage.Get(ctx, p.s.keys.GCClient())
	if err != nil || kv.ModRevision == 0 {
		return time.Time{}, 0, rpcErr(err)
	}
	ms, err := strconv.ParseInt(string(kv.Value), 10, 64)
	return time.UnixMilli(ms), kv.ModRevision, err
}

// gcRead is the state with the revisions that it was read at.
type gcRead struct {
	pdface.GCState
	gcRev, txnRev, barrierRev int64
}

func (p safePoints) read(ctx context.Context) (st gcRead, err error) {
	if st.GC, st.gcRev, err = p.s.gcSafePoint(ctx); err != nil {
		return st, rpcErr(err)
	}
	txn, err := p.s.storage.Get(ctx, safePointKey)
	if err != nil {
		return st, rpcErr(err)
	}
	if st.txnRev = txn.ModRevision; st.txnRev != 0 {
		if st.Txn, err = strconv.ParseUint(string(txn.Value), 10, 64); err != nil {
			return st, fmt.Errorf("safe point of transactions: %w", err)
		}
	}
	st.Txn = max(st.Txn, st.GC) // clients without barriers raise only GC
	kv, err := p.s.storage.Get(ctx, p.s.keys.GCBarriers())
	if err != nil {
		return st, rpcErr(err)
	}
	if st.barrierRev = kv.ModRevision; st.barrierRev != 0 {
		if err := json.Unmarshal(kv.Value, &st.Barriers); err != nil {
			return st, fmt.Errorf("barriers of garbage collection: %w", err)
		}
	}
	now := time.Now()
	st.Barriers = slices.DeleteFunc(
		st.Barriers,
		func(b pdface.Barrier) bool { return b.TTL(now) == 0 },
	)
	return st, nil
}

// State implements pdface.SafePoints.
func (p safePoints) State(ctx context.Context) (pdface.GCState, error) {
	st, err := p.read(ctx)
	return st.GCState, err
}

// change reads the state, lets decide say what to write, and writes it if nothing has changed
// meanwhile.
func (p safePoints) change(ctx context.Context, decide func(*gcRead) ([]storage.Op, error)) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for {
		st, err := p.read(ctx)
		if err != nil {
			return err
		}
		ops, err := decide(&st)
		if err != nil || len(ops) == 0 {
			return err
		}
		fence, _, ok := p.s.fence()
		if !ok {
			return errNotLeader
		}
		_, err = p.s.storage.Txn(ctx, []storage.Cond{
			fence, storage.RevisionIs(p.s.keys.GCSafePoint(), st.gcRev),
			storage.RevisionIs(safePointKey, st.txnRev),
			storage.RevisionIs(p.s.keys.GCBarriers(), st.barrierRev),
		}, ops)
		if !errors.Is(err, storage.ErrConflict) {
			return rpcErr(err)
		}
	}
}

// AdvanceTxn implements pdface.SafePoints.
func (p safePoints) AdvanceTxn(
	ctx context.Context,
	target uint64,
) (before, after uint64, blocker *pdface.Barrier, err error) {
	if err := p.noteClient(ctx); err != nil {
		return 0, 0, nil, err
	}
	err = p.change(ctx, func(st *gcRead) ([]storage.Op, error) {
		before, after, blocker = st.Txn, max(st.Txn, min(target, latestSafePoint())), nil
		if target < before {
			return nil, status.Errorf(
				codes.FailedPrecondition,
				"trying to update txn safe point to a smaller value, current: %d, target: %d",
				before,
				target,
			)
		}
		for i := range st.Barriers {
			if b := &st.Barriers[i]; b.TS < after {
				after, blocker = max(b.TS, before), b
			}
		}
		if after == before {
			return nil, nil
		}
		return []storage.Op{storage.Put(safePointKey, []byte(strconv.FormatUint(after, 10)))}, nil
	})
	return before, after, blocker, err
}

// AdvanceGC implements pdface.SafePoints.
func (p safePoints) AdvanceGC(ctx context.Context, target uint64) (uint64, error) {
	if err := p.noteClient(ctx); err != nil {
		return 0, err
	}
	now := uint64(0)
	err := p.change(ctx, func(st *gcRead) ([]storage.Op, error) {
		now = max(st.GC, min(target, latestSafePoint()))
		for i := range st.Barriers {
			now = max(st.GC, min(now, st.Barriers[i].TS))
		}
		if now == st.GC {
			return nil, nil
		}
		return []storage.Op{
			storage.Put(p.s.keys.GCSafePoint(), []byte(strconv.FormatUint(now, 16))),
		}, nil
	})
	return now, err
}

// advance is for stores: it raises the safe point of transactions up to the first barrier, and that
// of garbage up to the former.
func (p safePoints) advance(ctx context.Context, txn, gc uint64) (pdface.GCState, error) {
	st, err := p.State(ctx)
	if err != nil {
		return st, err
	}
	if txn > st.Txn {
		_, st.Txn, _, err = p.AdvanceTxn(ctx, txn)
		// which another one has raised further
		if err != nil && status.Code(err) != codes.FailedPrecondition {
			return st, err
		}
	}
	if gc = min(gc, st.Txn); gc > st.GC {
		if _, err := p.AdvanceGC(ctx, gc); err != nil {
			return st, err
		}
	}
	return p.State(ctx)
}

// SetBarrier implements pdface.SafePoints.
func (p safePoints) SetBarrier(ctx context.Context, b pdface.Barrier) error {
	return p.change(ctx, func(st *gcRead) ([]storage.Op, error) {
		if b.TS < st.Txn {
			return nil, status.Errorf(
				codes.FailedPrecondition,
				"trying to set a GC barrier on ts %d, which is already behind the txn safe point %d",
				b.TS,
				st.Txn,
			)
		}
		list := slices.DeleteFunc(st.Barriers, func(o pdface.Barrier) bool { return o.ID == b.ID })
		if len(list) >= maxBarriers {
			return nil, status.Errorf(
				codes.ResourceExhausted,
				"there are %d GC barriers already",
				len(list),
			)
		}
		return p.putBarriers(append(list, b))
	})
}

// DeleteBarrier implements pdface.SafePoints.
func (p safePoints) DeleteBarrier(
	ctx context.Context,
	id string,
) (deleted *pdface.Barrier, err error) {
	err = p.change(ctx, func(st *gcRead) ([]storage.Op, error) {
		deleted = nil
		for i, b := range st.Barriers {
			if b.ID == id {
				deleted = &b
				return p.putBarriers(slices.Delete(st.Barriers, i, i+1))
			}
		}
		return nil, nil
	})
	return deleted, err
}

func (p safePoints) putBarriers(list []pdface.Barrier) ([]storage.Op, error) {
	data, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	return []storage.Op{storage.Put(p.s.keys.GCBarriers(), data)}, nil
}

// GetGCState implements schedulerpb.SchedulerServer.
func (v *service) GetGCState(
	ctx context.Context, req *pb.GetGCStateRequest,
) (*pb.GetGCStateResponse, error) {
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
		resp.Barriers = append(resp.Barriers,
			&pb.GCBarrier{Id: b.ID, Ts: b.TS, TtlSeconds: b.TTL(now)})
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
	return &pb.AdvanceSafePointsResponse{
		Header: v.header(), TxnSafePoint: st.Txn, GcSafePoint: st.GC,
	}, nil
}
