//go:build !linux || cgo

package timerslack

// calmMonitor does nothing: there is no timer slack, or the program is linked with C, whose runtime has a thread that
// makes others and that nobody can reach.
func calmMonitor() {}
