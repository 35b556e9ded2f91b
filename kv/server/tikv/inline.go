package tikv

import (
	"context"
	"sync"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// inlineGet answers a get under a lease. A request that cannot be decoded is left to the usual
// handler, which says so.
func (s *Service) inlineGet(call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.RawGetRequest)
	if req.Unmarshal(request) != nil {
		return false
	}
	resp, ok, err := s.getNow(req)
	if ok {
		answer(call, resp, err)
	}
	return ok
}

// inlineTxnGet is inlineGet in a transaction.
func inlineTxnGet(s *Service, call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.GetRequest)
	if req.Unmarshal(request) != nil {
		return false
	}
	resp, ok, err := kvGetNow(s, req)
	if ok {
		answer(call, resp, err)
	}
	return ok
}

// inlinePrewrite answers a prewrite that waits for nothing but its write.
func inlinePrewrite(s *Service, call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.PrewriteRequest)
	if req.Unmarshal(request) != nil {
		return false
	}
	return prewriteNow(s, req, s.deadline(call, req.Context),
		func(resp *kvrpcpb.PrewriteResponse, err error) {
			answer(call, resp, err)
		})
}

func (s *Service) inlinePut(call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.RawPutRequest)
	if req.Unmarshal(request) != nil {
		return false
	}
	s.writeAsync(s.put(req), s.deadline(call, req.Context), func(err error) {
		resp, err := putAnswer(err)
		answer(call, resp, err)
	})
	return true
}

func (s *Service) inlineDelete(call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.RawDeleteRequest)
	if req.Unmarshal(request) != nil {
		return false
	}
	s.writeAsync(s.del(req), s.deadline(call, req.Context), func(err error) {
		resp, err := deleteAnswer(err)
		answer(call, resp, err)
	})
	return true
}

func answer(call *rpc.Call, resp any, err error) {
	if err != nil {
		call.Fail(err)
		return
	}
	call.Reply(resp)
}

// deadline is the earlier one of the call's and the request's.
func (s *Service) deadline(call *rpc.Call, c *kvrpcpb.Context) time.Time {
	own := time.Now().Add(s.timeout(c))
	if t, ok := call.Deadline(); ok && t.Before(own) {
		return t
	}
	return own
}

// writeAsync begins a write; done gets its outcome, exactly once, by the deadline or soon after it.
// After the deadline the write may still be carried out.
func (s *Service) writeAsync(c change, deadline time.Time, done func(error)) {
	if c.err != nil || len(c.mods) == 0 {
		done(c.err)
		return
	}
	w := &asyncWrite{done: done}
	s.async.WriteAsync(c.to, c.mods, deadline, func(_ uint64, err error) { w.finish(err) })
	w.limit(deadline)
}

// asyncWrite answers a write by what comes first, its outcome or its deadline.
type asyncWrite struct {
	done func(error)
	mu   struct {
		sync.Mutex
		answered bool
		timer    *time.Timer
	}
}

func (w *asyncWrite) finish(err error) {
	w.mu.Lock()
	first := !w.mu.answered
	w.mu.answered = true
	if w.mu.timer != nil {
		w.mu.timer.Stop()
	}
	w.mu.Unlock()
	if first {
		w.done(err)
	}
}

func (w *asyncWrite) limit(deadline time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.mu.answered {
		w.mu.timer = time.AfterFunc(
			time.Until(deadline),
			func() { w.finish(context.DeadlineExceeded) },
		)
	}
}
