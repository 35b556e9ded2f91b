// Package damage harms the files of one store of a replicated group and starts it again: whole
// stores over real files, in one process. The packages of the raft log, the engines and the
// snapshot files do the same with their own files, thousands of times; here it is seen what a store
// makes of it.
package damage
