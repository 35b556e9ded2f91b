// Package server is the gRPC face of a store: it decodes requests, checks their shape and size, calls
// the storage, and sorts errors into region errors, messages and RPC statuses. One file per group of
// RPCs.
package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/rpcserver"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transport"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
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
	gate  gate
}

// New makes the service; raft and snaps are nil for an unreplicated store.
func New(cfg *config.Config, st storage.Storage, raft RaftHandler, snaps *snap.Manager, logger *zap.Logger) *Server {
	s := &Server{cfg: cfg, storage: st, raft: raft, snaps: snaps, logger: logger}
	s.local, _ = st.(storage.LocalGetter)
	s.async, _ = st.(storage.AsyncWriter)
	return s
}

// MinKeepAlive is how long a client must leave between two pings of an idle connection. Known clients ping every 10 s,
// also without a call.
const MinKeepAlive = 2 * time.Second

// Options are the limits of the gRPC server that the service relies on.
func Options(cfg *config.Config) rpcserver.Options {
	limit := int(cfg.Server.GRPCMaxMessage)
	return rpcserver.Options{
		MaxRecv: limit, MaxSend: limit, MaxStreams: cfg.Server.GRPCMaxStreams, MinPing: MinKeepAlive, Codec: codec.New(),
	}
}

// Register makes a gRPC server serve svc. Calls that need not wait for anyone are answered where they are read.
func Register(g *rpcserver.Server, svc *Server) {
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

// RaftBatch implements tinykvpb.TinyKvServer.
func (s *Server) RaftBatch(stream tinykvpb.TinyKv_RaftBatchServer) error {
	if err := s.noRaft(); err != nil {
		return err
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

// BatchCommands implements tinykvpb.TinyKvServer: many requests on one stream, answered in any order.
// Replies that are ready together leave together.
func (s *Server) BatchCommands(stream tinykvpb.TinyKv_BatchCommandsServer) error {
	b := &batchStream{server: s, stream: stream, wake: make(chan struct{}, 1), slots: make(chan struct{}, maxBatchInflight)}
	ctx, cancel := context.WithCancel(stream.Context())
	sent := make(chan struct{})
	// Owned by this call: ends when the stream does.
	go func() {
		defer close(sent)
		b.send(ctx)
	}()
	var err error
	for {
		var req *kvrpcpb.BatchCommandsRequest
		if req, err = stream.Recv(); err != nil {
			break
		}
		for _, c := range req.Commands {
			if c == nil {
				continue
			}
			if b.answerNow(c) {
				continue
			}
			b.slots <- struct{}{} // a client that sends more than it may waits
			b.wg.Add(1)
			if !b.startWrite(c) {
				// Bounded by slots; each ends with its request's deadline.
				go b.handle(ctx, c)
			}
		}
	}
	if errors.Is(err, io.EOF) {
		b.wg.Wait()
		b.flush()
		err = nil
	}
	cancel()
	<-sent
	b.wg.Wait()
	return err
}

// maxBatchInflight bounds the requests in flight on one stream.
const maxBatchInflight = 4096

type batchStream struct {
	server *Server
	stream tinykvpb.TinyKv_BatchCommandsServer
	wg     sync.WaitGroup
	wake   chan struct{}
	slots  chan struct{}
	mu     struct {
		sync.Mutex
		replies []*kvrpcpb.BatchReply
		sending sync.Mutex
	}
}

// timeout is how long a request may take.
func (b *batchStream) timeout(c *kvrpcpb.BatchCommand) time.Duration {
	timeout := b.server.cfg.Server.RequestTimeout.Duration
	if d := time.Duration(c.TimeoutMs) * time.Millisecond; d > 0 && d < timeout {
		timeout = d
	}
	return timeout
}

// handled gives back what a request held.
func (b *batchStream) handled() {
	<-b.slots
	b.wg.Done()
}

func (b *batchStream) handle(ctx context.Context, c *kvrpcpb.BatchCommand) {
	defer b.handled()
	ctx, cancel := context.WithTimeout(ctx, b.timeout(c))
	defer cancel()
	reply := &kvrpcpb.BatchReply{Id: c.Id}
	var err error
	switch {
	case c.Get != nil:
		reply.Get, err = b.server.RawGet(ctx, c.Get)
	case c.Put != nil:
		reply.Put, err = b.server.RawPut(ctx, c.Put)
	case c.Delete != nil:
		reply.Delete, err = b.server.RawDelete(ctx, c.Delete)
	case c.Scan != nil:
		reply.Scan, err = b.server.RawScan(ctx, c.Scan)
	default:
		err = status.Error(codes.InvalidArgument, "a batch command without a request")
	}
	b.reply(reply, err)
}

// answerNow carries out a get that need not wait for anyone, without a goroutine and a timer of its own.
func (b *batchStream) answerNow(c *kvrpcpb.BatchCommand) bool {
	if c.Get == nil {
		return false
	}
	resp, ok, err := b.server.rawGetLocal(c.Get)
	if ok {
		b.reply(&kvrpcpb.BatchReply{Id: c.Id, Get: resp}, err)
	}
	return ok
}

// startWrite begins a write whose answer needs no goroutine; false if it is none.
func (b *batchStream) startWrite(c *kvrpcpb.BatchCommand) bool {
	if b.server.async == nil {
		return false
	}
	deadline := time.Now().Add(b.timeout(c))
	switch {
	case c.Get != nil: // as in handle, which looks at them in this order
		return false
	case c.Put != nil:
		b.server.rawPutAsync(c.Put, deadline, func(resp *kvrpcpb.RawPutResponse, err error) {
			b.reply(&kvrpcpb.BatchReply{Id: c.Id, Put: resp}, err)
			b.handled()
		})
	case c.Delete != nil:
		b.server.rawDeleteAsync(c.Delete, deadline, func(resp *kvrpcpb.RawDeleteResponse, err error) {
			b.reply(&kvrpcpb.BatchReply{Id: c.Id, Delete: resp}, err)
			b.handled()
		})
	default:
		return false
	}
	return true
}

func (b *batchStream) reply(reply *kvrpcpb.BatchReply, err error) {
	if err != nil {
		st := status.Convert(err)
		reply.Code, reply.Message = uint32(st.Code()), st.Message()
	}
	b.mu.Lock()
	b.mu.replies = append(b.mu.replies, reply)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *batchStream) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
			if !b.flush() {
				return
			}
		}
	}
}

// flush sends the waiting replies, in messages well below the size limit.
func (b *batchStream) flush() bool {
	b.mu.sending.Lock()
	defer b.mu.sending.Unlock()
	b.mu.Lock()
	replies := b.mu.replies
	b.mu.replies = nil
	b.mu.Unlock()
	limit := int(b.server.cfg.Server.GRPCMaxMessage) / 2
	for len(replies) > 0 {
		n, size := 0, 0
		for n < len(replies) {
			if size += replies[n].Size(); n > 0 && size > limit {
				break
			}
			n++
		}
		if err := b.stream.Send(&kvrpcpb.BatchCommandsResponse{Replies: replies[:n]}); err != nil {
			return false
		}
		replies = replies[n:]
	}
	return true
}
