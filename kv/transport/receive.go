package transport

import (
	"errors"
	"io"
	"slices"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/log"
	rpcserver "github.com/tinykv/tinykv/pkg/rpc/server"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// RaftHandler takes raft messages from other stores; its methods never block.
type RaftHandler interface {
	HandleRaft(m *rspb.RaftMessage) error
	// HandleRaftBatch takes messages that came together; dropped is called for those that it does
	// not take.
	HandleRaftBatch(msgs []*rspb.RaftMessage, dropped func(m *rspb.RaftMessage, why error))
}

// Receiver serves the streams by which other stores send raft messages and raft snapshots: those
// RPCs of tinykvpb.TinyKvServer. Safe for concurrent use. Errors are those of the streams.
type Receiver struct {
	raft   RaftHandler
	snaps  *snap.Manager
	logger *zap.Logger
}

// NewReceiver makes a receiver; raft and snaps are nil for a store that is not replicated, which
// refuses all streams.
func NewReceiver(raft RaftHandler, snaps *snap.Manager, logger *zap.Logger) *Receiver {
	return &Receiver{raft: raft, snaps: snaps, logger: logger}
}

func (r *Receiver) noRaft() error {
	if r.raft == nil {
		return status.Error(codes.FailedPrecondition, "this store is not replicated")
	}
	return nil
}

// Raft takes messages one by one.
func (r *Receiver) Raft(stream tinykvpb.TinyKv_RaftServer) error {
	if err := r.noRaft(); err != nil {
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
		r.handle(m)
	}
}

// RaftBatch takes messages in batches. Since the handler takes messages without waiting, the
// goroutine that reads them hands them over.
func (r *Receiver) RaftBatch(stream tinykvpb.TinyKv_RaftBatchServer) error {
	if err := r.noRaft(); err != nil {
		return err
	}
	if st := rpcserver.StreamOf(stream.Context()); st != nil {
		st.OnMessage(func(msg []byte) bool {
			msgs, err := DecodeBatch(msg)
			if err != nil {
				return false // Recv reports it
			}
			r.handle(msgs...)
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
		r.handle(batch.Msgs...)
	}
}

// handle routes messages. A dropped one is no error: raft sends it again.
func (r *Receiver) handle(msgs ...*rspb.RaftMessage) {
	msgs = slices.DeleteFunc(msgs, func(m *rspb.RaftMessage) bool {
		// A raft snapshot comes by the Snapshot RPC only, after its files.
		return m == nil || m.GetMessage().GetSnapshot() != nil
	})
	r.raft.HandleRaftBatch(msgs, func(m *rspb.RaftMessage, why error) {
		r.logger.Debug("dropped raft message", log.RegionID(m.RegionId), zap.Error(why))
	})
}

// Snapshot takes the files of a raft snapshot, and then its message.
func (r *Receiver) Snapshot(stream tinykvpb.TinyKv_SnapshotServer) error {
	if err := r.noRaft(); err != nil {
		return err
	}
	check := func(m *rspb.RaftMessage) error {
		if m.GetToPeer() == nil || m.GetFromPeer() == nil || m.RegionEpoch == nil {
			return errors.New("snapshot message without peers or epoch")
		}
		return nil
	}
	return ReceiveSnapshot(stream, r.snaps, check, r.raft.HandleRaft)
}
