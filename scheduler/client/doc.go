// Package client is the client of the placement service: stores, routers and tools use it.
//
// It finds the placement leader by GetMembers, keeps one connection per member, and follows the
// leader when it changes. Every unary call has a deadline and is tried again, with growing pauses,
// while its context allows: a call fails with the caller's context error or with an answer that
// trying again cannot change (a sentinel error below), not because a leader was being replaced.
//
// Region heartbeats never block: they are merged by region (the newest wins) and sent by one
// goroutine. After a new stream was bound, to the same or another leader, the reconnect handler is
// called, so that the store sends the heartbeats of all regions it leads again.
//
// Timestamps are batched: concurrent GetTS calls share one request.
package client
