package reflect_test

//lint:file-ignore SA1019 old clients ask in v1alpha, which is what is tested

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	v1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/tinykv/tinykv/pkg/reflect"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

type scheduler struct {
	schedulerpb.UnimplementedSchedulerServer
}

type store struct {
	tinykvpb.UnimplementedTinyKvServer
}

// served is what tests need of both kinds of servers.
type served interface {
	grpc.ServiceRegistrar
	GetServiceInfo() map[string]grpc.ServiceInfo
	Serve(net.Listener) error
	Stop()
}

// TestRegister: both versions of the service list the services, and give files that are whole, by
// the project's own server and by grpc-go's.
func TestRegister(t *testing.T) {
	for name, s := range map[string]served{
		"pkg/rpc": server.New(server.Options{}), "grpc-go": grpc.NewServer(),
	} {
		schedulerpb.RegisterSchedulerServer(s, &scheduler{})
		tinykvpb.RegisterTinyKvServer(s, &store{})
		require.NoError(t, reflect.Register(s, "schedulerpb.proto", "tinykvpb.proto"))
		require.ErrorContains(t, reflect.Register(s, "nosuch.proto"), "nosuch.proto")
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		cc, err := grpc.NewClient(l.Addr().String(),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for _, symbol := range []string{
			"schedulerpb.Scheduler", "tinykvpb.TinyKv", "metapb.Region",
		} {
			require.Equal(t, askV1(t, ctx, cc, symbol), askV1alpha(t, ctx, cc, symbol), name)
		}
		cancel()
		require.NoError(t, cc.Close())
		s.Stop()
		<-done
	}
}

func askV1(t *testing.T, ctx context.Context, cc *grpc.ClientConn, symbol string) []string {
	t.Helper()
	st, err := v1.NewServerReflectionClient(cc).ServerReflectionInfo(ctx)
	require.NoError(t, err)
	require.NoError(t, st.Send(&v1.ServerReflectionRequest{
		MessageRequest: &v1.ServerReflectionRequest_FileContainingSymbol{
			FileContainingSymbol: symbol,
		},
	}))
	resp, err := st.Recv()
	require.NoError(t, err)
	checkFiles(t, resp.GetFileDescriptorResponse().GetFileDescriptorProto(), symbol)
	require.NoError(t,
		st.Send(&v1.ServerReflectionRequest{
			MessageRequest: &v1.ServerReflectionRequest_ListServices{},
		}))
	resp, err = st.Recv()
	require.NoError(t, err)
	var out []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		out = append(out, s.Name)
	}
	require.NoError(t, st.CloseSend())
	return out
}

func askV1alpha(t *testing.T, ctx context.Context, cc *grpc.ClientConn, symbol string) []string {
	t.Helper()
	st, err := v1alpha.NewServerReflectionClient(cc).ServerReflectionInfo(ctx)
	require.NoError(t, err)
	require.NoError(t, st.Send(&v1alpha.ServerReflectionRequest{
		MessageRequest: &v1alpha.ServerReflectionRequest_FileContainingSymbol{
			FileContainingSymbol: symbol,
		},
	}))
	resp, err := st.Recv()
	require.NoError(t, err)
	checkFiles(t, resp.GetFileDescriptorResponse().GetFileDescriptorProto(), symbol)
	require.NoError(t,
		st.Send(&v1alpha.ServerReflectionRequest{
			MessageRequest: &v1alpha.ServerReflectionRequest_ListServices{},
		}))
	resp, err = st.Recv()
	require.NoError(t, err)
	var out []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		out = append(out, s.Name)
	}
	require.Len(t, out, 4)
	require.NoError(t, st.CloseSend())
	return out
}

// checkFiles builds what a tool builds of an answer, and looks the symbol up in it.
func checkFiles(t *testing.T, raw [][]byte, symbol string) {
	t.Helper()
	set := new(descriptorpb.FileDescriptorSet)
	for i := range raw {
		fd := new(descriptorpb.FileDescriptorProto)
		require.NoError(t, proto.Unmarshal(raw[i], fd))
		set.File = append(set.File, fd)
	}
	require.NotEmpty(t, set.File, symbol)
	files, err := protodesc.NewFiles(set)
	require.NoError(t, err)
	_, err = files.FindDescriptorByName(protoreflect.FullName(symbol))
	require.NoError(t, err)
}
