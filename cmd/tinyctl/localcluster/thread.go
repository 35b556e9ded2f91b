package localcluster

import "runtime"

// lockThread runs f on a thread of its own that ends with f.
func lockThread(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
}
