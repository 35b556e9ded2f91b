package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// slowTry is how long a try may take before the members are asked whether another one leads: a
// leader that is paused breaks no connection.
const slowTry = 500 * time.Millisecond

// members knows the members of the service and which of them leads, and keeps a connection to each
// of them ready, so that a change of leader needs no dialing.
//
// Lock order: discoverMu, mu.
type members struct {
	c          *Client
	discoverMu sync.Mutex     // one discovery at a time
	wg         sync.WaitGroup // grows under mu and only while not closed

	mu struct {
		sync.Mutex
		endpoints []string // host:port of all known members
		leader    string   // host:port, "" if unknown
		version   uint64   // counts discoveries
		reign     context.Context
		endReign  context.CancelFunc // called when another member is found to lead
		conns     map[string]*grpc.ClientConn
		slow      int  // tries that take long
		searching bool // a goroutine looks for a leader as long as slow > 0
		closed    bool
	}
}

func newMembers(c *Client, endpoints []string) *members {
	m := &members{c: c}
	for _, e := range endpoints {
		if h := hostPort(e); h != "" {
			m.mu.endpoints = append(m.mu.endpoints, h)
		}
	}
	m.mu.conns = make(map[string]*grpc.ClientConn)
	m.mu.reign, m.mu.endReign = context.WithCancel(c.ctx)
	return m
}

// close ends all connections. The client's context is done already.
func (m *members) close() {
	m.mu.Lock()
	m.mu.closed = true
	m.mu.endReign()
	for addr, conn := range m.mu.conns {
		_ = conn.Close()
		delete(m.mu.conns, addr)
	}
	m.mu.Unlock()
	m.wg.Wait()
}

func (m *members) known() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.mu.endpoints...)
}

// hostPort strips the scheme of a URL.
func hostPort(e string) string {
	e = strings.TrimSpace(e)
	if i := strings.Index(e, "://"); i >= 0 {
		e = e[i+3:]
	}
	return strings.TrimSuffix(e, "/")
}

func (m *members) conn(addr string) (*grpc.ClientConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.connLocked(addr)
}

func (m *members) connLocked(addr string) (*grpc.ClientConn, error) {
	if m.mu.closed {
		return nil, ErrClosed
	}
	if conn := m.mu.conns[addr]; conn != nil {
		return conn, nil
	}
	creds := insecure.NewCredentials()
	switch {
	case m.c.identity != nil:
		creds = m.c.identity.Credentials()
	case m.c.tls != nil:
		creds = credentials.NewTLS(m.c.tls)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithIdleTimeout(0),
		// Of a fixed size, which saves a ping for each answer to a lone caller.
		grpc.WithInitialWindowSize(1 << 20), grpc.WithInitialConnWindowSize(8 << 20),
		grpc.WithDefaultCallOptions(codec.CallOption(), grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: connectBackoff, MinConnectTimeout: discoverTimeout,
		}),
	}
	if m.c.dial != nil {
		opts = append(opts, grpc.WithContextDialer(m.c.dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", addr, err)
	}
	m.mu.conns[addr] = conn
	m.wg.Add(1)
	go m.keepReady(conn) // ends with the client's context
	return conn, nil
}

// keepReady connects again whenever the connection was lost: gRPC alone would wait for the next
// call.
func (m *members) keepReady(conn *grpc.ClientConn) {
	defer m.wg.Done()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Shutdown:
			return
		case connectivity.Idle:
			conn.Connect()
		}
		if !conn.WaitForStateChange(m.c.ctx, state) {
			return
		}
	}
}

// target is the leader as far as is known.
type target struct {
	schedulerpb.SchedulerClient
	version uint64
	// reign ends when another member is found to lead, or with the client.
	reign context.Context
}

// leader returns the leader. The version is of use also with an error.
func (m *members) leader() (target, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := target{version: m.mu.version, reign: m.mu.reign}
	if m.mu.leader == "" {
		return t, errors.New("no leader known")
	}
	conn, err := m.connLocked(m.mu.leader)
	if err != nil {
		return t, err
	}
	t.SchedulerClient = schedulerpb.NewSchedulerClient(conn)
	return t, nil
}

