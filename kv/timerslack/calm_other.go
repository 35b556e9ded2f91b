//go:build !linux

package timerslack

func calmMonitor() {} // no timer slack there
