package server

import (
	"context"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// safePointKey is the one key of etcd that TiKV's clients read.
const safePointKey = "/tidb/store/gcworker/saved_safe_point"

// etcdDoor is what is left of etcd's API on the client port: the two calls that TiKV's clients
// make, both of which only read. Members reach their own etcd inside the process and each other's
// over the peer port.
type etcdDoor struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedClusterServer
	s *Server
}

// registerEtcd adds the two calls. The rest of the services is not even registered; refuseUnknown
// answers.
func (s *Server) registerEtcd(gs *grpc.Server) {
	d := &etcdDoor{s: s}
	for _, r := range []struct {
		desc   grpc.ServiceDesc
		method string
	}{
		{etcdserverpb.KV_ServiceDesc, "Range"}, {etcdserverpb.Cluster_ServiceDesc, "MemberList"},
	} {
		only := grpc.ServiceDesc{
			ServiceName: r.desc.ServiceName, HandlerType: r.desc.HandlerType,
			Metadata: r.desc.Metadata,
		}
		for _, m := range r.desc.Methods {
			if m.MethodName == r.method {
				only.Methods = append(only.Methods, m)
			}
		}
		gs.RegisterService(&only, d)
	}
}

// refuseUnknown answers calls of methods that are not served.
func refuseUnknown(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	for _, etcd := range []string{"/etcdserverpb.", "/v3electionpb.", "/v3lockpb."} {
		if strings.HasPrefix(method, etcd) {
			return errEtcdClosed(method)
		}
	}
	return status.Errorf(codes.Unimplemented, "unknown method %s", method)
}

func errEtcdClosed(method string) error {
	return status.Errorf(codes.PermissionDenied,
		"%s is not served: this is TinyKV's placement service, whose etcd is for its "+
			"members only; clients may call etcd's Cluster.MemberList, and KV.Range for the key %s",
		method, safePointKey)
}

func (d *etcdDoor) header() (*etcdserverpb.ResponseHeader, error) {
	select {
	case <-d.s.ready:
		return &etcdserverpb.ResponseHeader{ClusterId: d.s.clusterID, MemberId: d.s.self.MemberId},
			nil
	default:
		return nil, errNotReady
	}
}

// Range reads the safe point and nothing else.
func (d *etcdDoor) Range(
	ctx context.Context, req *etcdserverpb.RangeRequest,
) (*etcdserverpb.RangeResponse, error) {
	if string(req.Key) != safePointKey || len(req.RangeEnd) != 0 {
		return nil, errEtcdClosed("KV.Range of any other key")
	}
	head, err := d.header()
	if err != nil {
		return nil, err
	}
	kv, err := d.s.storage.Get(ctx, safePointKey)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	out := &etcdserverpb.RangeResponse{Header: head}
	if kv.ModRevision != 0 {
		head.Revision = kv.ModRevision
		out.Count = 1
		out.Kvs = []*mvccpb.KeyValue{
			{Key: []byte(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision},
		}
	}
	return out, nil
}

// MemberList names the members; clients of etcd's kind find them so.
func (d *etcdDoor) MemberList(
	context.Context, *etcdserverpb.MemberListRequest,
) (*etcdserverpb.MemberListResponse, error) {
	head, err := d.header()
	if err != nil {
		return nil, err
	}
	out := &etcdserverpb.MemberListResponse{Header: head}
	for _, m := range d.s.members() {
		out.Members = append(out.Members, &etcdserverpb.Member{
			ID: m.MemberId, Name: m.Name, PeerURLs: m.PeerUrls, ClientURLs: m.ClientUrls,
			IsLearner: m.learner,
		})
	}
	return out, nil
}
