// Package callroom bounds what the clients of a gRPC server make it hold, in sum over all of their
// connections.
//
// grpc-go bounds one message, and the calls of one connection. It does not bound the sum: a server
// reads on while messages are incomplete, whatever the window of the connection is, because that
// window opens again when bytes arrive, not when a handler has read them. So a connection could
// hold its calls times the largest message.
//
// A Room counts at the connection, where all bytes pass. Each call is charged with
//
//   - a fixed amount, for its goroutine and its part of the maps;
//   - its headers as they were sent;
//   - its last message, from the first byte until the next message begins or the server ends the
//     call, so also while a handler works on it; or, if that is more, what arrived and was not read
//     yet.
//
// Once the sum passes the limit, a connection is closed: the one with the largest charge, of the
// address with the largest charge. Clients that hold little are not touched as long as others hold
// more.
//
// It does not charge answers, and not what a handler keeps after its client has reset the call.
//
// Concurrency: all types are safe for concurrent use. Lock order: Room.shedding < Room.mu; a
// Conn.mu is a leaf.
package callroom
