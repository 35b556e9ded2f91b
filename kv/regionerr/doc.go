// Package regionerr has the errors with which a store refuses commands to a region, as types: what
// serves them (a face, a storage) maps each to what its clients know. ToProto is the mapping of
// this project's own protocol.
//
// All but UnknownError say that nothing was done, or never will be.
package regionerr
