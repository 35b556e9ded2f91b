//go:build unix

package client

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tryWriter writes what the kernel takes at once.
type tryWriter func([]byte) (int, error)

// newTryWriter returns nil if there is no such thing for nc.
func newTryWriter(nc net.Conn) tryWriter {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return func(b []byte) (n int, err error) {
		werr := rc.Write(func(fd uintptr) bool {
			for {
				if n, err = unix.Write(int(fd), b); err != unix.EINTR {
					return true
				}
			}
		})
		n = max(n, 0)
		if err == unix.EAGAIN {
			err = nil
		}
		if werr != nil {
			err = werr
		}
		return n, err
	}
}
