package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// maxPendingHeartbeats bounds what is held while no leader is reachable. Beyond it new regions are
// dropped and counted: the next periodic heartbeat brings them again.
const maxPendingHeartbeats = 1 << 17

// heartbeats owns the heartbeat stream.
//
// Invariant: queue holds the ids of pending in the order of arrival, each once.
type heartbeats struct {
	c       *Client
	wake    chan struct{}
	dropped atomic.Uint64

	mu struct {
		sync.Mutex
		pending     map[uint64]*schedulerpb.RegionHeartbeatRequest
		queue       []uint64
		onResponse  func(*schedulerpb.RegionHeartbeatResponse)
		onReconnect func()
	}
}

func newHeartbeats(c *Client) *heartbeats {
	h := &heartbeats{c: c, wake: make(chan struct{}, 1)}
	h.mu.pending = make(map[uint64]*schedulerpb.RegionHeartbeatRequest)
	return h
}

// SetRegionHeartbeatHandler sets who gets the commands of the placement service. The handler is
// called by one goroutine and should hand over and return.
func (c *Client) SetRegionHeartbeatHandler(fn func(*schedulerpb.RegionHeartbeatResponse)) {
	c.hb.mu.Lock()
	defer c.hb.mu.Unlock()
	c.hb.mu.onResponse = fn
}

// SetReconnectHandler sets what is called after a new heartbeat stream was bound: the store then
// sends the heartbeats of all regions it leads.
func (c *Client) SetReconnectHandler(fn func()) {
	c.hb.mu.Lock()
	defer c.hb.mu.Unlock()
	c.hb.mu.onReconnect = fn
}

// RegionHeartbeat queues a heartbeat and returns at once. A queued heartbeat of the same region is
// replaced. The request belongs to the client from then on.
func (c *Client) RegionHeartbeat(req *schedulerpb.RegionHeartbeatRequest) {
	h, id := c.hb, req.GetRegion().GetId()
	h.mu.Lock()
	_, known := h.mu.pending[id]
	switch {
	case known:
		h.mu.pending[id] = req
	case len(h.mu.pending) >= maxPendingHeartbeats:
		h.dropped.Add(1)
	default:
		h.mu.pending[id] = req
		h.mu.queue = append(h.mu.queue, id)
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// DroppedHeartbeats counts heartbeats refused because too many were waiting.
func (c *Client) DroppedHeartbeats() uint64 { return c.hb.dropped.Load() }

func (h *heartbeats) next() *schedulerpb.RegionHeartbeatRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.mu.queue) == 0 {
		h.mu.queue = nil // let go of the backing array
		return nil
	}
	id := h.mu.queue[0]
	h.mu.queue = h.mu.queue[1:]
	req := h.mu.pending[id]
	delete(h.mu.pending, id)
	return req
}

// requeue keeps an unsent heartbeat for the next stream unless a newer one has come meanwhile.
func (h *heartbeats) requeue(req *schedulerpb.RegionHeartbeatRequest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := req.GetRegion().GetId()
	if _, newer := h.mu.pending[id]; !newer {
		h.mu.pending[id] = req
		h.mu.queue = append(h.mu.queue, id)
	}
}

// run keeps a stream to the leader until the client is closed.
func (h *heartbeats) run() {
	defer h.c.wg.Done()
	first := true
	for wait := firstBackoff; h.c.ctx.Err() == nil; wait = min(2*wait, maxBackoff) {
		leader, err := h.c.leader()
		if err == nil {
			started := time.Now()
			err = h.stream(leader, first)
			first = false
			if time.Since(started) > maxBackoff {
				wait = firstBackoff
			}
		}
		if h.c.ctx.Err() != nil {
			return
		}
		h.c.logger.Debug("heartbeat stream ended", zap.Error(err))
		if pause(h.c.ctx, jitter(wait)) != nil {
			return
		}
		if err := h.c.discover(h.c.ctx, leader.version); err != nil {
			h.c.logger.Debug("no placement leader found", zap.Error(err))
		}
	}
}

// stream sends and receives on one stream until either side ends or another member leads.
func (h *heartbeats) stream(leader target, first bool) error {
	ctx, cancel := context.WithCancel(leader.reign)
	defer cancel()
	s, err := leader.RegionHeartbeat(ctx, codec.StreamOption())
	if err != nil {
		return err
	}
	if !first {
		h.reconnected()
	}
	recvErr := make(chan error, 1)
	go func() { recvErr <- h.receive(s) }() // ends with ctx; waited for below
	err = h.send(s, recvErr)
	cancel()
	if err == nil {
		return <-recvErr
	}
	return err
}

func (h *heartbeats) reconnected() {
	h.mu.Lock()
	fn := h.mu.onReconnect
	h.mu.Unlock()
	if fn != nil {
		fn()
	}
}

func (h *heartbeats) receive(s schedulerpb.Scheduler_RegionHeartbeatClient) error {
	for {
		resp, err := s.Recv()
		if err != nil {
			return err
		}
		if e := resp.GetHeader().GetError(); e != nil {
			h.c.logger.Warn("heartbeat refused", zap.String("error", e.GetMessage()),
				zap.Uint64("region-id", resp.GetRegionId()))
			continue
		}
		if resp.RegionId == 0 {
			continue // keep-alive
		}
		h.mu.Lock()
		fn := h.mu.onResponse
		h.mu.Unlock()
		if fn != nil {
			fn(resp)
		}
	}
}

func (h *heartbeats) send(s schedulerpb.Scheduler_RegionHeartbeatClient, ended chan error) error {
	for {
		for req := h.next(); req != nil; req = h.next() {
			req.Header = h.c.header()
			if err := s.Send(req); err != nil {
				h.requeue(req)
				return <-ended // the reason is with the receiver
			}
		}
		select {
		case <-h.wake:
		case err := <-ended:
			return err
		case <-h.c.ctx.Done():
			ended <- <-ended
			return nil
		}
	}
}
