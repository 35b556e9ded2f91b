// Package planted builds known bugs into the servers which the project's own tests must find: a net
// that catches nothing is not known to be one. See docs/testing.md for what was caught how fast.
package planted
