// Package loadgen puts a closed-loop load on a key-value store and measures it: every worker has
// one request under way at a time and sends the next when it is answered. What is loaded is a
// Driver, so the same keys, values and clock serve TinyKV and whatever it is compared with.
//
// A phase begins with a warm-up that counts nothing. What is counted are the operations that end
// within the measured time; a request that the end of the phase cuts off is neither an operation
// nor an error. The CPU time and memory of the servers are read from the operating system when the
// servers are processes of this machine.
package loadgen
