package server

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Peers are the other stores.
type Peers interface {
	// Peer is the service of another store. Errors say that nothing was sent.
	Peer(ctx context.Context, storeID uint64) (tinykvpb.TinyKvClient, error)
}

const (
	// maxForwards and maxForwardBytes bound the requests of others that a store passes on at the
	// same time. Who cannot reach a leader is the exception; a store's own work comes first.
	maxForwards     = 256
	maxForwardBytes = 64 << 20
)

// forwarder passes requests on to stores that a client cannot reach.
type forwarder struct {
	peers Peers // nil: there are none
	calls atomic.Int64
	bytes atomic.Int64
	total atomic.Uint64
}

// Forwarded is how many requests the store has passed on to others.
func (s *Server) Forwarded() uint64 { return s.forward.total.Load() }

// Forward implements tinykvpb.TinyKvServer. The request goes on as a plain one, so the other store
// does not pass it on again.
func (s *Server) Forward(
	ctx context.Context, req *kvrpcpb.ForwardRequest,
) (*kvrpcpb.ForwardResponse, error) {
	f, cmd := &s.forward, req.Command
	if cmd == nil || cmd.Get == nil && cmd.Put == nil && cmd.Delete == nil && cmd.Scan == nil {
		return &kvrpcpb.ForwardResponse{NotSent: true, Reply: &kvrpcpb.BatchReply{
			Code: uint32(codes.InvalidArgument), Message: "a forwarded command without a request",
		}}, nil
	}
	size := int64(cmd.Size())
	defer func() { f.calls.Add(-1); f.bytes.Add(-size) }()
	if calls, held := f.calls.Add(1),
		f.bytes.Add(size); calls > maxForwards || held > maxForwardBytes {
		return &kvrpcpb.ForwardResponse{
			Reply: refuseForward(cmd, "too many requests are being passed on to other stores"),
		}, nil
	}
	if f.peers == nil {
		return &kvrpcpb.ForwardResponse{NotSent: true}, nil
	}
	timeout := s.cfg.Server.RequestTimeout.Duration
	if d := time.Duration(cmd.TimeoutMs) * time.Millisecond; d > 0 && d < timeout {
		timeout = d
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	peer, err := f.peers.Peer(ctx, req.StoreId)
	if err != nil {
		return &kvrpcpb.ForwardResponse{NotSent: true}, nil
	}
	f.total.Add(1)
	reply := &kvrpcpb.BatchReply{Id: cmd.Id}
	switch {
	case cmd.Get != nil:
		reply.Get, err = peer.RawGet(ctx, cmd.Get)
	case cmd.Put != nil:
		reply.Put, err = peer.RawPut(ctx, cmd.Put)
	case cmd.Delete != nil:
		reply.Delete, err = peer.RawDelete(ctx, cmd.Delete)
	default:
		reply.Scan, err = peer.RawScan(ctx, cmd.Scan)
	}
	if err != nil {
		st := status.Convert(err)
		reply = &kvrpcpb.BatchReply{Id: cmd.Id, Code: uint32(st.Code()), Message: st.Message()}
	}
	return &kvrpcpb.ForwardResponse{Reply: reply, NotSent: err != nil && rpc.NotSent(err)}, nil
}

// refuseForward answers a command with ServerIsBusy.
func refuseForward(cmd *kvrpcpb.BatchCommand, reason string) *kvrpcpb.BatchReply {
	busy := &errorpb.Error{Message: reason, ServerIsBusy: &errorpb.ServerIsBusy{Reason: reason}}
	reply := &kvrpcpb.BatchReply{Id: cmd.Id}
	switch {
	case cmd.Get != nil:
		reply.Get = &kvrpcpb.RawGetResponse{RegionError: busy}
	case cmd.Put != nil:
		reply.Put = &kvrpcpb.RawPutResponse{RegionError: busy}
	case cmd.Delete != nil:
		reply.Delete = &kvrpcpb.RawDeleteResponse{RegionError: busy}
	default:
		reply.Scan = &kvrpcpb.RawScanResponse{RegionError: busy}
	}
	return reply
}
