// Package server is a gRPC server that answers on the goroutine that reads.
//
// grpc's own server hands every call from the goroutine that reads the connection to one that
// handles it and from there to one that writes. For a store, whose reads take a few microseconds,
// those hand-overs and what they allocate are four fifths of the work (docs/benchmarks.md). Here
// one goroutine owns the reading side of a connection: it parses a frame, and if the call's handler
// can answer at once, or promises to answer later without a goroutine of its own, it is called
// right there; the answer goes into the connection's output, which is written when nothing more has
// arrived. All other handlers run on goroutines as usual.
//
// Services register with their generated code (grpc.ServiceRegistrar), so that whatever was written
// for grpc runs here. What is different is HandleInline and OnMessage, for those that need no
// goroutine. Any gRPC client can call.
//
// What a server holds for its clients is bounded: connections (conns.go), requests that are not
// complete or not answered (intake.go), answers that are not taken (room.go).
//
// The life of a call: call.go, receive.go, answer.go, stream.go. That of a connection: serve.go,
// conn.go, write.go.
package server
