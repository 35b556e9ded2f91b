package client

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// requestEncoder makes the header blocks of calls. Those of a method are always the same but for
// the timeout: once their fields are in the server's table they are a few bytes, which are kept.
type requestEncoder struct {
	addr, scheme string
	// checksum: calls ask for checksums; prefixes: and for those of prefixes.
	checksum, prefixes bool
	buf                bytes.Buffer
	enc                *hpack.Encoder
	// seen are the methods whose fields are in the table, with their block if it is kept.
	// Invariant: a block is kept only as long as nothing enters the table, so that nothing in it
	// moves.
	seen map[string][]byte
	// room is what is left in the table for paths. Nothing that is in it may be pushed out: a kept
	// block names its fields by their places.
	room int
	// small: the server's table has no room for all that.
	small bool
}

func (e *requestEncoder) init(addr string, secure, checksum bool) {
	e.addr, e.scheme, e.checksum = addr, "http", checksum
	if secure {
		e.scheme = "https"
	}
	e.enc = hpack.NewEncoder(&e.buf)
	e.seen = map[string][]byte{}
	e.room = rpc.TableSize
	e.prefixes = true // the longer value
	for _, f := range e.common() {
		e.room -= int(f.Size())
	}
	e.prefixes = false
}

// setPrefixes follows the server's SettingPrefixSums. A server says it before the first call, or
// not at all.
func (e *requestEncoder) setPrefixes(n uint32) {
	e.prefixes = n == 1 && e.checksum && len(e.seen) == 0
}

// common are the fields after the path.
func (e *requestEncoder) common() []hpack.HeaderField {
	all := [...]hpack.HeaderField{
		{Name: ":authority", Value: e.addr}, {Name: "content-type", Value: "application/grpc"},
		{Name: "user-agent", Value: "tinykv-go"}, {Name: "te", Value: "trailers"},
		{Name: rpc.ChecksumHeader, Value: rpc.ChecksumKind},
	}
	if !e.checksum {
		return all[:len(all)-1]
	}
	if e.prefixes {
		all[len(all)-1].Value = rpc.ChecksumPrefixKind
	}
	return all[:]
}

// setTableSize follows the server's SETTINGS_HEADER_TABLE_SIZE. A table that was made smaller stays
// so: hpack's encoder does not go back up by itself, and what was pushed out would come in again
// while blocks are kept.
func (e *requestEncoder) setTableSize(n uint32) {
	if n >= rpc.TableSize {
		return
	}
	e.enc.SetMaxDynamicTableSizeLimit(n)
	e.small = true
	clear(e.seen)
}

// block is the header block of a call; it is valid until the next one. A timeout below zero means
// none.
func (e *requestEncoder) block(method string, timeout time.Duration, info *callInfo) []byte {
	kept, known := e.seen[method]
	if kept == nil {
		e.buf.Reset()
		path := hpack.HeaderField{Name: ":path", Value: method}
		index := !e.small && (known || int(path.Size()) <= e.room)
		e.field(hpack.HeaderField{Name: ":method", Value: "POST"}, index)
		e.field(hpack.HeaderField{Name: ":scheme", Value: e.scheme}, index)
		e.field(path, index)
		for _, f := range e.common() {
			e.field(f, index)
		}
		switch {
		case !index:
		case known: // every field came from the table
			e.seen[method] = bytes.Clone(e.buf.Bytes())
		default:
			for m := range e.seen {
				e.seen[m] = nil
			}
			e.seen[method] = nil
			e.room -= int(path.Size())
		}
	} else {
		e.buf.Reset()
		e.buf.Write(kept)
	}
	if timeout >= 0 {
		e.literal("grpc-timeout", rpc.FormatTimeout(timeout))
	}
	if info != nil {
		if name := info.encoding(); name != "" {
			e.field(hpack.HeaderField{Name: "grpc-encoding", Value: name}, false)
		}
		rpc.EachHeader(info.md, func(name, value string) {
			e.field(hpack.HeaderField{Name: name, Value: value}, false)
		})
	}
	return e.buf.Bytes()
}

