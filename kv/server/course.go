package server

import (
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/latches"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/clustermode"
)

// NewServer is the service of transactions over a storage in memory, in the format and by the rules
// of the course, for its test suites.
func NewServer(mem *storage.MemStorage) *Server {
	cfg := config.Default()
	s := New(cfg, mem.Storage(), nil, nil, zap.NewNop())
	s.Latches = latches.NewLatches()
	s.mode = clustermode.Txn
	s.txn = commands.New(mem.Storage(), commands.Policy{
		Codec: mvcc.CodecCourse, MissingCommits: true,
		Validate: func(mods []storage.Modify, keys [][]byte) {
			s.Latches.Validate(mvcc.TxnOf(mods), keys)
		},
	}, cfg.Server.RequestTimeout.Duration)
	return s
}
