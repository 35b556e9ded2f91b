//go:build unix

package cli

import "syscall"

// PrivateFiles has files that this process creates be for its user only, whatever creates them:
// 0600, and 0700 for directories.
func PrivateFiles() { syscall.Umask(0o077) }