// try guards one exchange with the leader: cut is called if it takes longer than attemptTimeout, or
// when another member is found to lead, which is looked for once it takes longer than slowTry. The
// caller calls done at the end.
func (m *members) try(t target, cut func()) (done func()) {
	unhook := context.AfterFunc(t.reign, cut)
	limit := time.AfterFunc(attemptTimeout, cut)
	slow := time.AfterFunc(slowTry, m.addSlow)
	return func() {
		unhook()
		limit.Stop()
		if !slow.Stop() {
			m.mu.Lock()
			m.mu.slow--
			m.mu.Unlock()
		}
	}
}

// addSlow counts a slow try and has the leader looked for as long as there are any. It is counted
// even if it ended just now: then its end has counted already, or will.
func (m *members) addSlow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.slow++
	if m.mu.searching || m.mu.slow <= 0 || m.mu.closed {
		return
	}
	m.mu.searching = true
	m.wg.Add(1)
	go m.search() // ends when no try is slow any more, or with the client
}

func (m *members) search() {
	defer m.wg.Done()
	for {
		m.mu.Lock()
		if m.mu.slow <= 0 || m.c.ctx.Err() != nil {
			m.mu.searching = false
			m.mu.Unlock()
			return
		}
		version := m.mu.version
		m.mu.Unlock()
		_ = m.discover(m.c.ctx, version) // the tries themselves report what is wrong
		_ = pause(m.c.ctx, slowTry/2)
	}
}

// discover asks the members who leads. It does nothing if the knowledge is newer than seen. All
// members are asked at once: a dead one must not delay the answer of a live one.
func (m *members) discover(ctx context.Context, seen uint64) error {
	m.discoverMu.Lock()
	defer m.discoverMu.Unlock()
	m.mu.Lock()
	known, endpoints := m.mu.version > seen, append([]string(nil), m.mu.endpoints...)
	m.mu.Unlock()
	if known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	type answer struct {
		resp *schedulerpb.GetMembersResponse
		err  error
	}
	answers := make(chan answer, len(endpoints))
	for _, addr := range endpoints {
		go func() { // ends with ctx; the channel has room for all
			resp, err := m.ask(ctx, addr)
			answers <- answer{resp, err}
		}()
	}
	var errs []error
	for range endpoints {
		a := <-answers
		if a.err == nil {
			a.err = m.learn(a.resp)
		}
		if a.err == nil {
			return nil
		}
		errs = append(errs, a.err)
	}
	return errors.Join(errs...)
}

// rediscover looks for the leader after a failure. An error means that the client was closed.
func (m *members) rediscover(version uint64) error {
	if m.discover(m.c.ctx, version) != nil {
		return pause(m.c.ctx, firstBackoff)
	}
	return nil
}

func (m *members) ask(ctx context.Context, addr string) (*schedulerpb.GetMembersResponse, error) {
	conn, err := m.conn(addr)
	if err != nil {
		return nil, err
	}
	resp, err := schedulerpb.NewSchedulerClient(conn).GetMembers(ctx,
		&schedulerpb.GetMembersRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return resp, nil
}

func (m *members) learn(resp *schedulerpb.GetMembersResponse) error {
	id := resp.GetHeader().GetClusterId()
	if old := m.c.clusterID.Load(); old != 0 && id != 0 && id != old {
		return fmt.Errorf("%w: was %d, is %d", ErrClusterMismatch, old, id)
	}
	urls := resp.GetLeader().GetClientUrls()
	if len(urls) == 0 {
		return errors.New("no leader elected yet")
	}
	m.c.clusterID.Store(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if addr := hostPort(urls[0]); addr != m.mu.leader {
		m.c.logger.Info("found placement leader", zap.String("address", addr), log.ClusterID(id))
		m.mu.leader = addr
		m.mu.endReign()
		m.mu.reign, m.mu.endReign = context.WithCancel(m.c.ctx)
		// It may have been away until a moment ago, and its connection pause between tries.
		if conn := m.mu.conns[addr]; conn != nil {
			conn.ResetConnectBackoff()
		}
	}
	m.mu.version++
	known := map[string]bool{}
	for _, e := range m.mu.endpoints {
		known[e] = true
	}
	for _, member := range resp.GetMembers() {
		for _, u := range member.GetClientUrls() {
			if h := hostPort(u); !known[h] {
				known[h] = true
				m.mu.endpoints = append(m.mu.endpoints, h)
			}
		}
	}
	for _, e := range m.mu.endpoints {
		_, _ = m.connLocked(e) // a call that needs it says why there is none
	}
	return nil
}
