//go:build !linux

package goruntime

func calmMonitor([]string) {} // no timer slack there
