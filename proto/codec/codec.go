// Package codec is the gRPC codec of this project's messages: it marshals gogo messages straight
// into pooled buffers (grpc's default would marshal each of them twice) and leaves everything else
// to grpc's own "proto" codec.
//
// Install it per server and per client, with ServerOption and CallOption. It is never registered
// globally, because embedded etcd shares the process.
package codec

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the fallback codec registers itself
	"google.golang.org/grpc/mem"
)

// Message is what generated gogo code offers.
type Message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
	Reset()
}

type gogo struct {
	fallback encoding.CodecV2
}

// New returns the codec. It is stateless and safe for concurrent use.
func New() encoding.CodecV2 { return gogo{fallback: encoding.GetCodecV2("proto")} }

// ServerOption makes a server speak through the codec.
func ServerOption() grpc.ServerOption { return grpc.ForceServerCodecV2(New()) }

// CallOption makes the calls of a client connection go through the codec.
func CallOption() grpc.CallOption { return grpc.ForceCodecV2(New()) }

// StreamOption is for streams without end. Until a stream is first answered, grpc keeps up to 256
// KiB of what was sent, so as to send it again on another connection. It counts encoded bytes but
// keeps the messages, with all that they share memory with: a leader's small messages held on to a
// hundred MiB of log entries. Our streams do not want it: their owners open new ones.
func StreamOption() grpc.CallOption { return grpc.MaxRetryRPCBufferSize(0) }

// Name is the content subtype on the wire, the same as the default codec's.
func (gogo) Name() string { return "proto" }

// Marshal implements encoding.CodecV2. The buffer belongs to grpc, which returns it to the pool.
func (g gogo) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(Message)
	if !ok {
		return g.fallback.Marshal(v)
	}
	size := m.Size()
	if size == 0 { // the answer to every put
		return nil, nil
	}
	if mem.IsBelowBufferPoolingThreshold(size) {
		buf := make([]byte, size)
		if _, err := m.MarshalToSizedBuffer(buf); err != nil {
			return nil, fmt.Errorf("marshal %T: %w", v, err)
		}
		return mem.BufferSlice{mem.SliceBuffer(buf)}, nil
	}
	pool := mem.DefaultBufferPool()
	buf := pool.Get(size)
	if _, err := m.MarshalToSizedBuffer((*buf)[:size]); err != nil {
		pool.Put(buf)
		return nil, fmt.Errorf("marshal %T: %w", v, err)
	}
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// Unmarshal implements encoding.CodecV2. Generated gogo code copies every bytes field, so the
// pooled buffer may be released as soon as it returns.
func (g gogo) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(Message)
	if !ok {
		return g.fallback.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	m.Reset()
	if err := m.Unmarshal(buf.ReadOnlyData()); err != nil {
		return fmt.Errorf("unmarshal %T: %w", v, err)
	}
	return nil
}
