//go:build chaos

package node

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/kv/vfs/undo"
)

// raftLogFiles tells the journal of the process, if it keeps one, of all that is done.
func raftLogFiles() (vfs.FS, error) {
	j, err := undo.OfProcess()
	if err != nil || j == nil {
		return vfs.OS, err
	}
	return j.FS(vfs.OS), nil
}

// beforeSync makes the disk under the raft log slow or broken, as the file named by
// TINYKV_CHAOS_DISK says at the moment: a duration such as "200ms" that each sync takes longer, or
// "fail".
func beforeSync() error {
	data, err := os.ReadFile(os.Getenv("TINYKV_CHAOS_DISK"))
	if err != nil {
		return nil // no such file: the disk is well
	}
	text := strings.TrimSpace(string(data))
	if text == "fail" {
		return fmt.Errorf("injected: %w", syscall.EIO)
	}
	if d, err := time.ParseDuration(text); err == nil {
		time.Sleep(d)
	}
	return nil
}
