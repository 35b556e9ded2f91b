package server

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// request is what the headers of a call say.
type request struct {
	path string
	// timeout is negative if there is none.
	timeout  time.Duration
	encoding string
	// checksum: messages carry checksums, in both directions; prefixes: their prefixes as well.
	checksum, prefixes bool
	// length is what all messages take together, in bytes; negative if the client does not say.
	length int64
	// md is the call's metadata; nil if it has none of its own.
	md metadata.MD
	// isHead: it is no call but a HEAD.
	isHead bool
}

// errMalformed: the headers are not those of any HTTP/2 request (RFC 9113, 8.2.2 and 8.3.1).
var errMalformed = errors.New("malformed request")

// headerEncoder makes the header blocks of answers. Those of a successful answer are always the
// same: once their fields are in the client's table they are a few bytes, which are kept.
type headerEncoder struct {
	buf  bytes.Buffer
	enc  *hpack.Encoder
	size uint32
	// resized: no block has told the client of size yet.
	resized bool
	// seen: the fields of this block are in the table. Invariant: blocks are kept only when those
	// of both are, since then nothing enters the table any more, and nothing in it moves.
	seen   [2]bool
	blocks [2][]byte
}

const (
	blockHeaders = iota
	blockOK
)

func (e *headerEncoder) init() {
	e.enc = hpack.NewEncoder(&e.buf)
	e.size = rpc.TableSize
}

// setTableSize follows the client's SETTINGS_HEADER_TABLE_SIZE. Of several between two blocks the
// smallest counts: hpack's decoder rejects a block that begins with two sizes, which the way down
// and up again would need.
func (e *headerEncoder) setTableSize(n uint32) {
	if e.resized {
		n = min(n, e.size)
	}
	e.resized = true
	e.size = min(n, rpc.TableSize)
	e.enc.SetMaxDynamicTableSize(e.size)
	e.seen, e.blocks = [2]bool{}, [2][]byte{}
}

// stableTable is a table that has room for the fields of both blocks: then they stay in it.
const stableTable = 256

func (e *headerEncoder) block(which int) []byte {
	if b := e.blocks[which]; b != nil {
		return b
	}
	stable := e.seen[blockHeaders] && e.seen[blockOK] && e.size >= stableTable
	e.seen[which] = true
	e.resized = false
	e.buf.Reset()
	if which == blockHeaders {
		e.field(":status", "200", false)
		e.field("content-type", "application/grpc", false)
		// for clients that have asked; others do not mind
		e.field(rpc.ChecksumHeader, rpc.ChecksumKind, false)
	} else {
		e.field("grpc-status", "0", false)
	}
	if stable {
		e.blocks[which] = bytes.Clone(e.buf.Bytes())
	}
	return e.buf.Bytes()
}

// field never fails: it writes to memory. Fields that are once kept out of the table do not push
// out the others.
func (e *headerEncoder) field(name, value string, once bool) {
	_ = e.enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: once})
}

// with is a block that carries metadata, too. block is the last that was made.
func (e *headerEncoder) with(block []byte, md metadata.MD) []byte {
	if len(md) == 0 {
		return block
	}
	block = bytes.Clone(block)
	e.buf.Reset()
	rpc.EachHeader(md, func(name, value string) { e.field(name, value, true) })
	return append(block, e.buf.Bytes()...)
}

// plain is the block of an answer that is not gRPC, of so many bytes.
func (e *headerEncoder) plain(httpStatus, length int) []byte {
	e.resized = false
	e.buf.Reset()
	e.field(":status", strconv.Itoa(httpStatus), true)
	e.field("content-type", "text/plain", true)
	e.field("content-length", strconv.Itoa(length), true)
	if httpStatus == http.StatusMethodNotAllowed {
		e.field("allow", http.MethodPost, true)
	}
	return e.buf.Bytes()
}

// failure is the block of a call that ends with an error; only, if nothing was sent before.
func (e *headerEncoder) failure(st *status.Status, only bool) []byte {
	e.resized = false
	e.buf.Reset()
	if only {
		e.field(":status", "200", true)
		e.field("content-type", "application/grpc", false)
	}
	e.field(rpc.ChecksumHeader, rpc.ChecksumKind, true)
	e.field("grpc-status", strconv.Itoa(int(st.Code())), true)
	if m := st.Message(); m != "" {
		e.field("grpc-message", rpc.EncodeMessage(m), true)
	}
	if d := rpc.EncodeDetails(st); d != "" {
		e.field(rpc.StatusDetails, d, true)
	}
	return e.buf.Bytes()
}
