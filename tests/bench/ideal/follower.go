package main

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// wal is a log in one preallocated file; at its end it begins again. Not safe for concurrent use.
type wal struct {
	f         vfs.File
	off, size int64
	buf       []byte
}

// append writes commands and makes them durable with one sync.
func (w *wal) append(cmds []*kvrpcpb.BatchCommand) error {
	need := 0
	for _, c := range cmds {
		need += c.Size()
	}
	if cap(w.buf) < need {
		w.buf = make([]byte, 2*need)
	}
	at := 0
	for _, c := range cmds {
		n, err := c.MarshalTo(w.buf[at:cap(w.buf)])
		if err != nil {
			return err
		}
		at += n
	}
	if w.off+int64(need) > w.size {
		w.off = 0
	}
	if _, err := w.f.WriteAt(w.buf[:need], w.off); err != nil {
		return err
	}
	w.off += int64(need)
	return w.f.Sync()
}

// follower writes what the leader sends, and answers with the last id of each sync.
type follower struct {
	tinykvpb.UnimplementedTinyKvServer
	wal *wal
}

// BatchCommands implements tinykvpb.TinyKvServer for the one leader.
func (f *follower) BatchCommands(s tinykvpb.TinyKv_BatchCommandsServer) error {
	in := make(chan []*kvrpcpb.BatchCommand, 64)
	failed := make(chan error, 1)
	// Ends with the stream.
	go func() {
		defer close(in)
		for {
			req, err := s.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case in <- req.Commands:
			case <-s.Context().Done():
				failed <- s.Context().Err()
				return
			}
		}
	}()
	for cmds := range in {
		for more := true; more; {
			select {
			case next, ok := <-in:
				cmds, more = append(cmds, next...), ok
			default:
				more = false
			}
		}
		if err := f.wal.append(cmds); err != nil {
			return err
		}
		last := &kvrpcpb.BatchReply{Id: cmds[len(cmds)-1].Id}
		if err := s.Send(&kvrpcpb.BatchCommandsResponse{
			Replies: []*kvrpcpb.BatchReply{last},
		}); err != nil {
			return err
		}
	}
	return <-failed
}

// echo answers at once.
type echo struct {
	tinykvpb.UnimplementedTinyKvServer
}

var echoValue = bytes.Repeat([]byte{'v'}, 256)

// RawPut implements tinykvpb.TinyKvServer.
func (*echo) RawPut(context.Context, *kvrpcpb.RawPutRequest) (*kvrpcpb.RawPutResponse, error) {
	return &kvrpcpb.RawPutResponse{}, nil
}

// RawGet implements tinykvpb.TinyKvServer.
func (*echo) RawGet(context.Context, *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
	return &kvrpcpb.RawGetResponse{Value: echoValue}, nil
}

// RawScan implements tinykvpb.TinyKvServer: as many pairs as asked for, all the same.
func (*echo) RawScan(
	_ context.Context, req *kvrpcpb.RawScanRequest,
) (*kvrpcpb.RawScanResponse, error) {
	resp := &kvrpcpb.RawScanResponse{}
	for range req.Limit {
		resp.Kvs = append(resp.Kvs, &kvrpcpb.KvPair{Key: req.StartKey, Value: echoValue})
	}
	return resp, nil
}
