package tikv

import (
	"context"
	"errors"
	"io"
	"reflect"
	"sync"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

const (
	// maxInflight bounds the requests in flight on one stream.
	maxInflight = 4096
	// largeReply is what is kept only if the store has room for it.
	largeReply = 32 << 10
	// maxBacklog bounds the bytes of answers that a client lets wait before its next requests do.
	maxBacklog = 4 << 20
	// maxTogether is how many bytes of answers leave in one message, if not one alone is larger.
	maxTogether = 8 << 20
)

type (
	request  = tikvpb.BatchCommandsRequest_Request
	response = tikvpb.BatchCommandsResponse_Response
)

// batchCommands serves many requests on one stream, answered in any order. Answers that are ready
// together leave together. A client that does not take its answers is not served further.
func (s *Service) batchCommands(stream grpc.ServerStream) error {
	b := &batchStream{
		service: s, stream: stream, rpc: rpc.StreamOf(stream.Context()),
		wake: make(chan struct{}, 1), slots: make(chan struct{}, maxInflight),
	}
	if b.rpc == nil {
		return status.Error(codes.Internal, "the stream is not one of this project's server")
	}
	b.held.less = make(chan struct{}, 1)
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithCancel(stream.Context())
	sent := make(chan struct{})
	// Owned by this call: ends when the stream does.
	go func() {
		defer close(sent)
		b.send()
	}()
	b.rpc.KeepCharges()
	b.rpc.OnMessage(b.inline)
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
	b.dropAnswers()
	return err
}

// dropAnswers gives back what was taken for answers that are not sent.
func (b *batchStream) dropAnswers() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.over = true
	for _, a := range b.mu.answers {
		a.room.Give()
	}
	b.mu.answers = nil
}

// finishAll waits until every request is answered; false if the stream ends first.
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
	service *Service
	stream  grpc.ServerStream
	// rpc is the same stream.
	rpc *rpc.Stream
	ctx context.Context
	// slots are held by requests that are not answered yet, handlers counts those on goroutines.
	slots    chan struct{}
	handlers sync.WaitGroup
	wake     chan struct{}
	// held are the charges of commands whose message was charged.
	held held
	// inlining is held while inline runs; once ended, it begins nothing any more.
	inlining sync.Mutex
	ended    bool
	// sending is held while answers are sent. Lock order: sending < mu.
	sending sync.Mutex
	mu      struct {
		sync.Mutex
		answers []batchAnswer
		// over: nothing is sent any more.
		over bool
		// size is how many bytes the answers take, about.
		size int
	}
}

// batchAnswer is an answer that waits to be sent; room is what was taken for it, or nil.
type batchAnswer struct {
	id   uint64
	resp *response
	size int
	room *rpc.Room
}

// begin begins the requests of a message. The time of those that are answered at once, gets, is
// that of all of them.
func (b *batchStream) begin(m *tikvpb.BatchCommandsRequest) {
	began, answered := time.Now(), 0
	for i, req := range m.Requests {
		if b.beginOne(m.RequestIds[i], req, began) {
			answered++
		}
	}
	if answered > 0 {
		b.service.timings[getType].Note(time.Since(began), answered)
	}
}

// getType is the type of the commands that may be answered at once.
var getType = reflect.TypeOf((*tikvpb.BatchCommandsRequest_Request_RawGet)(nil))

// inline works a message off on the goroutine that reads it. It leaves it to receive, which may
// wait, if the client has too many requests or answers under way.
func (b *batchStream) inline(msg []byte) bool {
	b.inlining.Lock()
	defer b.inlining.Unlock()
	if b.ended {
		return true // nobody waits for an answer
	}
	if b.rpc.Backlog()+b.backlog() > maxBacklog {
		return false
	}
	m := new(tikvpb.BatchCommandsRequest)
	if m.Unmarshal(msg) != nil || len(m.Requests) != len(m.RequestIds) ||
		len(m.Requests) > cap(b.slots)-len(b.slots) {
		return false
	}
	b.begin(m)
	b.offer()
	return true
}