// field never fails: it writes to memory.
func (e *requestEncoder) field(f hpack.HeaderField, index bool) {
	f.Sensitive = !index
	_ = e.enc.WriteField(f)
}

// literal adds a field of less than 127 bytes each that stays out of the table (RFC 7541, 6.2.2).
func (e *requestEncoder) literal(name, value string) {
	e.buf.WriteByte(0)
	e.buf.WriteByte(byte(len(name)))
	e.buf.WriteString(name)
	e.buf.WriteByte(byte(len(value)))
	e.buf.WriteString(value)
}

// responseHead is what the header block says that is being read.
type responseHead struct {
	dec *hpack.Decoder
	// stream is the call whose block is being read, zero between blocks; end, that nothing comes
	// after it.
	stream uint32
	end    bool
	size   int
	// sent is what the block takes on the wire.
	sent int
	// The fields.
	httpStatus, contentType, grpcStatus, message, details, encoding string
	checksum                                                        bool
	// md is the metadata; nil if there is none. bad is what is wrong with it.
	md  metadata.MD
	bad error
}

func (h *responseHead) init() { h.dec = newHeaderDecoder(h.take) }

func (h *responseHead) begin(stream uint32, end bool) {
	*h = responseHead{dec: h.dec, stream: stream, end: end}
}

func (h *responseHead) take(f hpack.HeaderField) {
	if h.size += len(f.Name) + len(f.Value) + 32; h.size > maxHeaderBytes {
		return
	}
	switch f.Name {
	case ":status":
		h.httpStatus = f.Value
	case "content-type":
		h.contentType = f.Value
	case "grpc-status":
		h.grpcStatus = f.Value
	case "grpc-message":
		h.message = f.Value
	case "grpc-encoding":
		h.encoding = f.Value
	case rpc.ChecksumHeader:
		h.checksum = f.Value == rpc.ChecksumKind
	case rpc.StatusDetails:
		h.details = f.Value
	default:
		if h.bad == nil && !rpc.IsReserved(f.Name) {
			h.md, h.bad = rpc.AppendMetadata(h.md, f.Name, f.Value)
		}
	}
}

// check says what is wrong with the first headers of an answer.
func (h *responseHead) check() *status.Status {
	switch {
	case h.size > maxHeaderBytes:
		return status.New(codes.ResourceExhausted, "the server's headers are larger than the limit")
	case h.httpStatus != "200":
		return status.Newf(codeOfHTTP(h.httpStatus), "the server answered with HTTP status %q",
			h.httpStatus)
	case !rpc.IsGRPCType(h.contentType):
		return status.Newf(codes.Unknown, "the server answered with content-type %q", h.contentType)
	case h.bad != nil:
		return status.Convert(h.bad)
	}
	return nil
}

// isForeign tells whether the first headers are those of an answer that is not gRPC.
func (h *responseHead) isForeign() bool {
	return h.size <= maxHeaderBytes && h.httpStatus != "" &&
		(h.httpStatus != "200" || !rpc.IsGRPCType(h.contentType))
}

// status is what the last headers of an answer say.
func (h *responseHead) status() *status.Status {
	if h.size > maxHeaderBytes {
		return status.New(codes.ResourceExhausted, "the server's headers are larger than the limit")
	}
	if h.bad != nil {
		return status.Convert(h.bad)
	}
	if h.grpcStatus == "0" {
		return rpc.StatusOK
	}
	n, err := strconv.ParseUint(h.grpcStatus, 10, 31)
	if err != nil {
		return status.Newf(codes.Unknown, "the server ended the call with grpc-status %q",
			h.grpcStatus)
	}
	return rpc.DecodeDetails(status.New(codes.Code(n), rpc.DecodeMessage(h.message)), h.details)
}

