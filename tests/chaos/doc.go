// Package chaos runs the real binaries as processes, lets clients work on shared keys, breaks
// things, and checks that the history of what the clients saw is linearizable and that the replicas
// agree.
package chaos
