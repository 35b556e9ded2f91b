package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

const (
	streamQueue       = 256
	keepAliveInterval = time.Minute
)

// responseStream is the sending half of a heartbeat stream.
type responseStream interface {
	Send(*schedulerpb.RegionHeartbeatResponse) error
}

// hbStreams deliver commands to stores: one small queue and one goroutine per bound stream, so that
// one stuck store cannot hold up the others. A full queue drops its oldest command: commands are
// sent again anyway. The newest stream of a store wins.
type hbStreams struct {
	logger    *zap.Logger
	clusterID func() uint64
	dropped   atomic.Uint64
	sent      atomic.Uint64
	mu        struct {
		sync.Mutex
		stores map[uint64]*boundStream
	}
}

type boundStream struct {
	stream responseStream
	queue  chan *schedulerpb.RegionHeartbeatResponse
	cancel context.CancelFunc
}

func newHBStreams(clusterID func() uint64, logger *zap.Logger) *hbStreams {
	h := &hbStreams{logger: logger, clusterID: clusterID}
	h.mu.stores = make(map[uint64]*boundStream)
	return h
}

// bind makes the stream the one of the store. It ends with ctx, or when another is bound.
func (h *hbStreams) bind(ctx context.Context, storeID uint64, s responseStream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.mu.stores[storeID]; old != nil {
		if old.stream == s {
			return
		}
		old.cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &boundStream{
		stream: s, queue: make(chan *schedulerpb.RegionHeartbeatResponse, streamQueue),
		cancel: cancel,
	}
	h.mu.stores[storeID] = b
	go h.pump(ctx, storeID, b) // ends with ctx, that is with the stream's handler
	h.logger.Info("bound heartbeat stream", log.StoreID(storeID))
}

// unbind forgets every store bound to the stream.
func (h *hbStreams) unbind(s responseStream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, b := range h.mu.stores {
		if b.stream == s {
			b.cancel()
			delete(h.mu.stores, id)
		}
	}
}

func (h *hbStreams) pump(ctx context.Context, storeID uint64, b *boundStream) {
	keepAlive := time.NewTicker(keepAliveInterval)
	defer keepAlive.Stop()
	for {
		resp := &schedulerpb.RegionHeartbeatResponse{}
		select {
		case <-ctx.Done():
			return
		case resp = <-b.queue:
		case <-keepAlive.C:
		}
		if resp.Header == nil {
			resp.Header = &schedulerpb.ResponseHeader{ClusterId: h.clusterID()}
		}
		if err := b.stream.Send(resp); err != nil {
			h.logger.Warn("sending a command failed", log.StoreID(storeID), zap.Error(err))
			return
		}
		h.sent.Add(1)
	}
}

// Send implements schedule.Sender. It never blocks.
func (h *hbStreams) Send(storeID uint64, resp *schedulerpb.RegionHeartbeatResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.mu.stores[storeID]
	if b == nil {
		h.dropped.Add(1)
		return
	}
	for {
		select {
		case b.queue <- resp:
			return
		default:
		}
		select {
		case <-b.queue:
			h.dropped.Add(1)
		default:
		}
	}
}