// codeOfHTTP is gRPC's code for an HTTP status (http-grpc-status-mapping.md).
func codeOfHTTP(st string) codes.Code {
	switch st {
	case "400":
		return codes.Internal
	case "401":
		return codes.Unauthenticated
	case "403":
		return codes.PermissionDenied
	case "404":
		return codes.Unimplemented
	case "429", "502", "503", "504":
		return codes.Unavailable
	}
	return codes.Unknown
}

// codeOfReset is gRPC's code for a stream that the server has reset (PROTOCOL-HTTP2.md).
func codeOfReset(code http2.ErrCode) codes.Code {
	switch code {
	case http2.ErrCodeCancel:
		return codes.Canceled
	case http2.ErrCodeRefusedStream:
		return codes.Unavailable
	case http2.ErrCodeEnhanceYourCalm:
		return codes.ResourceExhausted
	case http2.ErrCodeInadequateSecurity:
		return codes.PermissionDenied
	}
	return codes.Internal
}

// onHeaderBlock reads a header block, or a part of it. Blocks of calls that have ended are read
// too: the table must be the server's.
func (l *link) onHeaderBlock(id uint32, fragment []byte, end, last bool) error {
	if l.head.stream != id {
		l.head.begin(id, end)
	}
	// it might go on for ever
	if l.head.sent += rpc.FrameHeader + len(fragment); l.head.sent > 4*maxHeaderBytes {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	_, err := l.head.dec.Write(fragment)
	if err == nil && last {
		err = l.head.dec.Close()
	}
	if err != nil {
		return fmt.Errorf("header block: %w", http2.ConnectionError(http2.ErrCodeCompression))
	}
	if !last {
		return nil
	}
	l.head.stream = 0
	call, err := l.call(id)
	if err == nil {
		err = l.ends.note(id, end)
	}
	if err != nil || call == nil {
		return err
	}
	if damaged, err := l.noteHead(call, end); damaged {
		return err
	}
	l.keepMetadata(call, end)
	if !call.headed {
		call.headed = true
		st := l.head.check()
		if st == nil && !end {
			call.encoding = l.head.encoding
			call.check.Checks = call.check.Sends && l.head.checksum
			return nil
		}
		if st != nil && !end {
			if l.head.isForeign() {
				call.foreign = st
			} else {
				l.reset(id, http2.ErrCodeCancel, st)
			}
			return nil
		}
		if st != nil {
			l.finish(call, st.Err())
			return nil
		}
	} else if !end {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if call.foreign != nil {
		l.finish(call, call.foreign.Err())
		return nil
	}
	call.onEnd(l.head.status())
	return nil
}

// keepMetadata keeps what the header block that was read has of it, for those who ask.
func (l *link) keepMetadata(call *clientCall, end bool) {
	if call.info == nil || call.headed && !end {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case call.mu.Gone:
	case end:
		call.info.trailer = l.head.md // what waits for headers gets the end when that is known
	default:
		call.info.header = l.head.md
		call.mu.Headed = true
		if call.stream != nil {
			call.stream.knowLocked()
		}
	}
}

// noteHead looks at the headers of an answer for damage that would stay in the header tables of
// this connection; true if the connection is to end.
func (l *link) noteHead(call *clientCall, end bool) (bool, error) {
	if !call.check.Sends {
		return false, nil
	}
	failed := end && l.head.grpcStatus != "0"
	switch {
	case l.head.checksum:
		l.c.confirmed.Store(true)
	case l.c.confirmed.Load() && (!call.headed || failed):
		return true, l.corrupt(call)
	}
	if failed && l.head.grpcStatus == unimplemented {
		l.renewed.Store(true)
		l.retire()
	} else if !call.headed && l.head.check() != nil {
		l.retire()
	}
	return false, nil
}

var unimplemented = strconv.Itoa(int(codes.Unimplemented))

// newHeaderDecoder is a header decoder as RFC 7541 has it at the beginning.
func newHeaderDecoder(emit func(hpack.HeaderField)) *hpack.Decoder {
	d := hpack.NewDecoder(rpc.TableSize, emit)
	d.SetMaxStringLength(maxHeaderBytes)
	return d
}
