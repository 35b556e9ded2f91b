// Package rpc is gRPC between clients and stores: a server that answers on the goroutine that reads, and a client whose
// callers write themselves.
//
// grpc's own server hands every call from the goroutine that reads the connection to one that handles it and from
// there to one that writes. For a store, whose reads take a few microseconds, those hand-overs and what they
// allocate are four fifths of the work (docs/benchmarks.md). Here one goroutine owns the reading side of a
// connection: it parses a frame, and if the call's handler can answer at once, or promises to answer later without
// a goroutine of its own, it is called right there; the answer goes into the connection's output, which is written when
// nothing more has arrived. All other handlers run on goroutines as usual.
//
// grpc's own client hands every call to a goroutine that writes, too. Here the caller puts its frames into the
// connection's output and writes that, as far as the kernel takes it at once; calls that come together leave together.
// The goroutine that reads keeps the answer's bytes for the caller, who decodes them.
//
// The protocol is gRPC over HTTP/2 (RFC 9113 and grpc's PROTOCOL-HTTP2.md) without TLS: unary calls and streams,
// deadlines, cancellation, messages that come compressed, flow control both ways, keep-alive, GOAWAY. Frames and header
// compression are golang.org/x/net/http2's. There is no metadata: headers that gRPC does not define are dropped.
//
// Services register with their generated code (grpc.ServiceRegistrar), and generated clients call over a Client
// (grpc.ClientConnInterface), so that whatever was written for grpc runs here. What is different is HandleInline and
// OnMessage, for those that need no goroutine. Either side speaks to grpc's own other side as well.
//
// What a server holds for its clients is bounded: connections (server_conns.go), requests that are not complete or not
// answered (intake.go), answers that are not taken (answers.go).
//
// server*.go is the server, client*.go the client; output.go and inbox.go belong to both.
package rpc
