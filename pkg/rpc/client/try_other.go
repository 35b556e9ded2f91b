//go:build !unix

package client

import "net"

// tryWriter writes what the kernel takes at once.
type tryWriter func([]byte) (int, error)

// newTryWriter returns nil: the writing goroutine does it all.
func newTryWriter(net.Conn) tryWriter { return nil }