// beginOne answers a get, which it tells, or has a request answered later. It waits for a slot if
// it needs one.
func (b *batchStream) beginOne(id uint64, req *request, began time.Time) (get bool) {
	if req == nil {
		return false
	}
	if b.answerNow(id, req) {
		b.held.give(req)
		_, get = req.Cmd.(*tikvpb.BatchCommandsRequest_Request_RawGet)
		return get
	}
	if cmd, ok := req.Cmd.(*tikvpb.BatchCommandsRequest_Request_Get); ok {
		if resp, ok, err := kvGetNow(b.service, cmd.Get); ok {
			b.reply(id, req, &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Get{Get: resp}},
				err, nil)
			b.count(req, began, err)
			b.held.give(req)
			return false
		}
	}
	select {
	case b.slots <- struct{}{}: // a client that sends more than it may waits
	case <-b.ctx.Done():
		b.held.give(req)
		return false
	}
	if b.service.async == nil || !b.startWrite(id, req, began) {
		b.handlers.Add(1)
		// Bounded by slots; each ends with its request's deadline, or the stream.
		go b.handle(id, req, began)
	}
	return false
}

// count counts a request that has been answered.
func (b *batchStream) count(req *request, began time.Time, err error) {
	b.service.timings[reflect.TypeOf(req.Cmd)].End(status.Code(err), time.Since(began))
}

// answerNow answers a get that need not wait for anyone, and what no store can answer.
func (b *batchStream) answerNow(id uint64, req *request) bool {
	switch cmd := req.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_RawGet:
		resp, ok, err := b.service.getNow(cmd.RawGet)
		if ok {
			b.reply(id, req, wrapGet(resp), err, nil)
		}
		return ok
	case *tikvpb.BatchCommandsRequest_Request_Empty:
		b.reply(id, req, &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Empty{
			Empty: &tikvpb.BatchCommandsEmptyResponse{TestId: cmd.Empty.GetTestId()},
		}}, nil, nil)
		return true
	case nil:
		return true // of a kind not known here: its client would understand no answer
	}
	return false
}

func wrapGet(r *kvrpcpb.RawGetResponse) *response {
	return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_RawGet{RawGet: r}}
}

// startWrite begins a write whose answer needs no goroutine; false if it is none.
func (b *batchStream) startWrite(id uint64, req *request, began time.Time) bool {
	s := b.service
	begin := func(c *kvrpcpb.Context, ch change, wrap func(error) (*response, error)) bool {
		s.writeAsync(ch, began.Add(s.timeout(c)), func(err error) {
			resp, err := wrap(err)
			b.finish(id, req, resp, err, nil)
			b.count(req, began, err)
		})
		return true
	}
	switch cmd := req.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_RawPut:
		return begin(cmd.RawPut.GetContext(), s.put(cmd.RawPut), wrapPut)
	case *tikvpb.BatchCommandsRequest_Request_RawDelete:
		return begin(cmd.RawDelete.GetContext(), s.del(cmd.RawDelete), wrapDelete)
	case *tikvpb.BatchCommandsRequest_Request_RawBatchPut:
		return begin(cmd.RawBatchPut.GetContext(), s.batchPut(cmd.RawBatchPut), wrapBatchPut)
	case *tikvpb.BatchCommandsRequest_Request_Prewrite:
		return prewriteNow(s, cmd.Prewrite, began.Add(s.timeout(cmd.Prewrite.GetContext())),
			func(r *kvrpcpb.PrewriteResponse, err error) {
				resp := &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Prewrite{Prewrite: r}}
				b.finish(id, req, resp, err, nil)
				b.count(req, began, err)
			})
	case *tikvpb.BatchCommandsRequest_Request_RawBatchDelete:
		return begin(cmd.RawBatchDelete.GetContext(), s.batchDelete(cmd.RawBatchDelete),
			wrapBatchDelete)
	}
	return false
}

func wrapPut(err error) (*response, error) {
	r, err := putAnswer(err)
	return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_RawPut{RawPut: r}}, err
}

func wrapDelete(err error) (*response, error) {
	r, err := deleteAnswer(err)
	return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_RawDelete{RawDelete: r}}, err
}

func wrapBatchPut(err error) (*response, error) {
	r, err := batchPutAnswer(err)
	return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_RawBatchPut{RawBatchPut: r}}, err
}

func wrapBatchDelete(err error) (resp *response, rpc error) {
	r, rpc := batchDeleteAnswer(err)
	resp = &response{}
	resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawBatchDelete{RawBatchDelete: r}
	return resp, rpc
}

// handle carries a request out on a goroutine of its own.
func (b *batchStream) handle(id uint64, req *request, began time.Time) {
	defer b.handlers.Done()
	room := rpc.NewRoom(b.service.answers)
	resp, err := b.call(rpc.WithRoom(b.ctx, room), req)
	b.finish(id, req, resp, err, room)
	b.count(req, began, err)
}

