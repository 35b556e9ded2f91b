// Package conformance holds the project's gRPC to suites that others have written: h2spec, which
// speaks HTTP/2 to a store's port and to clients, and gRPC's interoperability cases, with the
// client and the server of pkg/rpc each against grpc-go's and against each other. It is a module of
// its own, so that the suites' libraries are none of the servers'.
//
// `make conformance` prints the counts; docs/rpc.md has them.
package conformance
