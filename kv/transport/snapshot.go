package transport

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/raftstore/snap"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// sendChunks sends the message that carries the snapshot, then the files' bytes in chunks.
func sendChunks(stream tinykvpb.TinyKv_SnapshotClient, m *rspb.RaftMessage, files io.Reader) error {
	err := stream.Send(&rspb.SnapshotChunk{Message: m})
	buf := make([]byte, snapshotChunk)
	for err == nil {
		n, rerr := io.ReadFull(files, buf)
		if n > 0 {
			err = stream.Send(&rspb.SnapshotChunk{Data: buf[:n]})
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if errors.Is(err, io.EOF) {
		// The receiver ended the stream; its reason is in the answer.
		_, err = stream.CloseAndRecv()
		if err == nil {
			err = errors.New("transport: receiver ended the stream early")
		}
	}
	return err
}

// ReceiveSnapshot serves the Snapshot RPC: it stores the files, and only then routes the raft
// message. Errors are gRPC statuses.
func ReceiveSnapshot(
	stream tinykvpb.TinyKv_SnapshotServer, snaps *snap.Manager,
	check, route func(*rspb.RaftMessage) error,
) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	m := first.GetMessage()
	key, data, err := snapshotHead(m)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := check(m); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	recv, err := snaps.Receive(key, data.Meta)
	switch {
	case errors.Is(err, snap.ErrBusy):
		return status.Error(codes.ResourceExhausted, err.Error())
	case err != nil:
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if recv != nil {
		defer recv.Close()
		if err := receiveChunks(stream, recv); err != nil {
			return status.Error(codes.DataLoss, err.Error())
		}
		recv.Close()
	}
	if err := route(m); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return stream.SendAndClose(&rspb.Done{})
}

func snapshotHead(m *rspb.RaftMessage) (snap.Key, *rspb.RaftSnapshotData, error) {
	s := m.GetMessage().GetSnapshot()
	if s == nil || s.Metadata == nil {
		return snap.Key{}, nil,
			errors.New("transport: the first chunk of a snapshot must carry its message")
	}
	data := new(rspb.RaftSnapshotData)
	if err := data.Unmarshal(s.Data); err != nil {
		return snap.Key{}, nil, fmt.Errorf("transport: snapshot data: %w", err)
	}
	if data.GetRegion().GetId() != m.RegionId {
		return snap.Key{}, nil,
			fmt.Errorf("transport: snapshot of region %d in a message of region %d",
				data.GetRegion().GetId(), m.RegionId)
	}
	return snap.Key{RegionID: m.RegionId, Term: s.Metadata.Term, Index: s.Metadata.Index}, data, nil
}

func receiveChunks(stream tinykvpb.TinyKv_SnapshotServer, recv *snap.Receiver) error {
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return recv.Finish()
		}
		if err != nil {
			return err
		}
		if len(chunk.Data) == 0 {
			return errors.New("transport: empty snapshot chunk")
		}
		if _, err := recv.Write(chunk.Data); err != nil {
			return err
		}
	}
}
