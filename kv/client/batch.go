package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// maxBatchCommands and maxBatchBytes bound one message on a batch stream.
const (
	maxBatchCommands = 128
	maxBatchBytes    = 1 << 20
	// maxBatched is the largest request that takes part. A store may let a larger one wait, or
	// refuse it, until it has room; as a call of its own it holds nobody up.
	maxBatched = 256 << 10
)

// batchStub sends gets, puts and deletes of concurrent callers over one BatchCommands stream: while
// one message is being written the next one gathers, so a lone caller waits for nobody, and many
// callers share the cost of a message. A store that does not know the RPC is asked call by call.
type batchStub struct {
	tinykvpb.TinyKvClient // unary, for everything else
	b                     *batcher
}

func (s batchStub) RawGet(
	ctx context.Context, in *kvrpcpb.RawGetRequest, opts ...grpc.CallOption,
) (*kvrpcpb.RawGetResponse, error) {
	reply, err := s.b.do(ctx, &kvrpcpb.BatchCommand{Get: in}, in.Size())
	if status.Code(err) == codes.Unimplemented {
		return s.TinyKvClient.RawGet(ctx, in, opts...)
	}
	return reply.GetGet(), err
}

func (s batchStub) RawPut(
	ctx context.Context, in *kvrpcpb.RawPutRequest, opts ...grpc.CallOption,
) (*kvrpcpb.RawPutResponse, error) {
	size := in.Size()
	if size > maxBatched {
		return s.TinyKvClient.RawPut(ctx, in, opts...)
	}
	reply, err := s.b.do(ctx, &kvrpcpb.BatchCommand{Put: in}, size)
	if status.Code(err) == codes.Unimplemented {
		return s.TinyKvClient.RawPut(ctx, in, opts...)
	}
	return reply.GetPut(), err
}

func (s batchStub) RawDelete(
	ctx context.Context, in *kvrpcpb.RawDeleteRequest, opts ...grpc.CallOption,
) (*kvrpcpb.RawDeleteResponse, error) {
	reply, err := s.b.do(ctx, &kvrpcpb.BatchCommand{Delete: in}, in.Size())
	if status.Code(err) == codes.Unimplemented {
		return s.TinyKvClient.RawDelete(ctx, in, opts...)
	}
	return reply.GetDelete(), err
}

// batcher is the stream to one store over one connection. Safe for concurrent use.
type batcher struct {
	conn grpc.ClientConnInterface
	mu   struct {
		sync.Mutex
		queue []*batchCall
		// taken are the calls that are about to be sent; the first of them may wait for a
		// connection.
		taken   []*batchCall
		stream  *batchStream // nil: none is open
		sending bool
		unary   bool // the store does not know BatchCommands
		closed  bool
		nextID  uint64
		// sweep fires at sweepAt, when the first deadline of a call may pass; zero: it does not.
		sweep   *time.Timer
		sweepAt time.Time
	}
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

type batchCall struct {
	cmd  *kvrpcpb.BatchCommand
	size int
	// deadline is zero if there is none.
	deadline time.Time
	done     chan batchAnswer
	// sent and abandoned are guarded by batcher.mu: a caller that gives up before its command was
	// sent takes it back, and knows that nothing was done.
	sent, abandoned bool
}

type batchAnswer struct {
	reply *kvrpcpb.BatchReply
	err   error
}

// batchStream is one life of the stream; waiting holds the calls sent on it, guarded by batcher.mu.
type batchStream struct {
	tinykvpb.TinyKv_BatchCommandsClient
	cancel  context.CancelFunc
	waiting map[uint64]*batchCall
}

func newBatcher(conn grpc.ClientConnInterface) *batcher {
	b := &batcher{conn: conn}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// notSentError is definite: the deadline came before the connection or before the call.
type notSentError struct{}

func (notSentError) Error() string { return "the request did not leave before its deadline" }

// GRPCStatus makes it the status that callers know.
func (e notSentError) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, e.Error())
}

var errNotSent error = notSentError{}

// notSent tells whether a request has certainly not left this process.
func notSent(err error) bool {
	var e notSentError
	return errors.As(err, &e) || rpc.NotSent(err)
}

// errUnary makes the caller use a unary call.
var errUnary = status.Error(codes.Unimplemented, "the store does not know BatchCommands")

