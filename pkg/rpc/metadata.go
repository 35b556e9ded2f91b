package rpc

import (
	"encoding/base64"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// binarySuffix ends the names of metadata whose values are bytes, in base64 on the wire.
const binarySuffix = "-bin"

// StatusDetails is the header that has the whole status of a call that failed with details.
const StatusDetails = "grpc-status-details-bin"

// maxDetails bounds a status with its details, in bytes: clients bound their headers. Larger ones
// go without details.
const maxDetails = 8 << 10

// IsReserved tells whether a header is the protocol's, and never metadata: neither side passes it
// on.
func IsReserved(name string) bool {
	switch name {
	case "", "content-type", "content-length", "user-agent", "te", "host", "grpc-accept-encoding",
		"grpc-encoding",
		"grpc-message", "grpc-message-type", "grpc-status", StatusDetails, "grpc-timeout",
		ChecksumHeader,
		"connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding":
		return true
	}
	return name[0] == ':'
}

// AppendMetadata adds a header to md, which may be nil. Binary values are decoded, several in one
// field are separate ones.
func AppendMetadata(md metadata.MD, name, value string) (metadata.MD, error) {
	if md == nil {
		md = metadata.MD{}
	}
	if !strings.HasSuffix(name, binarySuffix) {
		md[name] = append(md[name], value)
		return md, nil
	}
	for part := range strings.SplitSeq(value, ",") {
		b, err := decodeBinary(part)
		if err != nil {
			return md, status.Errorf(codes.Internal, "malformed binary metadata %q: %v", name, err)
		}
		md[name] = append(md[name], string(b))
	}
	return md, nil
}

// CheckMetadata tells whether md can be sent: names of a-z, 0-9, "-", "_" and ".", values of
// printable characters unless they are binary. The error is a status.
func CheckMetadata(md metadata.MD) error {
	for name, values := range md {
		if IsReserved(name) {
			continue // it is not sent
		}
		for _, r := range name {
			if !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.') {
				return status.Errorf(codes.Internal,
					"metadata key %q has a character that is not of a-z, 0-9, -, _ and .", name)
			}
		}
		if strings.HasSuffix(name, binarySuffix) {
			continue
		}
		for _, v := range values {
			for i := range len(v) {
				if v[i] < ' ' || v[i] > '~' {
					return status.Errorf(codes.Internal,
						"metadata %q has a value with characters that are not printable", name)
				}
			}
		}
	}
	return nil
}

// EachHeader calls f with the headers that carry md.
func EachHeader(md metadata.MD, f func(name, value string)) {
	for name, values := range md {
		if IsReserved(name) {
			continue
		}
		binary := strings.HasSuffix(name, binarySuffix)
		for _, v := range values {
			if binary {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			f(name, v)
		}
	}
}

// MetadataSize is what md takes as HTTP/2 counts headers, in bytes.
func MetadataSize(md metadata.MD) (size int) {
	EachHeader(md, func(name, value string) { size += len(name) + len(value) + 32 })
	return size
}

// EncodeDetails is the value of StatusDetails for st; "" if it has no details, or too many.
func EncodeDetails(st *status.Status) string {
	p := st.Proto()
	if len(p.GetDetails()) == 0 || proto.Size(p) > maxDetails {
		return ""
	}
	b, err := proto.Marshal(p)
	if err != nil {
		return ""
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

// DecodeDetails is a status with the details that a header has; st itself if it has none, or those
// of another status.
func DecodeDetails(st *status.Status, value string) *status.Status {
	if value == "" {
		return st
	}
	b, err := decodeBinary(value)
	if err != nil {
		return st
	}
	p := st.Proto() // any one, to be overwritten
	if proto.Unmarshal(b, p) != nil || p.Code != int32(st.Code()) {
		return st
	}
	return status.FromProto(p)
}

// decodeBinary takes base64 with and without padding, as PROTOCOL-HTTP2.md asks for.
func decodeBinary(v string) ([]byte, error) {
	if len(v)%4 == 0 {
		return base64.StdEncoding.DecodeString(v)
	}
	return base64.RawStdEncoding.DecodeString(v)
}
