package server

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// requestHead is what the header block says that is being read. Blocks of a kind that clients send
// again and again, but for the timeout, are remembered: they are not decoded again. Owned by the
// reading goroutine.
type requestHead struct {
	dec   *hpack.Decoder
	limit uint32
	known []knownBlock
	next  int // of known to be replaced

	// frame is the block's first frame, nil between blocks; sent is what the block takes on the
	// wire.
	frame *http2.HeadersFrame
	sent  int
	headFields
}

// headFields is what the fields come to.
type headFields struct {
	req request
	// malformed: no HTTP/2 request has such fields (RFC 9113, 8.2 and 8.3).
	malformed bool
	// bad is what the call ends with.
	bad error
	// size of the fields as HTTP/2 counts it; truncated: those beyond the limit were not looked at.
	size      uint32
	truncated bool
	regular   bool // one that is no pseudo-header has come
	pseudo    uint8
	isPost    bool
	isGRPC    bool
	timeouts  int
}

// knownBlock is a block whose fields are all in the table. Invariant: nothing has entered the table
// since.
type knownBlock struct {
	block []byte
	headFields
}

// maxKnownBlocks is enough for the methods that one client calls often.
const maxKnownBlocks = 4

const (
	hasPath = 1 << iota
	hasMethod
	hasScheme
	hasAuthority
	hasProtocol
	badPseudo // one that no request has, or one twice
)

func (h *requestHead) init(limit uint32) {
	h.limit = limit
	h.dec = hpack.NewDecoder(rpc.TableSize, h.take)
	h.dec.SetMaxStringLength(int(limit))
}

func (h *requestHead) begin(f *http2.HeadersFrame) {
	h.frame, h.sent = f, 0
	h.headFields = headFields{req: request{timeout: -1, length: -1}}
	h.dec.SetEmitEnabled(true)
}

// read takes a part of the block; last tells whether it is complete. An error ends the connection.
func (h *requestHead) read(fragment []byte, last bool) error {
	whole := h.sent == 0 && last
	if h.sent += rpc.FrameHeader + len(fragment); h.sent > 4*int(h.limit)+rpc.FrameHeader {
		return &rpc.ConnError{
			Code: http2.ErrCodeEnhanceYourCalm, Why: "headers much larger than the limit",
		}
	}
	if !whole && (h.malformed || h.truncated) && len(fragment) > 0 {
		code := http2.ErrCodeProtocol
		if h.truncated { // counts as a flood
			code = http2.ErrCodeEnhanceYourCalm
		}
		return &rpc.ConnError{
			Code: code, Why: "more of headers that are refused already",
		}
	}
	indexed, timeout, simple := simpleBlock(fragment)
	simple = simple && whole
	if simple && h.recall(indexed, timeout) {
		return nil
	}
	_, err := h.dec.Write(fragment)
	if err == nil && last {
		err = h.dec.Close()
	}
	if err != nil {
		return &rpc.ConnError{Code: http2.ErrCodeCompression, Why: "header block: " + err.Error()}
	}
	if last {
		h.malformed = h.malformed || h.pseudo&badPseudo != 0
	}
	if simple {
		h.remember(indexed, timeout)
	} else {
		h.known, h.next = h.known[:0], 0 // the table may have changed
	}
	return nil
}

// take sees a field.
func (h *requestHead) take(f hpack.HeaderField) {
	if !httpguts.ValidHeaderFieldValue(f.Value) {
		h.refuse()
		return
	}
	pseudo := strings.HasPrefix(f.Name, ":")
	if pseudo && h.regular || !pseudo && !validName(f.Name) {
		h.refuse()
		return
	}
	h.regular = h.regular || !pseudo
	if h.size+f.Size() > h.limit {
		h.truncated = true
		h.dec.SetEmitEnabled(false)
		return
	}
	h.size += f.Size()
	if pseudo {
		h.takePseudo(f)
	} else if h.bad == nil {
		h.takeRegular(f)
	}
}

// refuse ends the reading of fields, but not of the block: the table must be the client's.
func (h *requestHead) refuse() {
	h.malformed = true
	h.dec.SetEmitEnabled(false)
}

func (h *requestHead) takePseudo(f hpack.HeaderField) {
	which := uint8(0)
	switch f.Name {
	case ":path":
		which, h.req.path = hasPath, f.Value
	case ":method":
		which, h.isPost = hasMethod, f.Value == "POST"
		h.req.isHead = f.Value == "HEAD"
	case ":scheme":
		which = hasScheme
	case ":authority":
		which = hasAuthority
	case ":protocol":
		which = hasProtocol
	}
	if which == 0 || h.pseudo&which != 0 {
		h.pseudo |= badPseudo
	}
	h.pseudo |= which
}

func (h *requestHead) takeRegular(f hpack.HeaderField) {
	switch f.Name {
	case "content-type":
		h.isGRPC = rpc.IsGRPCType(f.Value)
	case "grpc-encoding":
		h.req.encoding = f.Value
	case rpc.ChecksumHeader:
		h.req.prefixes = f.Value == rpc.ChecksumPrefixKind
		h.req.checksum = h.req.prefixes || f.Value == rpc.ChecksumKind
	case "grpc-timeout":
		h.takeTimeout(f.Value)
	case "te":
		if f.Value != "trailers" {
			h.bad = errMalformed
		}
	case "content-length":
		h.takeLength(f.Value)
	case "connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding":
		h.bad = errMalformed
	default:
		if !rpc.IsReserved(f.Name) {
			var err error
			if h.req.md, err = rpc.AppendMetadata(h.req.md, f.Name, f.Value); err != nil {
				h.bad = err
			}
		}
	}
}

