// Package planted builds known bugs into the servers and wants the project's own tests to find them: a
// net that catches nothing is not known to be one. See docs/testing.md for what was caught how fast.
package planted
