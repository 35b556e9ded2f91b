package server

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// oracle reads headers as the http2 package does, and makes a request of the fields one after the
// other.
func oracle(f *http2.MetaHeadersFrame) (r request, httpStatus int, err error) {
	r.timeout, r.length = -1, -1
	isGRPC, isPost, pseudo := false, false, map[string]bool{}
	for _, h := range f.Fields {
		switch h.Name {
		case ":path":
			r.path = h.Value
		case ":method":
			isPost = h.Value == "POST"
		case "content-type":
			isGRPC = rpc.IsGRPCType(h.Value)
		case "grpc-encoding":
			r.encoding = h.Value
		case "grpc-timeout":
			if r.timeout, err = rpc.ParseTimeout(h.Value); err != nil {
				return r, 0, status.Error(codes.Internal, err.Error())
			}
		case "te":
			if h.Value != "trailers" {
				return r, 0, errMalformed
			}
		case "connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding":
			return r, 0, errMalformed
		case "content-length":
			n, err := strconv.Atoi(h.Value)
			if err != nil || h.Value[0] == '+' || n < 0 || r.length >= 0 && r.length != int64(n) {
				return r, 0, errMalformed
			}
			r.length = int64(n)
		case rpc.ChecksumHeader:
			r.prefixes = h.Value == rpc.ChecksumPrefixKind
			r.checksum = r.prefixes || h.Value == rpc.ChecksumKind
		default:
			if rpc.IsReserved(h.Name) {
				break
			}
			if r.md, err = rpc.AppendMetadata(r.md, h.Name, h.Value); err != nil {
				return r, 0, err
			}
		}
		pseudo[h.Name] = true
	}
	switch {
	case !pseudo[":path"] || !pseudo[":method"] || !pseudo[":scheme"] || r.path == "" ||
		pseudo[":status"]:
		return r, 0, errMalformed
	case !isPost:
		return r, 405, status.Error(codes.Internal, "a call is a POST")
	case !isGRPC:
		return r, 415, status.Error(codes.InvalidArgument, "content-type is not application/grpc")
	case f.Truncated:
		return r, 0, status.Error(codes.ResourceExhausted, "headers larger than the limit")
	}
	return r, 0, nil
}

const headLimit = 1 << 10

// compareHeads reads the same frames with both, and ends at an error of the connection.
func compareHeads(t *testing.T, frames []byte) (recalled int) {
	t.Helper()
	theirs := http2.NewFramer(nil, bytes.NewReader(frames))
	theirs.ReadMetaHeaders = hpack.NewDecoder(rpc.TableSize, nil)
	theirs.MaxHeaderListSize = headLimit
	ours := http2.NewFramer(nil, bytes.NewReader(frames))
	var h requestHead
	h.init(headLimit)
	for block := 0; ; block++ {
		var want request
		var wantStatus int
		var wantErr error
		f, err := theirs.ReadFrame()
		var se http2.StreamError
		switch {
		case err == nil:
			mf, ok := f.(*http2.MetaHeadersFrame)
			if !ok {
				return recalled // another kind of frame, behind one that does not parse
			}
			want, wantStatus, wantErr = oracle(mf)
		case errors.As(err, &se):
			wantErr = errMalformed
		default:
			wantErr = err // of the connection, or the end of the frames
		}

		got, gotStatus, gotErr := request{}, 0, error(nil)
		for gotErr == nil {
			f, err := ours.ReadFrame()
			if errors.As(err, &se) {
				gotErr = errMalformed // the frame, not what is in it
				break
			}
			if err != nil {
				gotErr = err
				break
			}
			hf, first := f.(*http2.HeadersFrame)
			last := false
			if first {
				h.begin(hf)
				last, gotErr = hf.HeadersEnded(),
					h.read(hf.HeaderBlockFragment(), hf.HeadersEnded())
			} else {
				cf, ok := f.(*http2.ContinuationFrame)
				if !ok {
					return recalled
				}
				last, gotErr = cf.HeadersEnded(),
					h.read(cf.HeaderBlockFragment(), cf.HeadersEnded())
			}
			if gotErr == nil && last {
				if got, gotStatus, gotErr = h.request(); h.malformed {
					gotStatus, gotErr = 0, errMalformed
				}
				break
			}
		}
		refused := func(err error) bool {
			_, isStatus := status.FromError(err)
			return err == nil || err == errMalformed || isStatus
		}
		if !refused(wantErr) || !refused(gotErr) {
			require.Equal(t, refused(wantErr), refused(gotErr), "block %d: %v, but http2 says %v",
				block, gotErr, wantErr)
			return recalled
		}
		require.Equal(t, wantErr == errMalformed, gotErr == errMalformed,
			"block %d: %v, but http2 says %v", block, gotErr, wantErr)
		require.Equal(t, status.Convert(wantErr).Message(), status.Convert(gotErr).Message(),
			"block %d", block)
		require.Equal(t, wantStatus, gotStatus, "block %d", block)
		if wantErr == nil {
			require.Equal(t, want, got, "block %d", block)
		}
		recalled = len(h.known)
	}
}

