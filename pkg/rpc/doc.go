// Package rpc is gRPC over HTTP/2 (RFC 9113, RFC 7541 and grpc's PROTOCOL-HTTP2.md), made for
// stores: a server that answers on the goroutine that reads (pkg/rpc/server), and a client whose
// callers write themselves (pkg/rpc/client). Why there is one beside grpc-go, and how it is held to
// the standard, is in docs/rpc.md.
//
// This package is the core: what both roles need, each once. An Outgoing is the sending half of a
// connection with its windows, a Sender that of a stream; an Incoming is the receiving half of a
// connection, an Assembler puts the messages of a stream together, and an Inbox holds them until
// they are taken. KeepAlive finds connections whose other side is gone, Checksum finds messages
// that were damaged on their way, a Budget bounds what many hold together. Frames and header
// compression are golang.org/x/net/http2's. The rooms own the connections; nothing here starts a
// goroutine or has a lock of its own but for Inbox.
//
// # Locks
//
// A connection has one lock, its role's. A method named ...Locked is called with it and holds it
// until it returns. What gives the lock up in between, to write or to wait, is named ...Yielding:
// it is called with the lock and returns with it, and what its caller has read under the lock
// before it may have changed. Nothing named ...Locked calls it; tests/arch sees to that.
package rpc
