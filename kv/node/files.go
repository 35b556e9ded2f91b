package node

import (
	"go.uber.org/zap"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

const (
	// looseFiles is what of the disk's part is not for tables: segments of the raft log, files of
	// raft snapshots.
	looseFiles = 64
	// statusConns bounds the connections to the status port.
	statusConns = 32
)

// openTables is how many tables the engine may keep open; 0 is its default.
func (n *Node) openTables() int {
	if n.files.Limit == 0 {
		return 0
	}
	return min(max(n.files.Disk-looseFiles, 32), 1000)
}

// boundConns keeps the connections within what the process may have open.
func (n *Node) boundConns(o *rpc.Options) {
	if n.files.Limit == 0 {
		return
	}
	room := n.files.Conns - statusConns
	if o.MaxConns <= room {
		return
	}
	n.logger.Warn(
		"the limit of open files allows fewer connections than server.max-connections; raise it",
		zap.Int("limit", n.files.Limit), zap.Int("for-connections", room),
		zap.Int("max-connections", o.MaxConns))
	o.MaxConns = room
	o.MaxConnsPerHost = min(o.MaxConnsPerHost, room)
}