// randomHeads is a sequence of calls from a client that likes some headers more than others.
func randomHeads(rng *rand.Rand) []byte {
	var out, block bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	enc := hpack.NewEncoder(&block)
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	rare := func() bool { return rng.IntN(25) == 0 }
	for id := uint32(1); id < 120; id += 2 {
		block.Reset()
		if rng.IntN(40) == 0 {
			enc.SetMaxDynamicTableSize(uint32(rng.IntN(rpc.TableSize)))
		}
		field := func(name, value string) {
			_ = enc.WriteField(hpack.HeaderField{
				Name: name, Value: value, Sensitive: rng.IntN(60) == 0,
			})
		}
		for _, f := range [][2]string{
			{":method", "POST"}, {":scheme", "http"},
			{":path", pick("/a/b", "/a/b", "/c/d", "/e/f", "/g/h", "/i/j")},
			{":authority", "host"}, {"content-type", "application/grpc"}, {"te", "trailers"},
		} {
			if !rare() {
				field(f[0], f[1])
			}
			if rare() {
				field(pick("content-length", "content-length", "x", "some-bin", "y"),
					pick("0", "17", "-1", "1", "YWI", "YWI="))
			}
			if rare() {
				field(pick(":path", ":method", ":scheme", ":status", ":protocol", "te", "x",
					"X-Big", "bad name", "connection", "grpc-encoding", "grpc-timeout",
					"content-type"),
					pick("", "GET", "trailers", "gzip", "5S", "bad\x00value",
						"application/grpc+proto", string(make([]byte, 900))))
			}
		}
		switch rng.IntN(6) {
		case 0:
		case 1:
			field("grpc-timeout", pick("1S", "20m", "x", "99999999n"))
		default: // as our own client does
			v := pick("1S", "20m", "123456u", "99999999n", "0n", "7", "77x", "1 S")
			block.WriteString("\x00\x0cgrpc-timeout" + string(rune(len(v))) + v)
		}
		data := block.Bytes()
		if rare() {
			data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		}
		n := len(data)
		if rng.IntN(8) == 0 {
			n = rng.IntN(len(data) + 1)
		}
		_ = fr.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: data[:n], EndHeaders: n == len(data),
		})
		if n < len(data) {
			_ = fr.WriteContinuation(id, true, data[n:])
		}
	}
	return out.Bytes()
}

// TestHeadersAreReadAsHTTP2Does: with blocks that are remembered or not.
func TestHeadersAreReadAsHTTP2Does(t *testing.T) {
	remembered := 0
	for seed := range uint64(3000) {
		remembered += compareHeads(t, randomHeads(rand.New(rand.NewPCG(seed, 1))))
	}
	require.NotZero(t, remembered)
}

func FuzzRequestHead(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(randomHeads(rand.New(rand.NewPCG(seed, 2))))
	}
	f.Fuzz(func(t *testing.T, frames []byte) { fuzzHead(t, frames) })
}

// fuzzHead compares what both make of frames, if they are all of headers and not much too long.
func fuzzHead(t *testing.T, frames []byte) {
	fr := http2.NewFramer(nil, bytes.NewReader(frames))
	for {
		f, err := fr.ReadFrame()
		if errors.As(err, new(http2.StreamError)) {
			continue
		}
		if err != nil {
			break
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			if bytes.Contains(f.HeaderBlockFragment(), []byte("trailer")) ||
				len(f.HeaderBlockFragment()) > headLimit {
				return // http2 counts the field trailer in its own way, and what is far too long
			}
		case *http2.ContinuationFrame:
			if len(f.HeaderBlockFragment()) > headLimit/4 {
				return
			}
		default:
			return
		}
	}
	compareHeads(t, frames)
}

