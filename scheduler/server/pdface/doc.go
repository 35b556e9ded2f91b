// Package pdface is the face that clients of TiKV know the placement service by: pdpb.PD, with the
// two small services that its clients look for beside it, meta_storagepb.MetaStorage and
// keyspacepb.Keyspace.
//
// The face translates. A call that the native service has goes to the native service, and its
// answer is put into PD's words; the rest goes to Backend. No rule of the placement service is in
// here. What this project does not have is refused with a sentence that says so, or, where clients
// look for the text "Unimplemented", with that code.
package pdface
