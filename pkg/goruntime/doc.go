// Package goruntime sets what Go's runtime does by itself to what servers and load generators need:
// how early the garbage collector begins (heap.go) and how often the runtime's monitor thread wakes
// up (monitor.go). Each main asks for it.
package goruntime
