package server

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/regionerr"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

const (
	// maxBatchInflight bounds the requests in flight on one stream.
	maxBatchInflight = 4096
	// maxBatchBacklog bounds the bytes of replies that a client lets wait before its next requests
	// do.
	maxBatchBacklog = 4 << 20
	// largeReply is what is kept only if the store has room for it.
	largeReply = 32 << 10
)

// BatchCommands implements tinykvpb.TinyKvServer: many requests on one stream, answered in any
// order. Replies that are ready together leave together. A client that does not take its replies is
// not served further.
func (s *Server) BatchCommands(stream tinykvpb.TinyKv_BatchCommandsServer) error {
	b := &batchStream{
		server: s, stream: stream, rpc: rpc.StreamOf(stream.Context()),
		wake: make(chan struct{}, 1), slots: make(chan struct{}, maxBatchInflight),
	}
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithCancel(stream.Context())
	sent := make(chan struct{})
	// Owned by this call: ends when the stream does.
	go func() {
		defer close(sent)
		b.send()
	}()
	if b.rpc != nil {
		b.rpc.OnMessage(b.inline)
	}
	err := b.receive()
	b.inlining.Lock()
	b.ended = true
	b.inlining.Unlock()
	if errors.Is(err, io.EOF) && b.finishAll() {
		b.flush()
		err = nil
	}
	cancel()
	<-sent
	b.handlers.Wait()
	b.dropRooms()
	return err
}

// dropRooms gives back what was taken for replies that are not sent.
func (b *batchStream) dropRooms() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.over = true
	for _, r := range b.mu.rooms {
		r.Give()
	}
	b.mu.rooms = nil
}

// finishAll waits until every request is answered; false if the stream ends first. Writes may then
// still be under way, their answers are dropped.
func (b *batchStream) finishAll() bool {
	for range cap(b.slots) {
		select {
		case b.slots <- struct{}{}:
		case <-b.ctx.Done():
			return false
		}
	}
	return true
}

// batchStream is one BatchCommands call.
type batchStream struct {
	server *Server
	stream tinykvpb.TinyKv_BatchCommandsServer
	// rpc is the same stream; nil if another gRPC server runs it.
	rpc *rpc.Stream
	ctx context.Context
	// slots are held by requests that are not answered yet, handlers counts those on goroutines.
	slots    chan struct{}
	handlers sync.WaitGroup
	wake     chan struct{}
	// inlining is held while inline runs; once ended, it begins nothing any more.
	inlining sync.Mutex
	ended    bool
	// sending is held by the goroutine that sends replies. Lock order: sending < mu.
	sending sync.Mutex
	mu      struct {
		sync.Mutex
		replies []*kvrpcpb.BatchReply
		// rooms are those of large replies; none is taken once over is set.
		rooms []*rpc.Room
		over  bool
		// size is how many bytes the replies take, about.
		size int
	}
}

// receive takes messages until the client ends the stream.
func (b *batchStream) receive() error {
	for {
		req, err := b.stream.Recv()
		if err != nil {
			return err
		}
		b.beginAll(req)
		b.flush() // waits while the client does not take what there is
	}
}

// inline works a message off on the goroutine that reads it. It leaves it to receive, which may
// wait, if the client has too many requests or replies under way.
func (b *batchStream) inline(msg []byte) bool {
	b.inlining.Lock()
	defer b.inlining.Unlock()
	if b.ended {
		return true // nobody waits for an answer
	}
	if b.rpc.Backlog()+b.backlog() > maxBatchBacklog {
		return false
	}
	req := new(kvrpcpb.BatchCommandsRequest)
	if req.Unmarshal(msg) != nil || len(req.Commands) > cap(b.slots)-len(b.slots) {
		return false
	}
	b.beginAll(req)
	b.offer()
	return true
}

// beginAll begins the requests of a message. The time of those that are answered at once, gets, is
// that of all of them.
func (b *batchStream) beginAll(req *kvrpcpb.BatchCommandsRequest) {
	began, answered := time.Now(), 0
	for _, c := range req.Commands {
		if c != nil && b.begin(c, began) {
			answered++
		}
	}
	if answered > 0 {
		b.server.timings.get.Note(time.Since(began), answered)
	}
}

// begin answers a request, which it tells, or sees to it that it will be answered. It waits for a
// slot if it needs one.
func (b *batchStream) begin(c *kvrpcpb.BatchCommand, began time.Time) (answered bool) {
	if b.answerNow(c) {
		return true
	}
	select {
	case b.slots <- struct{}{}: // a client that sends more than it may waits
	case <-b.ctx.Done():
		return false
	}
	if !b.startWrite(c, began) {
		b.handlers.Add(1)
		// Bounded by slots; each ends with its request's deadline, or the stream.
		go b.handle(c, began)
	}
	return false
}

// timeout is how long a request may take.
func (b *batchStream) timeout(c *kvrpcpb.BatchCommand) time.Duration {
	timeout := b.server.cfg.Server.RequestTimeout.Duration
	if d := time.Duration(c.TimeoutMs) * time.Millisecond; d > 0 && d < timeout {
		timeout = d
	}
	return timeout
}

