package netproxy

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// socketInode finds the dialer's end of a connection on the loopback interface: the socket whose
// local port and remote port are these. Empty if there is none any more.
func socketInode(local, remote int) string {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		inode := scanTable(bufio.NewScanner(f), local, remote)
		_ = f.Close()
		if inode != "" {
			return inode
		}
	}
	return ""
}

// scanTable reads lines of the form "sl local_address rem_address st ... inode ...", addresses in
// hexadecimal with the port after the colon.
func scanTable(sc *bufio.Scanner, local, remote int) string {
	wantLocal, wantRemote := fmt.Sprintf(":%04X", local), fmt.Sprintf(":%04X", remote)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) > 9 && strings.HasSuffix(f[1], wantLocal) &&
			strings.HasSuffix(f[2], wantRemote) && f[9] != "0" {
			return f[9]
		}
	}
	return ""
}

// owns tells whether the process has the socket open.
func owns(pid int, inode string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	want := "socket:[" + inode + "]"
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == want {
			return true
		}
	}
	return false
}
