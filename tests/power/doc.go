// Package power takes the power from a whole cluster of real processes at one moment, again and
// again. Their data directories are on a file system that forgets what was not synced, names and
// directories too (package forgetful). What was acknowledged must be there afterwards.
package power