// handle carries a request out on a goroutine of its own.
func (b *batchStream) handle(c *kvrpcpb.BatchCommand, began time.Time) {
	defer b.handlers.Done()
	ctx, cancel := context.WithTimeout(b.ctx, b.timeout(c))
	defer cancel()
	reply := &kvrpcpb.BatchReply{Id: c.Id}
	var err error
	var room *rpc.Room
	var timing *rpc.Timing
	switch t := &b.server.timings; {
	case c.Get != nil:
		timing = t.get
		reply.Get, err = b.server.RawGet(ctx, c.Get)
	case c.Put != nil:
		timing = t.put
		reply.Put, err = b.server.RawPut(ctx, c.Put)
	case c.Delete != nil:
		timing = t.del
		reply.Delete, err = b.server.RawDelete(ctx, c.Delete)
	case c.Scan != nil:
		timing = t.scan
		room = rpc.NewRoom(b.server.answers)
		reply.Scan, err = b.server.RawScan(rpc.WithRoom(ctx, room), c.Scan)
	default:
		err = status.Error(codes.InvalidArgument, "a batch command without a request")
	}
	b.finish(reply, err, room)
	count(timing, began, err)
}

// count counts a request that has been answered.
func count(t *rpc.Timing, began time.Time, err error) {
	t.End(status.Code(err), time.Since(began))
}

// answerNow carries out a get that need not wait for anyone, without a goroutine and a timer of its
// own.
func (b *batchStream) answerNow(c *kvrpcpb.BatchCommand) bool {
	if c.Get == nil {
		return false
	}
	resp, ok, err := b.server.rawGetLocal(c.Get)
	if ok {
		b.reply(&kvrpcpb.BatchReply{Id: c.Id, Get: resp}, err, nil)
	}
	return ok
}

// startWrite begins a write whose answer needs no goroutine; false if it is none.
func (b *batchStream) startWrite(c *kvrpcpb.BatchCommand, began time.Time) bool {
	if b.server.async == nil {
		return false
	}
	deadline := began.Add(b.timeout(c))
	switch {
	case c.Get != nil: // as in handle, which looks at them in this order
		return false
	case c.Put != nil:
		b.server.rawPutAsync(c.Put, deadline, func(resp *kvrpcpb.RawPutResponse, err error) {
			b.finish(&kvrpcpb.BatchReply{Id: c.Id, Put: resp}, err, nil)
			count(b.server.timings.put, began, err)
		})
	case c.Delete != nil:
		b.server.rawDeleteAsync(c.Delete, deadline,
			func(resp *kvrpcpb.RawDeleteResponse, err error) {
				b.finish(&kvrpcpb.BatchReply{Id: c.Id, Delete: resp}, err, nil)
				count(b.server.timings.del, began, err)
			})
	default:
		return false
	}
	return true
}

// reply keeps a reply until the next flush or offer. room is what was taken for it, or nil.
func (b *batchStream) reply(reply *kvrpcpb.BatchReply, err error, room *rpc.Room) {
	if err != nil {
		st := status.Convert(err)
		reply.Code, reply.Message = uint32(st.Code()), st.Message()
	}
	size := reply.Size()
	if size > largeReply {
		if room == nil {
			room = rpc.NewRoom(b.server.answers)
		}
		if !room.Grow(int64(size)) {
			busyReply(reply)
			size = reply.Size()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if room != nil && b.mu.over {
		room.Give()
	} else if room != nil {
		b.mu.rooms = append(b.mu.rooms, room)
	}
	b.mu.replies = append(b.mu.replies, reply)
	b.mu.size += size
}

// busyReply puts the answer of a busy store in the place of a large one: only reads have those.
func busyReply(reply *kvrpcpb.BatchReply) {
	region, _, _ := outcome(&regionerr.BusyError{Reason: rpc.NoRoom})
	switch {
	case reply.Get != nil:
		reply.Get = &kvrpcpb.RawGetResponse{RegionError: region}
	case reply.Scan != nil:
		reply.Scan = &kvrpcpb.RawScanResponse{RegionError: region}
	}
}

// finish answers a request that held a slot.
func (b *batchStream) finish(reply *kvrpcpb.BatchReply, err error, room *rpc.Room) {
	b.reply(reply, err, room)
	b.wakeSender()
	<-b.slots
}

func (b *batchStream) wakeSender() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *batchStream) backlog() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.size
}

func (b *batchStream) send() {
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-b.wake:
			if !b.flush() {
				return
			}
		}
	}
}

// flush sends the waiting replies, and waits until the client's window has taken them.
func (b *batchStream) flush() bool {
	b.sending.Lock()
	defer b.sending.Unlock()
	return b.sendAll(b.stream.Send)
}

// offer sends the waiting replies without waiting for anything.
func (b *batchStream) offer() {
	if !b.sending.TryLock() {
		b.wakeSender() // it is sending others, and goes on with these
		return
	}
	defer b.sending.Unlock()
	b.sendAll(func(m *kvrpcpb.BatchCommandsResponse) error { return b.rpc.Offer(m) })
}

// sendAll sends the waiting replies in messages well below the size limit. sending must be held.
func (b *batchStream) sendAll(send func(*kvrpcpb.BatchCommandsResponse) error) bool {
	b.mu.Lock()
	replies, size, rooms := b.mu.replies, b.mu.size, b.mu.rooms
	b.mu.replies, b.mu.size, b.mu.rooms = nil, 0, nil
	b.mu.Unlock()
	defer func() {
		for _, r := range rooms {
			r.Give() // the connection counts what it holds
		}
	}()
	limit := int(b.server.cfg.Server.GRPCMaxMessage) / 2
	for len(replies) > 0 {
		n := len(replies)
		if size > limit {
			n = fitting(replies, limit)
		}
		if err := send(&kvrpcpb.BatchCommandsResponse{Replies: replies[:n]}); err != nil {
			return false
		}
		replies = replies[n:]
	}
	return true
}

// fitting is how many replies, at least one, stay within limit.
func fitting(replies []*kvrpcpb.BatchReply, limit int) int {
	n, size := 0, 0
	for n < len(replies) {
		if size += replies[n].Size(); n > 0 && size > limit {
			break
		}
		n++
	}
	return n
}
