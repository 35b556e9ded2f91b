package server

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/gogo/protobuf/proto"
	"google.golang.org/grpc/reflection"
	rpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	googleproto "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// RegisterReflection offers gRPC reflection. The project's messages live in gogo's registry, which grpc
// does not know: their descriptors are copied into one that it does.
func RegisterReflection(s reflection.GRPCServer) error {
	own, err := ownDescriptors()
	if err != nil {
		return err
	}
	svr := reflection.NewServerV1(reflection.ServerOptions{Services: s, DescriptorResolver: resolver{own}})
	rpb.RegisterServerReflectionServer(s, svr)
	return nil
}

// ownFiles lists the project's files, dependencies first.
var ownFiles = []string{
	"metapb.proto", "errorpb.proto", "eraftpb.proto", "kvrpcpb.proto", "raft_cmdpb.proto", "raft_serverpb.proto",
	"coprocessor.proto", "tinykvpb.proto",
}

func ownDescriptors() (*protoregistry.Files, error) {
	files := new(protoregistry.Files)
	for _, path := range ownFiles {
		zr, err := gzip.NewReader(bytes.NewReader(proto.FileDescriptor(path)))
		if err != nil {
			return nil, fmt.Errorf("descriptor of %s: %w", path, err)
		}
		raw, err := io.ReadAll(zr)
		if err != nil {
			return nil, fmt.Errorf("descriptor of %s: %w", path, err)
		}
		pb := new(descriptorpb.FileDescriptorProto)
		if err := googleproto.Unmarshal(raw, pb); err != nil {
			return nil, fmt.Errorf("descriptor of %s: %w", path, err)
		}
		fd, err := protodesc.NewFile(pb, files)
		if err == nil {
			err = files.RegisterFile(fd)
		}
		if err != nil {
			return nil, fmt.Errorf("descriptor of %s: %w", path, err)
		}
	}
	return files, nil
}

// resolver looks into the project's files first, then into the global registry.
type resolver struct{ own *protoregistry.Files }

func (r resolver) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	fd, err := r.own.FindFileByPath(path)
	if errors.Is(err, protoregistry.NotFound) {
		return protoregistry.GlobalFiles.FindFileByPath(path)
	}
	return fd, err
}

func (r resolver) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	d, err := r.own.FindDescriptorByName(name)
	if errors.Is(err, protoregistry.NotFound) {
		return protoregistry.GlobalFiles.FindDescriptorByName(name)
	}
	return d, err
}
