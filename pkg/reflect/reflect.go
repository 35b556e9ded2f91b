// Package reflect offers gRPC reflection for services whose messages are gogo's.
package reflect

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/gogo/protobuf/proto"
	"google.golang.org/grpc/reflection"
	v1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	v1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	googleproto "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Register offers gRPC reflection of what is registered at s, in the versions v1 and v1alpha, to
// tools such as grpcurl. The project's messages live in gogo's registry, which grpc does not know:
// their descriptors are copied into one that it does. files are those with the services, as
// "tinykvpb.proto"; the files that they import are found. It fails if one is not linked into the
// program.
func Register(s reflection.GRPCServer, files ...string) error {
	own := new(protoregistry.Files)
	for _, path := range files {
		if err := add(own, path); err != nil {
			return err
		}
	}
	opts := reflection.ServerOptions{Services: s, DescriptorResolver: resolver{own}}
	v1.RegisterServerReflectionServer(s, reflection.NewServerV1(opts))
	v1alpha.RegisterServerReflectionServer(s, reflection.NewServer(opts))
	return nil
}

// add copies a file of gogo's registry, and before it those that it imports. Files of other
// registries are left out.
func add(files *protoregistry.Files, path string) error {
	if _, err := files.FindFileByPath(path); err == nil {
		return nil
	}
	zr, err := gzip.NewReader(bytes.NewReader(proto.FileDescriptor(path)))
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", path, err)
	}
	raw, err := io.ReadAll(zr)
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", path, err)
	}
	pb := new(descriptorpb.FileDescriptorProto)
	if err := googleproto.Unmarshal(raw, pb); err != nil {
		return fmt.Errorf("descriptor of %s: %w", path, err)
	}
	for _, imported := range pb.Dependency {
		if len(proto.FileDescriptor(imported)) > 0 {
			if err := add(files, imported); err != nil {
				return err
			}
		}
	}
	fd, err := protodesc.NewFile(pb, resolver{files})
	if err == nil {
		err = files.RegisterFile(fd)
	}
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", path, err)
	}
	return nil
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

func (r resolver) FindDescriptorByName(
	name protoreflect.FullName,
) (protoreflect.Descriptor, error) {
	d, err := r.own.FindDescriptorByName(name)
	if errors.Is(err, protoregistry.NotFound) {
		return protoregistry.GlobalFiles.FindDescriptorByName(name)
	}
	return d, err
}
