//go:build linux || darwin

package descriptors

import "syscall"

// raise lifts the soft limit to the hard one, and returns the limit that holds. A kernel that
// allows less than the hard limit keeps the soft one: that is no error.
func raise() (uint64, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, err
	}
	if l.Cur >= l.Max {
		return l.Cur, nil
	}
	soft := l.Cur
	l.Cur = l.Max
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return soft, nil //nolint:nilerr // what there is has to do
	}
	return l.Cur, nil
}
