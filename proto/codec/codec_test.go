package codec_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/gogo/protobuf/proto"
	"github.com/gogo/protobuf/protoc-gen-gogo/descriptor"
	"github.com/stretchr/testify/require"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	googleproto "google.golang.org/protobuf/proto"

	"github.com/tinykv/tinykv/proto/codec"
	_ "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// files are the descriptions whose messages are tested: the placement service's and what it uses.
var files = []string{"schedulerpb.proto", "metapb.proto", "eraftpb.proto"}

func describe(t *testing.T, file string) *descriptor.FileDescriptorProto {
	t.Helper()
	packed := proto.FileDescriptor(file)
	require.NotNil(t, packed, file)
	r, err := gzip.NewReader(bytes.NewReader(packed))
	require.NoError(t, err)
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	d := &descriptor.FileDescriptorProto{}
	require.NoError(t, proto.Unmarshal(data, d))
	return d
}

// messages calls visit with the name and the type of every message.
func messages(
	t *testing.T, visit func(name string, typ reflect.Type, d *descriptor.DescriptorProto),
) {
	t.Helper()
	for _, file := range files {
		d := describe(t, file)
		for _, m := range d.MessageType {
			name := d.GetPackage() + "." + m.GetName()
			typ := proto.MessageType(name)
			require.NotNil(t, typ, name)
			visit(name, typ.Elem(), m)
		}
	}
}

// fill gives every field a value, none of them empty.
func fill(rng *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(rng, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("protobuf") != "" {
				fill(rng, v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+rng.IntN(3), 3))
		for i := range v.Len() {
			fill(rng, v.Index(i))
		}
	case reflect.String:
		v.SetString(strings.Repeat("k", 1+rng.IntN(200)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32: // an enum keeps what it does not know
		v.SetInt(1 + rng.Int64N(6))
	case reflect.Int64:
		v.SetInt(-1 - rng.Int64N(1<<62))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + rng.Uint64()>>(65-v.Type().Bits())) // of half the range
	default:
		panic(fmt.Sprintf("no value for %v", v.Type()))
	}
}

func decode(typ reflect.Type, data []byte) (any, error) {
	into := reflect.New(typ).Interface()
	return into, codec.New().Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, into)
}

// Every message comes back as it was, also empty, and also from several buffers. No cut and no
// changed byte makes decoding panic, and what is decoded without error can be encoded again.
func TestEveryMessage(t *testing.T) {
	messages(t, func(name string, typ reflect.Type, _ *descriptor.DescriptorProto) {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, uint64(len(name))))
			for range 20 {
				m := reflect.New(typ)
				fill(rng, m.Elem())
				out, err := codec.New().Marshal(m.Interface())
				require.NoError(t, err)
				data := out.Materialize()
				out.Free()
				back, err := decode(typ, data)
				require.NoError(t, err)
				require.Equal(t, m.Interface(), back)

				half := len(data) / 2
				split := reflect.New(typ).Interface()
				require.NoError(t,
					codec.New().Unmarshal(mem.BufferSlice{
						mem.SliceBuffer(data[:half]), mem.SliceBuffer(data[half:]),
					}, split))
				require.Equal(t, m.Interface(), split)
				damage(t, rng, typ, data)
			}
			empty := reflect.New(typ).Interface()
			out, err := codec.New().Marshal(empty)
			require.NoError(t, err)
			require.Zero(t, out.Len())
			back, err := decode(typ, nil)
			require.NoError(t, err)
			require.Equal(t, empty, back)
		})
	})
}

func damage(t *testing.T, rng *rand.Rand, typ reflect.Type, data []byte) {
	t.Helper()
	for range 50 {
		bad := bytes.Clone(data)
		if len(bad) > 0 {
			bad[rng.IntN(len(bad))] = byte(rng.Uint32())
		}
		bad = bad[:rng.IntN(len(bad)+1)]
		if m, err := decode(typ, bad); err == nil {
			_, err := codec.New().Marshal(m)
			require.NoError(t, err)
		}
	}
	// A field of tomorrow is skipped.
	more := append(bytes.Clone(data), 0xfa, 0xff, 0x7f, 2, 'h', 'i')
	now, err := decode(typ, data)
	require.NoError(t, err)
	later, err := decode(typ, more)
	require.NoError(t, err)
	require.Equal(t, now, later)
}

// The field numbers and types are those of testdata, so that nobody changes one by accident: old
// and new processes talk to each other. UPDATE=1 writes the file.
func TestFieldNumbers(t *testing.T) {
	var b strings.Builder
	messages(t, func(name string, _ reflect.Type, d *descriptor.DescriptorProto) {
		fmt.Fprintf(&b, "%s\n", name)
		for _, f := range d.Field {
			typ := strings.ToLower(strings.TrimPrefix(f.GetType().String(), "TYPE_"))
			if f.GetTypeName() != "" {
				typ = strings.TrimPrefix(f.GetTypeName(), ".")
			}
			if f.GetLabel() == descriptor.FieldDescriptorProto_LABEL_REPEATED {
				typ = "repeated " + typ
			}
			fmt.Fprintf(&b, "  %d %s %s\n", f.GetNumber(), f.GetName(), typ)
		}
	})
	path := filepath.Join("testdata", "fields.txt")
	if os.Getenv("UPDATE") != "" {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

// Messages that are not gogo's, etcd's for example, go through gRPC's own codec.
func TestOtherMessages(t *testing.T) {
	out, err := codec.New().Marshal(&healthpb.HealthCheckRequest{Service: "s"})
	require.NoError(t, err)
	back := &healthpb.HealthCheckRequest{}
	require.NoError(t, codec.New().Unmarshal(out, back))
	require.True(t, googleproto.Equal(&healthpb.HealthCheckRequest{Service: "s"}, back))
	require.Equal(t, "proto", codec.New().Name())
}
