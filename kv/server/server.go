// Package server is the gRPC face of a store: it decodes requests, checks their shape and size, calls
// the storage, and sorts errors into region errors, messages and RPC statuses. One file per group of
// RPCs.
package server

import (
	"errors"
	"io"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/rpc"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/latches"
	"github.com/tinykv/tinykv/kv/transport"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/codec"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// RaftHandler takes raft messages from other stores; its methods never block.
type RaftHandler interface {
	HandleRaft(m *rspb.RaftMessage) error
	// HandleRaftBatch takes messages that came together; dropped hears of those not taken.
	HandleRaftBatch(msgs []*rspb.RaftMessage, dropped func(m *rspb.RaftMessage, why error))
}

// Server implements tinykvpb.TinyKvServer. RPCs that this version does not serve answer Unimplemented.
type Server struct {
	tinykvpb.UnimplementedTinyKvServer
	cfg     *config.Config
	storage storage.Storage
	raft    RaftHandler
	snaps   *snap.Manager
	logger  *zap.Logger
	// local and async are the storage, if it can do that.
	local storage.LocalGetter
	async storage.AsyncWriter
	gate  *gate.Gate
	// mode is the cluster's; txn carries out transactions and is nil where they are refused.
	mode clustermode.Mode
	txn  *commands.Executor
	// Latches are set by NewServer only, and then are what its commands are checked with.
	Latches *latches.Latches
	// forward passes requests on to other stores.
	forward forwarder
}

// New makes the service; raft and snaps are nil for an unreplicated store.
func New(cfg *config.Config, st storage.Storage, raft RaftHandler, snaps *snap.Manager, logger *zap.Logger) *Server {
	s := &Server{cfg: cfg, storage: st, raft: raft, snaps: snaps, logger: logger, gate: new(gate.Gate)}
	s.local, _ = st.(storage.LocalGetter)
	s.async, _ = st.(storage.AsyncWriter)
	return s
}

// SetPeers lets the service pass requests on to other stores. To be called before it serves.
func (s *Server) SetPeers(p Peers) { s.forward.peers = p }

// Gate is what decides which gets are answered at once; the store's other face shares it.
func (s *Server) Gate() *gate.Gate { return s.gate }

// MinKeepAlive is how long a client must leave between two pings of an idle connection. Known clients ping every 10 s,
// also without a call.
const MinKeepAlive = 2 * time.Second

// Options are the limits of the gRPC server that the service relies on.
func Options(cfg *config.Config) rpc.Options {
	limit := int(cfg.Server.GRPCMaxMessage)
	return rpc.Options{
		MaxRecv: limit, MaxSend: limit, MaxStreams: cfg.Server.GRPCMaxStreams, MinPing: MinKeepAlive, Codec: codec.New(),
	}
}

// Register makes a gRPC server serve svc. Calls that need not wait for anyone are answered where they are read.
func Register(g *rpc.Server, svc *Server) {
	tinykvpb.RegisterTinyKvServer(g, svc)
	svc.registerInline(g)
}

func (s *Server) noRaft() error {
	if s.raft == nil {
		return status.Error(codes.FailedPrecondition, "this store is not replicated")
	}
	return nil
}

// Raft implements tinykvpb.TinyKvServer.
func (s *Server) Raft(stream tinykvpb.TinyKv_RaftServer) error {
	if err := s.noRaft(); err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&rspb.Done{})
		}
		if err != nil {
			return err
		}
		s.handleRaft(m)
	}
}

// RaftBatch implements tinykvpb.TinyKvServer. Since the store takes messages without waiting, the goroutine that reads
// them hands them over.
func (s *Server) RaftBatch(stream tinykvpb.TinyKv_RaftBatchServer) error {
	if err := s.noRaft(); err != nil {
		return err
	}
	if st := rpc.StreamOf(stream.Context()); st != nil {
		st.OnMessage(func(msg []byte) bool {
			msgs, err := transport.DecodeBatch(msg)
			if err != nil {
				return false // Recv reports it
			}
			s.handleRaft(msgs...)
			return true
		})
	}
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&rspb.Done{})
		}
		if err != nil {
			return err
		}
		s.handleRaft(batch.Msgs...)
	}
}

// handleRaft routes messages. A dropped one is no error: raft sends it again.
func (s *Server) handleRaft(msgs ...*rspb.RaftMessage) {
	msgs = slices.DeleteFunc(msgs, func(m *rspb.RaftMessage) bool {
		// A raft snapshot comes by the Snapshot RPC only, after its files.
		return m == nil || m.GetMessage().GetSnapshot() != nil
	})
	s.raft.HandleRaftBatch(msgs, func(m *rspb.RaftMessage, why error) {
		s.logger.Debug("dropped raft message", zap.Uint64("region-id", m.RegionId), zap.Error(why))
	})
}

// Snapshot implements tinykvpb.TinyKvServer.
func (s *Server) Snapshot(stream tinykvpb.TinyKv_SnapshotServer) error {
	if err := s.noRaft(); err != nil {
		return err
	}
	check := func(m *rspb.RaftMessage) error {
		if m.GetToPeer() == nil || m.GetFromPeer() == nil || m.RegionEpoch == nil {
			return errors.New("snapshot message without peers or epoch")
		}
		return nil
	}
	return transport.ReceiveSnapshot(stream, s.snaps, check, s.raft.HandleRaft)
}
