package server

import (
	"context"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// registerInline has gets, puts and deletes answered without goroutines of their own, as far as the
// storage can.
func (s *Server) registerInline(g *rpc.Server) {
	if s.local != nil {
		g.HandleInline("/tinykvpb.TinyKv/RawGet", s.inlineGet)
	}
	g.HandleInline("/tinykvpb.TinyKv/KvGet", func(c *rpc.Call, req []byte) bool {
		return inlineTxnGet(s, c, req)
	})
	g.HandleInline("/tinykvpb.TinyKv/KvPrewrite", func(c *rpc.Call, req []byte) bool {
		return inlinePrewrite(s, c, req)
	})
	if s.async != nil {
		g.HandleInline("/tinykvpb.TinyKv/RawPut", s.inlinePut)
		g.HandleInline("/tinykvpb.TinyKv/RawDelete", s.inlineDelete)
	}
}

// inlineGet answers a get under a lease. A request that cannot be decoded, or has no full context,
// is left to the usual handler, which says so.
func (s *Server) inlineGet(call *rpc.Call, request []byte) bool {
	g := getRequests.Get().(*getRequest)
	if !g.decode(request) {
		return false
	}
	resp, ok, err := s.rawGetLocal(&g.req)
	if ok {
		answer(call, resp, err)
	}
	if ok && err == nil && resp.RegionError == nil {
		getRequests.Put(g) // errors may hold what came with the request
	}
	return ok
}

// inlineTxnGet answers a get of a transaction under a lease, if nothing has to be waited for.
func inlineTxnGet(s *Server, call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.GetRequest)
	if s.txn == nil || req.Unmarshal(request) != nil {
		return false
	}
	err := s.checkTxn(req.Key)
	var v commands.Value
	if err == nil {
		var ok bool
		if v, ok, err = s.txn.GetNow(req.Context, req.Key, commands.At(req.Version)); !ok {
			return false
		}
	}
	resp, err := txnGetAnswer(v, err)
	answer(call, resp, err)
	return true
}

// inlinePrewrite answers a prewrite that waits for nothing but its write.
func inlinePrewrite(s *Server, call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.PrewriteRequest)
	if s.txn == nil || req.Unmarshal(request) != nil {
		return false
	}
	p, err := s.prewriteOf(req)
	if err != nil {
		return false // the usual handler says so
	}
	var res commands.Prewritten
	deadline := deadlineOf(call, s.cfg)
	w := &asyncWrite{}
	w.done = func(_ uint64, err error) {
		var out commands.Prewritten
		if err == nil { // else the outcome may come meanwhile
			out = res
		}
		resp, err := prewriteAnswer(out, err)
		answer(call, resp, err)
	}
	if !s.txn.PrewriteNow(req.Context, p, deadline, func(r commands.Prewritten, err error) {
		res = r
		w.finish(0, err)
	}) {
		return false
	}
	w.limit(deadline)
	return true
}

// getRequest is a get with all that its context points to, in one piece, to be used again.
type getRequest struct {
	req   kvrpcpb.RawGetRequest
	ctx   kvrpcpb.Context
	epoch metapb.RegionEpoch
	peer  metapb.Peer
}

var getRequests = sync.Pool{New: func() any { return new(getRequest) }}

// decode reads a request over what an earlier one has left. False: the request cannot be decoded,
// or its context lacks an epoch or a peer, or has one of zeros, which is not told apart here.
func (g *getRequest) decode(b []byte) bool {
	g.epoch, g.peer = metapb.RegionEpoch{}, metapb.Peer{}
	g.ctx = kvrpcpb.Context{RegionEpoch: &g.epoch, Peer: &g.peer}
	g.req = kvrpcpb.RawGetRequest{Context: &g.ctx, Key: g.req.Key[:0]}
	return g.req.Unmarshal(b) == nil && g.epoch != (metapb.RegionEpoch{}) &&
		g.peer != (metapb.Peer{})
}

func (s *Server) inlinePut(call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.RawPutRequest)
	if req.Unmarshal(request) != nil {
		return false
	}
	s.rawPutAsync(req, deadlineOf(call, s.cfg), func(resp *kvrpcpb.RawPutResponse, err error) {
		answer(call, resp, err)
	})
	return true
}

func (s *Server) inlineDelete(call *rpc.Call, request []byte) bool {
	req := new(kvrpcpb.RawDeleteRequest)
	if req.Unmarshal(request) != nil {
		return false
	}
	deadline := deadlineOf(call, s.cfg)
	s.rawDeleteAsync(req, deadline, func(resp *kvrpcpb.RawDeleteResponse, err error) {
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

// deadlineOf is the client's deadline, or what the configuration gives to those who have none.
func deadlineOf(call *rpc.Call, cfg *config.Config) time.Time {
	if t, ok := call.Deadline(); ok {
		return t
	}
	return time.Now().Add(cfg.Server.RequestTimeout.Duration)
}

// rawPutAsync is RawPut for a storage that writes asynchronously: done is called with the answer,
// exactly once, by deadline.
func (s *Server) rawPutAsync(
	req *kvrpcpb.RawPutRequest, deadline time.Time, done func(*kvrpcpb.RawPutResponse, error),
) {
	mods, err := s.put(req)
	s.writeAsync(req.Context, mods, err, deadline, func(index uint64, err error) {
		done(putAnswer(index, err))
	})
}

// rawDeleteAsync is RawDelete as rawPutAsync is RawPut.
func (s *Server) rawDeleteAsync(
	req *kvrpcpb.RawDeleteRequest, deadline time.Time, done func(*kvrpcpb.RawDeleteResponse, error),
) {
	mods, err := s.del(req)
	s.writeAsync(req.Context, mods, err, deadline, func(index uint64, err error) {
		done(deleteAnswer(index, err))
	})
}

// writeAsync begins a write, unless the request is invalid.
func (s *Server) writeAsync(
	c *kvrpcpb.Context, mods []storage.Modify, invalid error, deadline time.Time,
	done func(uint64, error),
) {
	if invalid != nil {
		done(0, invalid)
		return
	}
	w := &asyncWrite{done: done}
	s.async.WriteAsync(c, mods, deadline, w.finish)
	w.limit(deadline)
}

// asyncWrite is a write whose outcome is not waited for: whatever comes first, outcome or deadline,
// is the answer.
type asyncWrite struct {
	done func(uint64, error)
	mu   struct {
		sync.Mutex
		answered bool
		timer    *time.Timer
	}
}

func (w *asyncWrite) finish(index uint64, err error) {
	w.mu.Lock()
	first := !w.mu.answered
	w.mu.answered = true
	if w.mu.timer != nil {
		w.mu.timer.Stop()
	}
	w.mu.Unlock()
	if first {
		w.done(index, err)
	}
}

// limit has the write answered at the deadline; it may still be carried out.
func (w *asyncWrite) limit(deadline time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.mu.answered {
		w.mu.timer = time.AfterFunc(time.Until(deadline), func() {
			w.finish(0, context.DeadlineExceeded)
		})
	}
}