// bounded gives a request its time.
func bounded[Req interface{ GetContext() *kvrpcpb.Context }, Resp any](
	ctx context.Context, b *batchStream, call func(context.Context, Req) (Resp, error), req Req,
) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, b.service.timeout(req.GetContext()))
	defer cancel()
	return call(ctx, req)
}

// call waits for a request's outcome.
func (b *batchStream) call(ctx context.Context, req *request) (*response, error) {
	s, resp := b.service, &response{}
	switch cmd := req.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_RawGet:
		r, err := bounded(ctx, b, s.RawGet, cmd.RawGet)
		return wrapGet(r), err
	case *tikvpb.BatchCommandsRequest_Request_RawBatchGet:
		r, err := bounded(ctx, b, s.RawBatchGet, cmd.RawBatchGet)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawBatchGet{RawBatchGet: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_RawScan:
		r, err := bounded(ctx, b, s.RawScan, cmd.RawScan)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawScan{RawScan: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_RawBatchScan:
		r, err := bounded(ctx, b, s.RawBatchScan, cmd.RawBatchScan)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawBatchScan{RawBatchScan: r}
		return resp, err
	// These four come here if the storage cannot do without a goroutine.
	case *tikvpb.BatchCommandsRequest_Request_RawPut:
		r, err := bounded(ctx, b, s.RawPut, cmd.RawPut)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawPut{RawPut: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_RawDelete:
		r, err := bounded(ctx, b, s.RawDelete, cmd.RawDelete)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawDelete{RawDelete: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_RawBatchPut:
		r, err := bounded(ctx, b, s.RawBatchPut, cmd.RawBatchPut)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawBatchPut{RawBatchPut: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_RawBatchDelete:
		r, err := bounded(ctx, b, s.RawBatchDelete, cmd.RawBatchDelete)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawBatchDelete{RawBatchDelete: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_RawDeleteRange:
		r, err := bounded(ctx, b, s.RawDeleteRange, cmd.RawDeleteRange)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawDeleteRange{RawDeleteRange: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_RawCoprocessor:
		r, err := bounded(ctx, b, s.RawCoprocessor, cmd.RawCoprocessor)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_RawCoprocessor{RawCoprocessor: r}
		return resp, err
	case *tikvpb.BatchCommandsRequest_Request_GetHealthFeedback:
		r, err := bounded(ctx, b, s.GetHealthFeedback, cmd.GetHealthFeedback)
		resp.Cmd = &tikvpb.BatchCommandsResponse_Response_GetHealthFeedback{GetHealthFeedback: r}
		return resp, err
	}
	return b.callTxn(ctx, req)
}

// callTxn is call for commands of transactions.
func (b *batchStream) callTxn(ctx context.Context, req *request) (*response, error) {
	s := b.service
	switch cmd := req.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_Get:
		r, err := bounded(ctx, b, s.KvGet, cmd.Get)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Get{Get: r}}, err
	case *tikvpb.BatchCommandsRequest_Request_BatchGet:
		r, err := bounded(ctx, b, s.KvBatchGet, cmd.BatchGet)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_BatchGet{BatchGet: r}}, err
	case *tikvpb.BatchCommandsRequest_Request_Scan:
		r, err := bounded(ctx, b, s.KvScan, cmd.Scan)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Scan{Scan: r}}, err
	case *tikvpb.BatchCommandsRequest_Request_Prewrite:
		r, err := bounded(ctx, b, s.KvPrewrite, cmd.Prewrite)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Prewrite{Prewrite: r}}, err
	case *tikvpb.BatchCommandsRequest_Request_Commit:
		r, err := bounded(ctx, b, s.KvCommit, cmd.Commit)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Commit{Commit: r}}, err
	case *tikvpb.BatchCommandsRequest_Request_BatchRollback:
		r, err := bounded(ctx, b, s.KvBatchRollback, cmd.BatchRollback)
		return &response{
			Cmd: &tikvpb.BatchCommandsResponse_Response_BatchRollback{BatchRollback: r},
		}, err
	case *tikvpb.BatchCommandsRequest_Request_Cleanup:
		r, err := bounded(ctx, b, s.KvCleanup, cmd.Cleanup)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Cleanup{Cleanup: r}}, err
	case *tikvpb.BatchCommandsRequest_Request_CheckTxnStatus:
		r, err := bounded(ctx, b, s.KvCheckTxnStatus, cmd.CheckTxnStatus)
		return &response{
			Cmd: &tikvpb.BatchCommandsResponse_Response_CheckTxnStatus{CheckTxnStatus: r},
		}, err
	case *tikvpb.BatchCommandsRequest_Request_ResolveLock:
		r, err := bounded(ctx, b, s.KvResolveLock, cmd.ResolveLock)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_ResolveLock{ResolveLock: r}},
			err
	case *tikvpb.BatchCommandsRequest_Request_ScanLock:
		r, err := bounded(ctx, b, s.KvScanLock, cmd.ScanLock)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_ScanLock{ScanLock: r}}, err
	case *tikvpb.BatchCommandsRequest_Request_TxnHeartBeat:
		r, err := bounded(ctx, b, s.KvTxnHeartBeat, cmd.TxnHeartBeat)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_TxnHeartBeat{TxnHeartBeat: r}},
			err
	case *tikvpb.BatchCommandsRequest_Request_DeleteRange:
		r, err := bounded(ctx, b, s.KvDeleteRange, cmd.DeleteRange)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_DeleteRange{DeleteRange: r}},
			err
	case *tikvpb.BatchCommandsRequest_Request_PessimisticLock:
		r, err := bounded(ctx, b, s.KvPessimisticLock, cmd.PessimisticLock)
		return &response{
			Cmd: &tikvpb.BatchCommandsResponse_Response_PessimisticLock{PessimisticLock: r},
		}, err
	case *tikvpb.BatchCommandsRequest_Request_PessimisticRollback:
		r, err := bounded(ctx, b, s.KVPessimisticRollback, cmd.PessimisticRollback)
		return &response{
			Cmd: &tikvpb.BatchCommandsResponse_Response_PessimisticRollback{PessimisticRollback: r},
		}, err
	case *tikvpb.BatchCommandsRequest_Request_CheckSecondaryLocks:
		r, err := bounded(ctx, b, s.KvCheckSecondaryLocks, cmd.CheckSecondaryLocks)
		return &response{
			Cmd: &tikvpb.BatchCommandsResponse_Response_CheckSecondaryLocks{CheckSecondaryLocks: r},
		}, err
	}
	return nil, errNotServed
}

