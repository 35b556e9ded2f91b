package server

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/gogo/protobuf/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"
	googleproto "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	rpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
)

// RegisterReflection offers gRPC reflection. The project's messages live in gogo's registry, so its
// descriptors are looked up there first.
func RegisterReflection(s *grpc.Server) {
	svr := reflection.NewServerV1(reflection.ServerOptions{Services: s, DescriptorResolver: &gogoResolver{}})
	rpb.RegisterServerReflectionServer(s, svr)
}

// gogoResolver finds descriptors in gogo's registry, else in the global one. Built anew per call: it is
// a debugging aid.
type gogoResolver struct{}

func (r *gogoResolver) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	gz := proto.FileDescriptor(path)
	if gz == nil {
		return protoregistry.GlobalFiles.FindFileByPath(path)
	}
	zr, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		return nil, fmt.Errorf("descriptor of %s: %w", path, err)
	}
	raw, err := io.ReadAll(zr)
	if err != nil {
		return nil, fmt.Errorf("descriptor of %s: %w", path, err)
	}
	fd := new(descriptorpb.FileDescriptorProto)
	if err := googleproto.Unmarshal(raw, fd); err != nil {
		return nil, fmt.Errorf("descriptor of %s: %w", path, err)
	}
	return protodesc.NewFile(fd, r)
}

// own lists the files whose services and messages may be asked for by name.
var own = []string{
	"tinykvpb.proto", "kvrpcpb.proto", "metapb.proto", "errorpb.proto", "eraftpb.proto",
	"raft_cmdpb.proto", "raft_serverpb.proto", "coprocessor.proto",
}

func (r *gogoResolver) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	for _, path := range own {
		fd, err := r.FindFileByPath(path)
		if err != nil || fd.Package() != name.Parent() {
			continue
		}
		local := name.Name()
		if d := fd.Services().ByName(local); d != nil {
			return d, nil
		}
		if d := fd.Messages().ByName(local); d != nil {
			return d, nil
		}
		if d := fd.Enums().ByName(local); d != nil {
			return d, nil
		}
	}
	return protoregistry.GlobalFiles.FindDescriptorByName(name)
}
