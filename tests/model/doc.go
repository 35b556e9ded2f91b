// Package model searches all interleavings of the region merge protocol on a small cluster, breadth
// first, before there is code of it and beside it.
//
// It is a model, not the code: two regions S (the source) and T (the target) on three stores, with
// a fourth that may take a replica of T. What is in a state is what survives or is on its way:
//
//   - of S each replica's term, log, applied index and state; elections, replication entry by
//     entry, leaders of old terms that go on appending, crashes;
//   - of T its committed log, of entries that change its epoch, and how far each replica has
//     applied it: by log, or by a raft snapshot that may have been built any time before. Replicas
//     are removed and added again, and learn that from their log or from a message;
//   - messages never leave the network once sent, so each may be late, doubled, or, as its step
//     need not be taken, lost.
//
// # The protocol
//
// PrepareMerge, entry P of S's log with T's epoch T0, freezes S: nothing is served, no other entry
// takes effect. Each replica that has it applied and synced acknowledges it. With the
// acknowledgements of all replicas S's leader sends Ready, and a leader of T that is exactly at T0,
// with all replicas initialized, proposes CommitMerge(S, P), which takes effect only at T0. Where
// it is applied, S's replica becomes a merged tombstone in the same batch. A raft snapshot of T
// from behind it takes S's range over, in one batch too. Any other change of T's epoch refuses the
// merge for ever; RefuseMerge is one that does nothing else. Only with proof of a refusal is
// RollbackMerge(P) proposed in S. Proof is a replica or tombstone of T beyond T0 whose list of
// merges has not dropped what is newer than T0 and does not name (S, P); or, after an epoch of T
// beyond T0 was seen, the answer of all stores of S, asked anew, that S is frozen there.
//
// # What must hold
//
//	M1  no two regions serve one key: no leader of S serves once CommitMerge is in T's log, and no entry takes effect
//	    in S while it is frozen
//	M2  not both RollbackMerge(P) in S's log and CommitMerge(S, P) in T's
//	M3  T applies CommitMerge by log only over a replica of S that is frozen by P
//	M4  the version of the joined region is greater than that of any part
//	M5  replicas of S end only if CommitMerge took effect
//	M6  the data of S stays on a store while T's replica there can still apply CommitMerge by log
//	End from every state there is a way to the end of the merge, with all stores up and all messages on the way lost;
//	    replicas of T that are behind may all depend on raft snapshots
//
// Wrong variants of the protocol are in variant.go; the search finds each of them.
//
// What it leaves out: time, so also leases of deposed leaders; raft snapshots and members of S;
// steps inside a batch; the quorum of T, whose log is what it has committed.
package model