// do sends a command and waits for its reply or the end of ctx; then the command may still be
// carried out.
func (b *batcher) do(
	ctx context.Context, cmd *kvrpcpb.BatchCommand, size int,
) (*kvrpcpb.BatchReply, error) {
	deadline, ok := ctx.Deadline()
	if ok {
		left := time.Until(deadline).Milliseconds()
		if left <= 0 {
			return nil, errNotSent
		}
		cmd.TimeoutMs = uint64(left)
	}
	call := &batchCall{cmd: cmd, size: size, deadline: deadline, done: make(chan batchAnswer, 1)}
	b.mu.Lock()
	if b.mu.unary || b.mu.closed {
		b.mu.Unlock()
		return nil, errUnary
	}
	b.mu.nextID++
	cmd.Id = b.mu.nextID
	b.mu.queue = append(b.mu.queue, call)
	if ok && (b.mu.sweepAt.IsZero() || deadline.Before(b.mu.sweepAt)) {
		b.sweepAtLocked(deadline)
	}
	lead := !b.mu.sending
	b.mu.sending = true
	b.mu.Unlock()
	if lead {
		b.flush()
	}
	select {
	case a := <-call.done:
		if a.err == nil && a.reply.Code != 0 {
			a.err = status.Error(codes.Code(a.reply.Code), a.reply.Message)
		}
		return a.reply, a.err
	case <-ctx.Done():
		b.mu.Lock()
		call.abandoned = !call.sent
		b.mu.Unlock()
		if call.abandoned {
			return nil, errNotSent
		}
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// sweepAtLocked has endLate called.
func (b *batcher) sweepAtLocked(at time.Time) {
	b.mu.sweepAt = at
	if b.mu.sweep == nil {
		b.mu.sweep = time.AfterFunc(time.Until(at), b.endLate)
		return
	}
	b.mu.sweep.Reset(time.Until(at))
}

// endLate ends the calls whose deadlines have passed, as their contexts may not (see
// rpc.WithDeadline).
func (b *batcher) endLate() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.sweepAt = time.Time{}
	if b.mu.closed {
		return
	}
	now, next := time.Now(), time.Time{}
	late := func(c *batchCall) bool {
		if c.deadline.IsZero() || !c.deadline.After(now) {
			return !c.deadline.IsZero()
		}
		if next.IsZero() || c.deadline.Before(next) {
			next = c.deadline
		}
		return false
	}
	for _, calls := range [][]*batchCall{b.mu.taken, b.mu.queue} {
		for _, c := range calls {
			if !c.sent && !c.abandoned && late(c) {
				c.abandoned = true
				c.done <- batchAnswer{err: errNotSent}
			}
		}
	}
	if s := b.mu.stream; s != nil {
		for id, c := range s.waiting {
			if late(c) {
				delete(s.waiting, id)
				c.done <- batchAnswer{err: errDeadline}
			}
		}
	}
	if !next.IsZero() {
		b.sweepAtLocked(next)
	}
}

var errDeadline = status.Error(codes.DeadlineExceeded, context.DeadlineExceeded.Error())

// flush sends one message of what is queued. If more has gathered meanwhile, a goroutine goes on,
// so that no caller works for the others for long. sending stays true until the queue is empty.
func (b *batcher) flush() {
	for first := true; ; first = false {
		b.mu.Lock()
		if len(b.mu.queue) == 0 || b.mu.closed {
			b.failQueueLocked()
			b.mu.sending = false
			b.mu.Unlock()
			return
		}
		if !first {
			b.wg.Add(1) // not closed, so nobody waits yet
			b.mu.Unlock()
			// Ends when the queue is empty; close waits.
			go func() { defer b.wg.Done(); b.flushAll() }()
			return
		}
		b.mu.Unlock()
		b.sendOne()
	}
}

func (b *batcher) flushAll() {
	for {
		b.mu.Lock()
		if len(b.mu.queue) == 0 || b.mu.closed {
			b.failQueueLocked()
			b.mu.sending = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		b.sendOne()
	}
}

// failQueueLocked answers what was never sent.
func (b *batcher) failQueueLocked() {
	failUnsentLocked(b.mu.queue, errUnary)
	b.mu.queue = nil
}

// failUnsentLocked answers calls whose callers still wait.
func failUnsentLocked(calls []*batchCall, err error) {
	for _, c := range calls {
		if !c.abandoned {
			c.done <- batchAnswer{err: err}
		}
	}
}

// sendOne sends one message.
func (b *batcher) sendOne() {
	b.mu.Lock()
	calls, stream := b.takeLocked(), b.mu.stream
	b.mu.taken = calls
	b.mu.Unlock()
	if stream == nil {
		var err error
		if stream, err = b.open(); err != nil {
			b.mu.Lock()
			b.mu.taken = nil
			failUnsentLocked(calls, err)
			b.mu.Unlock()
			return
		}
	}
	req := &kvrpcpb.BatchCommandsRequest{Commands: make([]*kvrpcpb.BatchCommand, 0, len(calls))}
	b.mu.Lock()
	b.mu.taken = nil
	for _, c := range calls {
		switch {
		case c.abandoned:
		case stream.waiting == nil: // broken meanwhile, before anything of this was sent
			c.done <- batchAnswer{err: errNotSent}
		default:
			c.sent = true
			stream.waiting[c.cmd.Id] = c
			req.Commands = append(req.Commands, c.cmd)
		}
	}
	b.mu.Unlock()
	if len(req.Commands) > 0 && stream.Send(req) != nil {
		stream.cancel() // the receiver finds out why, and answers all calls
	}
}

func (b *batcher) takeLocked() []*batchCall {
	n, size := 0, 0
	for n < len(b.mu.queue) && n < maxBatchCommands {
		if size += b.mu.queue[n].size; n > 0 && size > maxBatchBytes {
			break
		}
		n++
	}
	calls := make([]*batchCall, n)
	copy(calls, b.mu.queue)
	rest := copy(b.mu.queue, b.mu.queue[n:])
	clear(b.mu.queue[rest:])
	b.mu.queue = b.mu.queue[:rest]
	return calls
}

// open begins a stream.
func (b *batcher) open() (*batchStream, error) {
	ctx, cancel := context.WithCancel(b.ctx)
	stub, err := tinykvpb.NewTinyKvClient(b.conn).BatchCommands(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &batchStream{
		TinyKv_BatchCommandsClient: stub, cancel: cancel, waiting: map[uint64]*batchCall{},
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.closed {
		cancel()
		return nil, errUnary // nothing was sent
	}
	b.mu.stream = s
	b.wg.Add(1)
	// Ends with the stream; close waits.
	go func() { defer b.wg.Done(); b.receive(s) }()
	return s, nil
}

func (b *batcher) receive(s *batchStream) {
	defer s.cancel()
	if st := rpc.StreamOf(s.Context()); st != nil {
		// The goroutine that reads the connection answers the callers, not this one.
		st.OnMessage(func(msg []byte) bool {
			resp := new(kvrpcpb.BatchCommandsResponse)
			if resp.Unmarshal(msg) != nil {
				return false // Recv says what is wrong
			}
			b.answer(s, resp)
			return true
		})
	}
	for {
		resp, err := s.Recv()
		if err != nil {
			b.broken(s, err)
			return
		}
		b.answer(s, resp)
	}
}

// answer tells the callers.
func (b *batcher) answer(s *batchStream, resp *kvrpcpb.BatchCommandsResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range resp.Replies {
		if c := s.waiting[r.GetId()]; c != nil {
			delete(s.waiting, r.Id)
			c.done <- batchAnswer{reply: r} // has room for the one answer
		}
	}
}

// broken answers everything that was sent on the stream: whether it was carried out is not known,
// unless the store does not know the RPC.
func (b *batcher) broken(s *batchStream, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.stream == s {
		b.mu.stream = nil
	}
	switch status.Code(err) {
	case codes.Unimplemented:
		b.mu.unary = true
	case codes.OK, codes.Canceled, codes.Unknown, codes.ResourceExhausted, codes.InvalidArgument,
		codes.FailedPrecondition:
		// As the status of one call some of these say that nothing was done. That of a stream says
		// nothing about calls.
		err = status.Error(codes.Unavailable, "batch stream ended: "+err.Error())
	}
	for _, c := range s.waiting {
		c.done <- batchAnswer{err: err}
	}
	s.waiting = nil
}

func (b *batcher) close() {
	b.mu.Lock()
	b.mu.closed = true
	if b.mu.sweep != nil {
		b.mu.sweep.Stop()
	}
	b.mu.Unlock()
	b.cancel()
	b.wg.Wait()
}
