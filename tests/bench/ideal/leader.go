package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/google/btree"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// maxBatch is how many puts share a sync.
const maxBatch = 512

type pair struct{ key, value []byte }

type proposal struct {
	cmd  *kvrpcpb.BatchCommand
	done chan error // has room for the one answer
}

// leader serves clients. One goroutine owns the log; acks are gathered under mu.
type leader struct {
	tinykvpb.UnimplementedTinyKvServer
	wal   *wal
	ctx   context.Context
	queue chan proposal
	links []tinykvpb.TinyKv_BatchCommandsClient
	conns []*grpc.ClientConn
	wg    sync.WaitGroup

	mu struct {
		sync.Mutex
		acked   []uint64 // by replica, the leader first: the last id that it has synced
		commit  uint64   // Invariant: a majority of acked is at least commit
		pending []proposal
	}
	data struct {
		sync.RWMutex
		tree *btree.BTreeG[pair]
	}
}

func newLeader(ctx context.Context, w *wal, followers []string) (*leader, error) {
	l := &leader{wal: w, ctx: ctx, queue: make(chan proposal, 4096)}
	l.data.tree = btree.NewG(64, func(a, b pair) bool { return bytes.Compare(a.key, b.key) < 0 })
	l.mu.acked = make([]uint64, 1+len(followers))
	for i, addr := range followers {
		conn, err := grpc.NewClient("passthrough:///"+addr,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(codec.CallOption(), grpc.WaitForReady(true),
				grpc.MaxCallSendMsgSize(64<<20)))
		if err != nil {
			return nil, err
		}
		l.conns = append(l.conns, conn)
		s, err := tinykvpb.NewTinyKvClient(conn).BatchCommands(ctx)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("follower %s: %w", addr, err)
		}
		l.links = append(l.links, s)
		l.wg.Add(1)
		// Ends with ctx, or when the follower does.
		go func() { defer l.wg.Done(); l.receive(i+1, s) }()
	}
	l.wg.Add(1)
	// Ends with ctx.
	go func() { defer l.wg.Done(); l.run() }()
	return l, nil
}

func (l *leader) close() {
	for _, c := range l.conns {
		_ = c.Close()
	}
}

// wait returns when everything has ended; ctx must have.
func (l *leader) wait() {
	l.close()
	l.wg.Wait()
}

func (l *leader) receive(replica int, s tinykvpb.TinyKv_BatchCommandsClient) {
	for {
		resp, err := s.Recv()
		if err != nil {
			return
		}
		l.ack(replica, resp.Replies[len(resp.Replies)-1].Id)
	}
}

// run owns the log: what has gathered in the queue is sent on, written and synced together.
func (l *leader) run() {
	id := uint64(0)
	for {
		var batch []proposal
		select {
		case p := <-l.queue:
			batch = append(batch, p)
		case <-l.ctx.Done():
			return
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case p := <-l.queue:
				batch = append(batch, p)
			default:
				more = false
			}
		}
		cmds := make([]*kvrpcpb.BatchCommand, 0, len(batch))
		for _, p := range batch {
			id++
			p.cmd.Id = id
			cmds = append(cmds, p.cmd)
		}
		l.mu.Lock()
		l.mu.pending = append(l.mu.pending, batch...)
		l.mu.Unlock()
		req := &kvrpcpb.BatchCommandsRequest{Commands: cmds}
		for _, s := range l.links {
			_ = s.Send(req) // a follower that is gone acknowledges nothing
		}
		if l.wal.append(cmds) == nil {
			l.ack(0, id)
		}
	}
}

// ack takes note of what a replica has synced; what a majority has is applied and answered.
func (l *leader) ack(replica int, id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.acked[replica] = id
	sorted := slices.Sorted(slices.Values(l.mu.acked))
	commit := sorted[(len(sorted)-1)/2]
	n := int(commit - min(commit, l.mu.commit))
	if n == 0 {
		return
	}
	l.mu.commit = commit
	l.data.Lock()
	for _, p := range l.mu.pending[:n] {
		l.data.tree.ReplaceOrInsert(pair{p.cmd.Put.Key, p.cmd.Put.Value})
	}
	l.data.Unlock()
	for _, p := range l.mu.pending[:n] {
		p.done <- nil
	}
	l.mu.pending = append(l.mu.pending[:0], l.mu.pending[n:]...)
}

// RawPut implements tinykvpb.TinyKvServer.
func (l *leader) RawPut(
	ctx context.Context, req *kvrpcpb.RawPutRequest,
) (*kvrpcpb.RawPutResponse, error) {
	p := proposal{cmd: &kvrpcpb.BatchCommand{Put: req}, done: make(chan error, 1)}
	select {
	case l.queue <- p:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	select {
	case err := <-p.done:
		return &kvrpcpb.RawPutResponse{}, err
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-l.ctx.Done():
		return nil, status.Error(codes.Unavailable, "stopping")
	}
}

// RawGet implements tinykvpb.TinyKvServer.
func (l *leader) RawGet(
	_ context.Context, req *kvrpcpb.RawGetRequest,
) (*kvrpcpb.RawGetResponse, error) {
	l.data.RLock()
	kv, ok := l.data.tree.Get(pair{key: req.Key})
	l.data.RUnlock()
	return &kvrpcpb.RawGetResponse{Value: kv.value, NotFound: !ok}, nil
}

// RawScan implements tinykvpb.TinyKvServer.
func (l *leader) RawScan(
	_ context.Context, req *kvrpcpb.RawScanRequest,
) (*kvrpcpb.RawScanResponse, error) {
	resp := &kvrpcpb.RawScanResponse{}
	l.data.RLock()
	defer l.data.RUnlock()
	l.data.tree.AscendGreaterOrEqual(pair{key: req.StartKey}, func(kv pair) bool {
		if len(req.EndKey) > 0 && bytes.Compare(kv.key, req.EndKey) >= 0 {
			return false
		}
		resp.Kvs = append(resp.Kvs, &kvrpcpb.KvPair{Key: kv.key, Value: kv.value})
		return len(resp.Kvs) < int(req.Limit)
	})
	return resp, nil
}
