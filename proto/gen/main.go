// Command gen compiles proto/proto/*.proto into proto/pkg/<package>/<package>.pb.go.
//
// It needs no system protoc: the protocompile library parses and links the files, and the pinned
// protoc-gen-gogofaster (a tool of this module) turns the descriptors into Go. Run it through
// `make proto`; `make proto-check` fails when the checked-in code is out of date.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	src := flag.String("src", "../proto", "directory of the .proto files")
	out := flag.String("out", "../pkg", "directory that receives <package>/<package>.pb.go")
	check := flag.Bool("check", false, "write nothing; exit 1 if a file would change")
	flag.Parse()
	if err := run(*src, *out, *check); err != nil {
		fmt.Fprintln(os.Stderr, "proto/gen:", err)
		os.Exit(1)
	}
}

func run(src, out string, check bool) error {
	paths, err := filepath.Glob(filepath.Join(src, "*.proto"))
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("no .proto file in %s", src)
	}
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(p)
	}
	sort.Strings(names)
	files, err := compile(src, names)
	if err != nil {
		return err
	}
	var stale []string
	for _, name := range names {
		code, err := generate(name, files)
		if err != nil {
			return err
		}
		pkg := strings.TrimSuffix(name, ".proto")
		target := filepath.Join(out, pkg, pkg+".pb.go")
		if old, err := os.ReadFile(target); err == nil && bytes.Equal(old, code) {
			continue
		}
		if check {
			stale = append(stale, target)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, code, 0o644); err != nil {
			return err
		}
	}
	if len(stale) > 0 {
		return fmt.Errorf("out of date, run `make proto`: %s", strings.Join(stale, ", "))
	}
	return nil
}

// compile returns the descriptors of all files, dependencies first.
func compile(src string, names []string) ([]*descriptorpb.FileDescriptorProto, error) {
	c := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: []string{src}},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	linked, err := c.Compile(context.Background(), names...)
	if err != nil {
		return nil, err
	}
	byName := map[string]*descriptorpb.FileDescriptorProto{}
	for _, f := range linked {
		byName[f.Path()] = protoutil.ProtoFromFileDescriptor(f)
	}
	var ordered []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, dep := range byName[name].GetDependency() {
			visit(dep)
		}
		ordered = append(ordered, byName[name])
	}
	for _, name := range names {
		visit(name)
	}
	return ordered, nil
}

// generate runs the plugin for one file and returns its only output.
func generate(name string, files []*descriptorpb.FileDescriptorProto) ([]byte, error) {
	req := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{name},
		Parameter:      proto.String("plugins=grpc,paths=source_relative"),
		ProtoFile:      files,
	}
	in, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	var stdout bytes.Buffer
	cmd := exec.Command("go", "tool", "protoc-gen-gogofaster")
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stdout = &stdout
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("protoc-gen-gogofaster on %s: %w", name, err)
	}
	var resp pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(stdout.Bytes(), &resp); err != nil {
		return nil, err
	}
	if resp.Error != nil {
		return nil, fmt.Errorf("protoc-gen-gogofaster on %s: %s", name, resp.GetError())
	}
	if len(resp.File) != 1 {
		return nil,
			fmt.Errorf("protoc-gen-gogofaster on %s: %d files, want 1", name, len(resp.File))
	}
	return []byte(interfaces.Replace(resp.File[0].GetContent())), nil
}

// interfaces lets services register with any grpc.ServiceRegistrar, and clients call over any
// grpc.ClientConnInterface, as grpc's own generator does since 2020; gogo's insists on *grpc.Server
// and *grpc.ClientConn.
var interfaces = strings.NewReplacer(
	"(s *grpc.Server, srv ", "(s grpc.ServiceRegistrar, srv ",
	"(cc *grpc.ClientConn) ", "(cc grpc.ClientConnInterface) ",
	"\tcc *grpc.ClientConn\n", "\tcc grpc.ClientConnInterface\n",
)
