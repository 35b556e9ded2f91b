package server

import (
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/pingcap/kvproto/pkg/pdpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/codec"
	pb "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/pdface"
)

const (
	servicePrefix   = "/schedulerpb.Scheduler/"
	pdPrefix        = "/pdpb.PD/"
	forwardedHeader = "tinykv-forwarded" // a forwarded call is not forwarded again
)

// forEveryMember tells which calls are not the leader's: those of other services, and those by
// which clients find it.
func forEveryMember(method string) bool {
	switch {
	case strings.HasPrefix(method, servicePrefix):
		return method == servicePrefix+"GetMembers"
	case strings.HasPrefix(method, pdPrefix):
		return pdface.ForEveryMember(method)
	}
	return true
}

// forwarder passes what only the leader may answer on to it, so that a client that knows only one
// member is served by any.
type forwarder struct {
	s  *Server
	mu struct {
		sync.Mutex
		addr string
		conn *grpc.ClientConn
	}
}

func newForwarder(s *Server) *forwarder { return &forwarder{s: s} }

func (f *forwarder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.conn != nil {
		_ = f.mu.conn.Close()
		f.mu.conn, f.mu.addr = nil, ""
	}
}

// leader returns a connection to the leader, if it is another member.
func (f *forwarder) leader(ctx context.Context) (*grpc.ClientConn, error) {
	select {
	case <-f.s.ready:
	default:
		return nil, errNotLeader
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md.Get(forwardedHeader)) > 0 {
		return nil, errNotLeader
	}
	m, _ := f.s.elector.Leader()
	addr := firstURL(m.GetClientUrls())
	if addr == "" || m.GetMemberId() == f.s.self.MemberId {
		return nil, errNotLeader
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.conn != nil && f.mu.addr == addr {
		return f.mu.conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(f.s.identity.Credentials()),
		grpc.WithDefaultCallOptions(codec.CallOption(), grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true,
		}))
	if err != nil {
		return nil, errNotLeader
	}
	if f.mu.conn != nil {
		_ = f.mu.conn.Close()
	}
	f.mu.conn, f.mu.addr = conn, addr
	return conn, nil
}

func outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, forwardedHeader, "1")
}

// unary is an interceptor: on a follower it sends the unary calls that the leader must answer
// there.
func (f *forwarder) unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	if forEveryMember(info.FullMethod) || f.s.leadership() != nil {
		return next(ctx, req)
	}
	conn, err := f.leader(ctx)
	if err != nil {
		return next(ctx, req) // says "not leader"
	}
	reply := newReply(info.FullMethod)
	if reply == nil {
		return nil, errNotLeader
	}
	if err := conn.Invoke(roleCheck{f.s.guard}.passOn(outgoing(ctx), info.FullMethod),
		info.FullMethod, req, reply); err != nil {
		return nil, err
	}
	return reply, nil
}

// newReply makes the empty answer of a unary method, as the service's interface has it; nil if
// there is no such method.
func newReply(method string) any {
	service := reflect.TypeFor[pb.SchedulerServer]()
	if strings.HasPrefix(method, pdPrefix) {
		service = reflect.TypeFor[pdpb.PDServer]()
	}
	m, ok := service.MethodByName(method[strings.LastIndexByte(method, '/')+1:])
	if !ok || m.Type.NumOut() != 2 {
		return nil
	}
	return reflect.New(m.Type.Out(0).Elem()).Interface()
}

func (f *forwarder) tso(down pb.Scheduler_TsoServer) error {
	conn, err := f.leader(down.Context())
	if err != nil {
		return err
	}
	up, err := pb.NewSchedulerClient(conn).Tso(outgoing(down.Context()))
	if err != nil {
		return err
	}
	return f.pipe(down, up, func() any { return &pb.TsoRequest{} }, func() any {
		return &pb.TsoResponse{}
	})
}

func (f *forwarder) regionHeartbeat(down pb.Scheduler_RegionHeartbeatServer) error {
	conn, err := f.leader(down.Context())
	if err != nil {
		return err
	}
	up, err := pb.NewSchedulerClient(conn).RegionHeartbeat(outgoing(down.Context()))
	if err != nil {
		return err
	}
	return f.pipe(down, up, func() any { return &pb.RegionHeartbeatRequest{} },
		func() any { return &pb.RegionHeartbeatResponse{} })
}

// stream forwards a stream of any service that has both directions.
func (f *forwarder) stream(
	down grpc.ServerStream, method string, newReq, newResp func() any,
) error {
	conn, err := f.leader(down.Context())
	if err != nil {
		return err
	}
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	up, err := conn.NewStream(outgoing(down.Context()), desc, method)
	if err != nil {
		return err
	}
	return f.pipe(down, up, newReq, newResp)
}

// pipe copies both directions until either side ends or another member leads.
func (f *forwarder) pipe(
	down grpc.ServerStream, up grpc.ClientStream, newReq, newResp func() any,
) error {
	done := make(chan error, 2)
	go func() { // ends when the handler returns, which ends the stream
		for {
			m := newReq()
			if err := down.RecvMsg(m); err != nil {
				if errors.Is(err, io.EOF) {
					err = up.CloseSend()
				}
				done <- err
				return
			}
			if err := up.SendMsg(m); err != nil {
				done <- nil // the reason is with the receiver below
				return
			}
		}
	}()
	go func() { // ends with the upstream
		for {
			m := newResp()
			err := up.RecvMsg(m)
			if err == nil {
				err = down.SendMsg(m)
			}
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				done <- err
				return
			}
		}
	}()
	_, changed := f.s.elector.Leader()
	ended := 0
	for {
		select {
		case err := <-done:
			if ended++; err != nil || ended == 2 {
				return err
			}
		case <-changed:
			return status.Error(codes.Unavailable, "placement leader changed")
		case <-f.s.ctx.Done():
			return errStopped
		}
	}
}
