//go:build !chaos

package node

// beforeSync does nothing; the tests that make disks slow or broken replace it (build tag chaos).
func beforeSync() error { return nil }
