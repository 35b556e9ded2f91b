// Package gcworker takes care of what transactions leave behind in a whole cluster: locks of
// clients that have died, old versions, records of rollbacks.
//
// One store at a time does it: the leader of the region with which the key space begins. Two that
// do it at once do no harm, since each step is idempotent and the placement service keeps the safe
// points.
//
// A round: locks whose time is over are resolved. The safe point of transactions is raised to now
// minus the life time, or up to the first barrier; from then on stores refuse older transactions.
// All their locks are resolved. Then the safe point of garbage follows, and each region's leader
// removes, by way of the log, what nobody can see any more.
//
// Invariant: when a record is removed, no transaction that began by the safe point has a lock
// anywhere in the cluster, nor can it get one: what became of a transaction is read from its
// primary's record, which may be among those removed.
//
// While a client takes care of the safe points itself, as TiKV's clients may, the worker leaves
// them alone; the locks and the garbage up to the client's safe point are still its work.
package gcworker
