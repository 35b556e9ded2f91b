// Package engine_util has the names of column families that test suites of the course use. Servers
// use package engine.
package engine_util

// The column families.
const (
	CfDefault = "default"
	CfWrite   = "write"
	CfLock    = "lock"
)