var errNotServed = status.Error(codes.Unimplemented,
	"this command is not served")

// reply keeps an answer until the next flush or offer. room is what was taken for it, or nil.
func (b *batchStream) reply(
	id uint64, req *request, resp *response, err error, room *rpc.Room,
) {
	if err != nil {
		if resp = refuse(req, err); resp == nil {
			room.Give()
			return
		}
	}
	size := resp.Size() + 16
	if size > largeReply {
		if room == nil {
			room = rpc.NewRoom(b.service.answers)
		}
		if !room.Grow(int64(size)) {
			resp = refuseBusy(resp)
			size = resp.Size() + 16
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.over {
		room.Give()
		return
	}
	b.mu.answers = append(b.mu.answers, batchAnswer{id, resp, size, room})
	b.mu.size += size
}

// finish answers a request that held a slot.
func (b *batchStream) finish(
	id uint64, req *request, resp *response, err error, room *rpc.Room,
) {
	b.held.give(req)
	b.reply(id, req, resp, err, room)
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

// flush sends the waiting answers, and waits until the client's window has taken them.
func (b *batchStream) flush() bool {
	b.sending.Lock()
	defer b.sending.Unlock()
	return b.sendAll(func(m *tikvpb.BatchCommandsResponse) error { return b.stream.SendMsg(m) })
}

// offer sends the waiting answers without waiting for anything.
func (b *batchStream) offer() {
	if !b.sending.TryLock() {
		b.wakeSender() // it is sending others, and goes on with these
		return
	}
	defer b.sending.Unlock()
	b.sendAll(func(m *tikvpb.BatchCommandsResponse) error { return b.rpc.Offer(m) })
}

// sendAll sends the waiting answers in messages of a moderate size. sending must be held.
func (b *batchStream) sendAll(send func(*tikvpb.BatchCommandsResponse) error) bool {
	b.mu.Lock()
	answers := b.mu.answers
	b.mu.answers, b.mu.size = nil, 0
	b.mu.Unlock()
	defer func() { // those that could not be sent
		for _, a := range answers {
			a.room.Give()
		}
	}()
	for len(answers) > 0 {
		m, size := &tikvpb.BatchCommandsResponse{}, 0
		for _, a := range answers {
			if size += a.size; size > maxTogether && len(m.Responses) > 0 {
				break
			}
			m.Responses, m.RequestIds = append(m.Responses, a.resp), append(m.RequestIds, a.id)
		}
		if err := send(m); err != nil {
			return false
		}
		for _, a := range answers[:len(m.Responses)] {
			a.room.Give() // the connection counts what it holds
		}
		answers = answers[len(m.Responses):]
	}
	return true
}
