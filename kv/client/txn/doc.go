// Package txn is the client of transactions: snapshot isolation over all keys of a cluster in mode
// txn (docs/transactions.md).
//
// The life of a transaction: Begin takes a start timestamp; reads see the state of that moment;
// writes are kept here until Commit. Commit prewrites: each key gets a lock that names one of them,
// the primary. Then it takes the commit timestamp and commits the primary. That is the moment of
// decision: with it, the transaction has happened. The other keys follow in the background; a
// reader that meets one of their locks asks the primary and commits the key itself.
//
// Invariant: the primary is prewritten before any other key is sent. A reader that finds a lock
// whose primary was never prewritten rolls the transaction back.
package txn
