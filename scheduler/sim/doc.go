// Package sim drives the real region map, controller and planner with simulated stores on a virtual
// clock. One seed gives one run; nothing in it waits.
//
// Simulated stores carry out commands the way stores do: a command must match the region's epoch, a
// membership change needs a majority of voters that have the data, a new replica takes the time of
// its snapshot, a dead leader is replaced after an election timeout. Heartbeats can be lost,
// delayed (and so reordered), and a partitioned store goes on reporting what it believed to lead.
//
// While a run goes on, invariants are checked: the map's indexes and counters agree with a recount,
// no command of ours takes the majority of a region's healthy voters away, no store is buried while
// it holds data.
//
// Scenarios are text files under testdata, one theme a file.
package sim
