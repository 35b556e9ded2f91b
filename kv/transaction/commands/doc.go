// Package commands carries out the commands of transactions on one region: it reads, decides and
// writes.
//
// The life of a command that writes: the latches of its keys -> a view of the region, with the term
// of leadership that it belongs to -> the decision, which is a pure function of the view -> a write
// that is bound to that term -> the outcome, with which the latches go back. What is replicated are
// puts and deletes, so all replicas agree.
//
// Why two decisions about a key never miss each other: under one leader the latch keeps the second
// one waiting until the first one's write is in the engine, or certainly never will be. Under
// different leaders the second one's view is taken after an entry of its own term is applied, and
// then whatever an earlier leader has written is in it or lost; and what an earlier leader decides
// later is refused, because it is bound to its term.
//
// Invariant: latches are given back when the outcome of the write is known, never at a deadline. A
// write whose outcome this store will not learn keeps its latches: they belong to a term that has
// ended.
//
// Every command may be sent again: clients do so when an answer is lost.
package commands
