// Package tikv is the face that clients of TiKV know a store by: tikvpb.Tikv, its raw part.
//
// The face decodes, calls kv/storage, and puts the outcome into TiKV's words. No rule of the store
// is in here. A request comes as a call of its own or within BatchCommands; both go the same way.
// What needs no goroutine is answered on the one that reads the connection, as in the native face.
//
// The calls of transactions, coprocessors and of TiKV's own servers are not served. As calls of
// their own they answer Unimplemented; within a batch they get an answer of their kind that says
// so, because the stream must go on.
package tikv
