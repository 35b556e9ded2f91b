package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// A client may be cut off from a store that the other stores reach: they let it lead, and rightly
// so. Such a store is taken for lost from the first request that got no answer on. While it is
// lost, and another store says that it leads a region, requests for the region go to that other
// store, which passes them on (tinykvpb.Forward), one hop. Meanwhile the lost store is probed; the
// first answer ends the detour. A store that is only slow answers the first probe.

const (
	// probePause is between two probes of a lost store, and how long one may take.
	probePause = time.Second
	// maxProbes bounds them: the store may be gone for good. The next request that gets no answer
	// begins anew.
	maxProbes = 60
)

// reach knows which stores are lost.
type reach struct {
	// count is how many are lost: as a rule none, so that requests need not look.
	count atomic.Int32
	mu    struct {
		sync.Mutex
		lost map[uint64]struct{}
	}
}

// isLost tells whether a store got a request and did not answer lately.
func (r *reach) isLost(storeID uint64) bool {
	if r.count.Load() == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, lost := r.mu.lost[storeID]
	return lost
}

// set takes a store for lost or not; it tells whether that is new.
func (r *reach) set(storeID uint64, lost bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, was := r.mu.lost[storeID]; was == lost {
		return false
	}
	if r.mu.lost == nil {
		r.mu.lost = map[uint64]struct{}{}
	}
	if lost {
		r.mu.lost[storeID] = struct{}{}
	} else {
		delete(r.mu.lost, storeID)
	}
	r.count.Store(int32(len(r.mu.lost)))
	return true
}

// route is how a region's leader is asked: directly, or by way of another store.
func (c *Client) route(ctx context.Context, r *cachedRegion) (s stub, forwarded bool, err error) {
	if r.via != 0 && c.pool.reach.isLost(r.leader.StoreId) {
		if s, err = c.pool.stub(ctx, r.via); err == nil {
			s.TinyKvClient = forwardStub{TinyKvClient: s.TinyKvClient, storeID: r.leader.StoreId}
		}
		return s, true, err
	}
	s, err = c.pool.stub(ctx, r.leader.StoreId)
	return s, false, err
}

// wayTo is a store to go by to another one, 0 for directly. The region says who answered last.
func (p *pool) wayTo(storeID uint64, r *cachedRegion) uint64 {
	if !p.reach.isLost(storeID) {
		return 0
	}
	if r.via != 0 && p.reach.isLost(r.leader.StoreId) {
		return r.via
	}
	return r.leader.StoreId
}

// lost notes that a store did not answer, and has it probed until it does.
func (p *pool) lost(storeID uint64, err error) {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
	default:
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !p.reach.set(storeID, true) {
		return
	}
	p.beginLocked()
	p.refreshes.Add(1)
	// Ends when the store answers, after the last probe, or when the pool is closed.
	go func() {
		defer p.refreshes.Done()
		defer p.reach.set(storeID, false)
		for range maxProbes {
			if !p.probe(storeID) || !sleep(p.ctx, probePause) {
				return
			}
		}
	}()
}

// probe asks a lost store for a sign of life; true if it must be asked again.
func (p *pool) probe(storeID uint64) (again bool) {
	ctx, cancel := context.WithTimeout(p.ctx, probePause)
	defer cancel()
	if p.opts.Dial != nil {
		s, err := p.opts.Dial(ctx, storeID)
		if err == nil {
			// Refused as malformed, by the store that answers.
			_, err = s.RawGet(ctx, &kvrpcpb.RawGetRequest{})
		}
		return unreachable(err)
	}
	p.mu.Lock()
	s := p.stores[storeID]
	p.mu.Unlock()
	if s == nil {
		return false
	}
	_, err := grpc_health_v1.NewHealthClient(s.conns[0]).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{})
	return unreachable(err)
}

func unreachable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// forwardStub has a store pass gets, puts, deletes and scans on. Everything else is for the store
// itself, which refuses it: it is not the one that the request names.
type forwardStub struct {
	tinykvpb.TinyKvClient
	storeID uint64
}

func (s forwardStub) do(
	ctx context.Context, cmd *kvrpcpb.BatchCommand,
) (*kvrpcpb.BatchReply, error) {
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline).Milliseconds()
		if left <= 0 {
			return nil, errNotSent
		}
		cmd.TimeoutMs = uint64(left)
	}
	resp, err := s.Forward(ctx, &kvrpcpb.ForwardRequest{StoreId: s.storeID, Command: cmd})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil, errNotSent // a store of an older version
	case err != nil:
		return nil, err
	case resp.NotSent:
		return nil, errNotSent
	case resp.Reply.GetCode() != 0:
		return nil, status.Error(codes.Code(resp.Reply.Code), resp.Reply.Message)
	}
	return resp.Reply, nil
}

// errNoAnswer: a store said that it has an answer and sent none.
var errNoAnswer = status.Error(codes.Internal, "forwarded request without an answer")

// answer is a reply's part, which must be there.
func answer[T any](part *T, err error) (*T, error) {
	if err == nil && part == nil {
		err = errNoAnswer
	}
	return part, err
}

func (s forwardStub) RawGet(
	ctx context.Context, in *kvrpcpb.RawGetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawGetResponse, error) {
	reply, err := s.do(ctx, &kvrpcpb.BatchCommand{Get: in})
	return answer(reply.GetGet(), err)
}

func (s forwardStub) RawPut(
	ctx context.Context, in *kvrpcpb.RawPutRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawPutResponse, error) {
	if in.Ttl > 0 {
		return nil, errNotSent // a store of an older version would pass it on without the TTL
	}
	reply, err := s.do(ctx, &kvrpcpb.BatchCommand{Put: in})
	return answer(reply.GetPut(), err)
}

func (s forwardStub) RawDelete(
	ctx context.Context, in *kvrpcpb.RawDeleteRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawDeleteResponse, error) {
	reply, err := s.do(ctx, &kvrpcpb.BatchCommand{Delete: in})
	return answer(reply.GetDelete(), err)
}

func (s forwardStub) RawScan(
	ctx context.Context, in *kvrpcpb.RawScanRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawScanResponse, error) {
	reply, err := s.do(ctx, &kvrpcpb.BatchCommand{Scan: in})
	return answer(reply.GetScan(), err)
}
