package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

const (
	callbackFirst   = 20 * time.Millisecond // a store registers just before it serves
	callbackSlowest = 10 * time.Second
	callbackTimeout = 2 * time.Second
	callbacksAtOnce = 32
	callbackPatient = 3 * time.Second // failures before that are a store's start
	notCalledYet    = "not called back yet"
)

// callbacks reach the stores at the addresses that they tell, while this member leads: a store at
// whose address nobody answers, or somebody else, would get replicas that stay pending for ever. A
// store without peers gets none before its address is proven. One with peers is asked too, after it
// has registered and when a leader takes over, and is only kept from more if somebody else answers:
// that nobody does may be this member's network.
//
// Nothing of it is stored: a new leader asks again, which takes milliseconds.
type callbacks struct {
	s    *Server
	room chan struct{} // bounds the calls at once
	wg   sync.WaitGroup
	mu   struct {
		sync.Mutex
		ctx     context.Context // nil while this member does not lead
		calling map[uint64]context.CancelFunc
	}
}

func newCallbacks(s *Server) *callbacks {
	return &callbacks{s: s, room: make(chan struct{}, callbacksAtOnce)}
}

// begin asks all stores. ctx is the leadership.
func (c *callbacks) begin(ctx context.Context) {
	if !c.s.cfg.VerifyStores {
		return
	}
	c.mu.Lock()
	c.mu.ctx, c.mu.calling = ctx, map[uint64]context.CancelFunc{}
	c.mu.Unlock()
	for _, st := range c.s.cluster.Core().Stores() {
		if st.IsTombstone() {
			continue
		}
		why := ""
		if st.RegionCount() == 0 {
			why = notCalledYet
		}
		c.s.cluster.Core().UpdateStore(st.ID(), core.WithUnproven(why))
		c.start(st.Meta())
	}
}

// end waits for all calls.
func (c *callbacks) end() {
	c.mu.Lock()
	for _, cancel := range c.mu.calling {
		cancel()
	}
	c.mu.ctx, c.mu.calling = nil, nil
	c.mu.Unlock()
	c.wg.Wait()
}

// start calls a store that has registered; a call to where it was before is given up.
func (c *callbacks) start(m *metapb.Store) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.ctx == nil {
		return
	}
	if before := c.mu.calling[m.GetId()]; before != nil {
		before()
	}
	ctx, cancel := context.WithCancel(c.mu.ctx)
	c.mu.calling[m.GetId()] = cancel
	c.wg.Add(1)
	go func() { // ends when the address is proven or another, and with the leadership
		defer c.wg.Done()
		defer cancel()
		c.prove(ctx, m)
	}()
}

func (c *callbacks) prove(ctx context.Context, m *metapb.Store) {
	said := ""
	began := time.Now()
	for wait := callbackFirst; ; wait = min(2*wait, callbackSlowest) {
		select {
		case c.room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		other, err := c.s.callBack(ctx, m)
		<-c.room
		if ctx.Err() != nil || !c.s.cluster.provenIs(m, other, err) {
			return
		}
		if err == nil {
			if said != "" {
				c.s.cluster.events.add("store-reached",
					fmt.Sprintf("store %d at %s", m.GetId(), m.GetAddress()))
			}
			return
		}
		if text := err.Error(); text != said && time.Since(began) > callbackPatient {
			said = text
			c.s.logger.Warn(
				"a store is not found at the address that it tells, and gets no regions until it is",
				log.StoreID(m.GetId()), zap.String("address", m.GetAddress()), zap.Error(err))
			c.s.cluster.events.add("store-not-reached",
				fmt.Sprintf("store %d at %s: %s", m.GetId(), m.GetAddress(), text))
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// provenIs notes what came of a call. It is false if the store has registered anew since, or is
// gone.
func (c *RaftCluster) provenIs(m *metapb.Store, other bool, err error) bool {
	c.storeMu.Lock()
	defer c.storeMu.Unlock()
	st := c.core.Store(m.GetId())
	if st == nil || st.IsTombstone() || st.Address() != m.GetAddress() ||
		st.Meta().GetStartTimestamp() != m.GetStartTimestamp() {
		return false
	}
	if err == nil {
		c.core.UpdateStore(m.GetId(), core.WithUnproven(""))
		c.planner.Wake()
	} else if other || st.RegionCount() == 0 {
		c.core.UpdateStore(m.GetId(), core.WithUnproven(err.Error()))
	}
	return true
}

// callBack asks at a store's address whether it is this store that answers. other is true if
// somebody else does.
func (s *Server) callBack(ctx context.Context, m *metapb.Store) (other bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callbackTimeout)
	defer cancel()
	// A store that serves TLS is asked with the certificate that this member serves with.
	var identity func(...string) *tls.Config
	if s.identity != nil {
		identity = s.identity.Client
	}
	conn, err := grpc.NewClient("passthrough:///"+security.ServiceAddress(m, s.identity != nil),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(security.DialService(nil, identity)))
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	name := security.StoreService(s.clusterID, m.GetId(), m.GetStartTimestamp())
	resp, err := healthpb.NewHealthClient(conn).Check(ctx,
		&healthpb.HealthCheckRequest{Service: name})
	switch status.Code(err) {
	case codes.OK:
		if resp.Status != healthpb.HealthCheckResponse_SERVING {
			return false, fmt.Errorf("the store answers that it is %s", resp.Status)
		}
		return false, nil
	case codes.NotFound, codes.Unimplemented:
		return true,
			fmt.Errorf("another process answers, or another run of the store: it does not know %s",
				name)
	default:
		return false, fmt.Errorf("nobody answers: %s", status.Convert(err).Message())
	}
}
