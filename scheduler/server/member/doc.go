// Package member elects the placement leader.
//
// There is no etcd lease and no tie to the etcd leader. The leader renews one key; the renewal is a
// quorum write. The others time the renewals they observe and take over when none came for a
// while:
//
//	leader:   every TTL/4: sent := now; If(ModRevision(leader) == mine) Then(Put(leader))
//	          on success mine = revision, validUntil = sent + TTL; past validUntil it steps down
//	follower: seenAt = now on every revision of the key; after 1.1*TTL of silence, or when the key
//	          is deleted: If(ModRevision(leader) == last seen) Then(Put(leader, me), Put(term+1))
//
// Why it is safe: validUntil counts from before the write that succeeded, a follower counts from
// after it saw it, and the compare fails if a renewal slipped in between. All it needs is that
// clocks run at the same rate within 10 %, like any lease.
//
// Why not etcd's lease: a lessor on a stalled disk keeps its lease alive, a new etcd leader
// refreshes all leases (so that co-located crashes take longer), and a leader that must also be the
// etcd leader can hang the title. Here a member whose disk stalls cannot renew and loses validity
// by itself.
//
// Every write of a leader carries Leadership.Fence, a compare of the term, so that even a leader
// whose clock misbehaves writes nothing after it was replaced.
package member