// takeLength reads a content-length: several must agree (RFC 9110, 8.6).
func (h *requestHead) takeLength(v string) {
	n, err := strconv.ParseUint(v, 10, 62)
	if err != nil || h.req.length >= 0 && h.req.length != int64(n) {
		h.bad = errMalformed
		return
	}
	h.req.length = int64(n)
}

func (h *requestHead) takeTimeout(v string) {
	h.timeouts++
	var err error
	if h.req.timeout, err = rpc.ParseTimeout(v); err != nil {
		h.bad = status.Error(codes.Internal, err.Error())
	}
}

// request is what a complete block asks for; an error is what to end the call with. httpStatus is
// what to answer a client that does not speak gRPC.
func (h *requestHead) request() (r request, httpStatus int, err error) {
	const needed = hasPath | hasMethod | hasScheme
	switch {
	case h.bad != nil:
		return h.req, 0, h.bad
	case h.pseudo&needed != needed || h.req.path == "":
		return h.req, 0, errMalformed
	case !h.isPost:
		return h.req, 405, status.Error(codes.Internal, "a call is a POST")
	case !h.isGRPC:
		return h.req, 415,
			status.Error(codes.InvalidArgument, "content-type is not application/grpc")
	case h.truncated:
		return h.req, 0, status.Error(codes.ResourceExhausted, "headers larger than the limit")
	}
	return h.req, 0, nil
}

// validName tells whether a field may have a name: a token without capitals.
func validName(name string) bool {
	for _, r := range name {
		if !httpguts.IsTokenRune(r) || 'A' <= r && r <= 'Z' {
			return false
		}
	}
	return name != ""
}

// remember keeps what a simple block has come to, unless something is wrong with it.
func (h *requestHead) remember(indexed []byte, timeout string) {
	literal := 0
	if timeout != "" {
		literal = 1
	}
	if h.malformed || h.bad != nil || h.truncated || h.timeouts != literal {
		return
	}
	k := knownBlock{block: bytes.Clone(indexed), headFields: h.headFields}
	if literal == 1 {
		k.size -= timeoutSize(timeout)
		k.timeouts, k.req.timeout = 0, -1
	}
	if len(h.known) < maxKnownBlocks {
		h.known = append(h.known, k)
		return
	}
	h.known[h.next] = k
	h.next = (h.next + 1) % maxKnownBlocks
}

// recall finds a block that is known.
func (h *requestHead) recall(indexed []byte, timeout string) bool {
	for i := range h.known {
		k := &h.known[i]
		if !bytes.Equal(k.block, indexed) {
			continue
		}
		if timeout == "" {
			h.headFields = k.headFields
			return true
		}
		if k.size+timeoutSize(timeout) > h.limit {
			return false
		}
		h.headFields = k.headFields
		h.size += timeoutSize(timeout)
		h.regular = true
		h.takeTimeout(timeout)
		return true
	}
	return false
}

const timeoutName = "grpc-timeout"

func timeoutSize(v string) uint32 { return hpack.HeaderField{Name: timeoutName, Value: v}.Size() }

// simpleBlock takes a block apart that has only fields of the table, each named by one byte (RFC
// 7541, 6.1), and perhaps a timeout at the end that stays out of it (6.2.2). Such a block does not
// change the table.
func simpleBlock(block []byte) (indexed []byte, timeout string, ok bool) {
	n := 0
	for n < len(block) && block[n] > 0x80 && block[n] < 0xff {
		n++
	}
	indexed, rest := block[:n], block[n:]
	if len(rest) == 0 {
		return indexed, "", n > 0
	}
	const begin = "\x00\x0c" + timeoutName
	if len(rest) < len(begin)+2 || string(rest[:len(begin)]) != begin {
		return nil, "", false
	}
	value := rest[len(begin)+1:]
	if int(rest[len(begin)]) != len(value) || len(value) > 9 {
		return nil, "", false
	}
	for _, ch := range value {
		if ch <= ' ' || ch > '~' {
			return nil, "", false
		}
	}
	return indexed, string(value), n > 0
}

// onHeadersFrame takes the first frame of a header block.
func (c *conn) onHeadersFrame(f *http2.HeadersFrame) error {
	c.head.begin(f)
	return c.onHeaderBlock(f.HeaderBlockFragment(), f.HeadersEnded())
}

// onContinuation takes one of the others: the Framer sees to it that they follow.
func (c *conn) onContinuation(f *http2.ContinuationFrame) error {
	if c.head.frame == nil {
		return &rpc.ConnError{Code: http2.ErrCodeProtocol, Why: "CONTINUATION without headers"}
	}
	return c.onHeaderBlock(f.HeaderBlockFragment(), f.HeadersEnded())
}

func (c *conn) onHeaderBlock(fragment []byte, last bool) error {
	if err := c.head.read(fragment, last); err != nil || !last {
		return err
	}
	f := c.head.frame
	c.head.frame = nil
	if c.head.malformed {
		if f.StreamID%2 == 1 { // it opens a stream all the same: more may be on its way
			c.sawStream(f.StreamID)
		}
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	return c.onHeaders(f)
}
