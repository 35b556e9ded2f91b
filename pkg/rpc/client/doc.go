// Package client is a gRPC client whose callers write themselves.
//
// grpc's own client hands every call to a goroutine that writes. Here the caller puts its frames
// into the connection's output and writes that, as far as the kernel takes it at once; calls that
// come together leave together. The goroutine that reads keeps the answer's bytes for the caller,
// who decodes them.
//
// Generated clients call over a Client (grpc.ClientConnInterface), and any gRPC server can answer.
//
// The life of a call: call.go, receive.go, stream.go. That of a connection: client.go, link.go,
// write.go.
package client
