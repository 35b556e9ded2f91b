package rpc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // peers may compress with it
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/codec"
)

// putMessage fills buf with a message, up to end, and its prefix, which counts what stands behind
// end as well.
func putMessage(buf []byte, end int, m codec.Message) error {
	buf[0] = 0
	binary.BigEndian.PutUint32(buf[1:], uint32(len(buf)-PrefixSize))
	if _, err := m.MarshalToSizedBuffer(buf[PrefixSize:end]); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// EncodeForeign is a message that only the codec can encode, or that is to be compressed, of at
// most limit bytes, with its prefix and room for extra bytes behind it. comp may be nil. Errors are
// statuses.
func EncodeForeign(
	c encoding.CodecV2, comp encoding.Compressor, m any, limit, extra int,
) ([]byte, error) {
	bufs, err := c.Marshal(m)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	defer func() { bufs.Free() }()
	if comp != nil {
		packed := new(bytes.Buffer)
		if err := compress(packed, comp, bufs); err != nil {
			return nil, status.Error(codes.Internal, fmt.Sprintf("compress: %v", err))
		}
		bufs.Free()
		bufs = mem.BufferSlice{mem.SliceBuffer(packed.Bytes())}
	}
	size := bufs.Len()
	if size > limit {
		return nil, TooLarge("send", size, limit)
	}
	buf := make([]byte, PrefixSize+size+extra)
	if comp != nil {
		buf[0] = 1
	}
	binary.BigEndian.PutUint32(buf[1:], uint32(size+extra))
	bufs.CopyTo(buf[PrefixSize:])
	return buf, nil
}

func compress(to io.Writer, comp encoding.Compressor, bufs mem.BufferSlice) error {
	w, err := comp.Compress(to)
	if err != nil {
		return err
	}
	for _, b := range bufs {
		if _, err := w.Write(b.ReadOnlyData()); err != nil {
			return err
		}
	}
	return w.Close()
}

// TooLarge is the error of a message of size bytes that exceeds a limit; what is "send" or
// "receive".
func TooLarge(what string, size, limit int) error {
	return status.Errorf(codes.ResourceExhausted,
		"trying to %s message larger than max (%d vs. %d)", what, size, limit)
}

// Decompress undoes what grpc-encoding names, to at most limit bytes. flag is that of the message.
// Errors are statuses.
func Decompress(flag byte, name string, body []byte, limit int) ([]byte, error) {
	if flag != 1 || name == "" || name == "identity" {
		return nil, status.Error(codes.Internal, "compressed message without grpc-encoding")
	}
	comp := encoding.GetCompressor(name)
	if comp == nil {
		return nil, status.Errorf(codes.Unimplemented, "no decompressor for grpc-encoding %q", name)
	}
	r, err := comp.Decompress(bytes.NewReader(body))
	if err != nil {
		return nil, status.Error(codes.Internal, fmt.Sprintf("decompress: %v", err))
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, status.Error(codes.Internal, fmt.Sprintf("decompress: %v", err))
	}
	if len(out) > limit {
		return nil, TooLarge("receive", len(out), limit)
	}
	return out, nil
}

// StatusOK is the status of a call that went well.
var StatusOK = status.New(codes.OK, "")