// TestKnownBlocksAreNotDecodedAgain: the calls of one client, but for their timeouts, until
// something enters the table.
func TestKnownBlocksAreNotDecodedAgain(t *testing.T) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	var h requestHead
	h.init(headLimit)
	call := func(path, timeout string, more ...string) (decoded bool) {
		block.Reset()
		for _, f := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", path},
			{"content-type", "application/grpc"}, {"te", "trailers"},
		} {
			require.NoError(t, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		for _, name := range more {
			require.NoError(t, enc.WriteField(hpack.HeaderField{Name: name, Value: "v"}))
		}
		if timeout != "" {
			block.WriteString("\x00\x0cgrpc-timeout" + string(rune(len(timeout))) + timeout)
		}
		h.begin(&http2.HeadersFrame{})
		emits := 0
		h.dec.SetEmitFunc(func(f hpack.HeaderField) { emits++; h.take(f) })
		require.NoError(t, h.read(block.Bytes(), true))
		r, _, err := h.request()
		require.NoError(t, err)
		require.Equal(t, path, r.path)
		require.Equal(t, timeout == "", r.timeout < 0)
		return emits > 0
	}
	require.True(t, call("/a/b", "1S"), "it enters the table")
	require.True(t, call("/a/b", "2S"), "it is all in the table for the first time")
	require.False(t, call("/a/b", "3S"))
	require.False(t, call("/a/b", ""))
	require.True(t, call("/c/d", "1S"))
	require.True(t, call("/c/d", "1S"))
	require.True(t, call("/a/b", "1S"), "the second path has moved the first in the table")
	require.False(t, call("/a/b", "5m"))
	require.False(t, call("/c/d", "5m"))
	require.True(t, call("/c/d", "5m", "x-other"))
	require.True(t, call("/c/d", "5m"))
	require.False(t, call("/c/d", "5m"))
}

// TestKnownBlocksKeepTheLimit: a timeout counts as it does in a block that is decoded.
func TestKnownBlocksKeepTheLimit(t *testing.T) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	var h requestHead
	size := uint32(0)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/a/b"},
		{"content-type", "application/grpc"},
	} {
		size += hpack.HeaderField{Name: f[0], Value: f[1]}.Size()
	}
	h.init(size + timeoutSize("1S"))
	for range 3 {
		for _, timeout := range []string{"1S", "10S"} {
			block.Reset()
			for _, f := range [][2]string{
				{":method", "POST"}, {":scheme", "http"}, {":path", "/a/b"},
				{"content-type", "application/grpc"},
			} {
				require.NoError(t, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
			}
			block.WriteString("\x00\x0cgrpc-timeout" + string(rune(len(timeout))) + timeout)
			h.begin(&http2.HeadersFrame{})
			require.NoError(t, h.read(block.Bytes(), true))
			_, _, err := h.request()
			require.Equal(t, timeout == "10S", status.Code(err) == codes.ResourceExhausted,
				"%s: %v", timeout, err)
		}
	}
}

func TestSimpleBlocks(t *testing.T) {
	for block, want := range map[string]bool{
		"\x83\x86": true, "\x83\xfe\x00\x0cgrpc-timeout\x021S": true,
		"\xc0\x00\x0cgrpc-timeout\x09123456789": true,
		"":                                      false, "\x80": false, "\x83\x40": false,
		"\x20\x83": false, "\x00\x0cgrpc-timeout\x021S": false,
		// Field 127 of the table, in two bytes; the second looks like the beginning of a literal.
		"\x83\xff\x00\x0cgrpc-timeout\x021S":     false,
		"\x83\x00\x0cgrpc-timeout\x031S":         false, // too short
		"\x83\x00\x0cgrpc-timeout\x021S\x83":     false,
		"\x83\x00\x0cgrpc-timeout\x0a1234567890": false,
		"\x83\x00\x0cgrpc-timeout\x821S":         false, // Huffman's code
		"\x83\x00\x0cgrpc-timeout\x021\x00":      false,
		"\x83\x10\x0cgrpc-timeout\x021S":         false,
		"\x83\x00\x0cgrpc-timeoux\x021S":         false,
		"\x83\x00\x0cgrpc-timeout":               false,
		"\x83\x00\x0cgrpc-timeout\x00":           false,
	} {
		_, _, ok := simpleBlock([]byte(block))
		require.Equal(t, want, ok, "%q", block)
	}
}
