// Package transport carries raft messages between stores.
//
// Each remote store has two lanes, each a goroutine with a bounded queue and one RaftBatch stream:
// bulk for messages with entries, control for everything else, so that a heartbeat or a vote is
// never behind a megabyte of entries. Send never blocks: what does not fit is dropped and reported
// to the region as an unreachable peer; raft sends it again. Raft snapshots go on a stream and
// connection of their own, a few at a time.
//
// Receiver is the other end: it serves these streams and hands what comes to the store.
package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/log"
	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

const (
	laneMessages  = 8192
	laneBytes     = 64 << 20
	batchMessages = 256
	batchBytes    = 1 << 20
	// resolveTTL is how long an address is used before it is asked for again; a failure asks at
	// once.
	resolveTTL = time.Minute
	retryPause = 100 * time.Millisecond
	// stallTimeout is how long the other store may take no message although its connection lives.
	stallTimeout  = 15 * time.Second
	snapshotChunk = 1 << 20
)

// ErrNoAddress is returned by a resolver for a store that does not exist any more.
var ErrNoAddress = errors.New("transport: store has no address")

// Resolver finds the address of a store.
type Resolver func(ctx context.Context, storeID uint64) (addr string, err error)

// Feedback receives what became of messages; its methods must not block.
type Feedback interface {
	ReportUnreachable(regionID, toPeer uint64)
	ReportSnapshot(regionID, toPeer uint64, ok bool)
	// ReportStoreLost says that a stream to a store has broken: its process may have died.
	ReportStoreLost(storeID uint64)
}

// Options configure a Transport.
type Options struct {
	Resolver        Resolver
	Snapshots       *snap.Manager
	SnapshotLimit   int
	SnapshotTimeout time.Duration
	MaxMessage      int
	// StallTimeout is how long the other store may take no message although its connection lives
	// (15 s): longer, and the connection is made anew. Damage on the way may have cost windows that
	// nobody gives back.
	StallTimeout time.Duration
	// Dial replaces how connections are made; nil is by TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// OnCorrupt is called for answers that were damaged on their way; may be nil.
	OnCorrupt rpc.OnCorrupt
	Logger    *zap.Logger
}

// Transport sends raft messages to other stores. Safe for concurrent use.
type Transport struct {
	opts     Options
	logger   *zap.Logger
	feedback atomic.Pointer[Feedback]
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	slots    chan struct{}
	dropped  atomic.Uint64
	sent     atomic.Uint64
	batches  atomic.Uint64

	mu struct {
		sync.Mutex
		remotes map[uint64]*remote
		closed  bool
	}
}

// New makes a transport; SetFeedback must be called before the first Send.
func New(o Options) *Transport {
	o.StallTimeout = cmp.Or(o.StallTimeout, stallTimeout)
	t := &Transport{opts: o, logger: o.Logger, slots: make(chan struct{}, o.SnapshotLimit)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.mu.remotes = map[uint64]*remote{}
	return t
}

// SetFeedback sets the receiver of reports about dropped messages.
func (t *Transport) SetFeedback(f Feedback) { t.feedback.Store(&f) }

func (t *Transport) unreachable(m *rspb.RaftMessage) {
	t.dropped.Add(1)
	if f := t.feedback.Load(); f != nil {
		(*f).ReportUnreachable(m.RegionId, m.GetToPeer().GetId())
	}
}

func (t *Transport) reportSnapshot(m *rspb.RaftMessage, ok bool) {
	if f := t.feedback.Load(); f != nil {
		(*f).ReportSnapshot(m.RegionId, m.GetToPeer().GetId(), ok)
	}
}

// Stats are counters since the start.
type Stats struct {
	// Sent counts messages, Batches the stream messages that they shared.
	Sent, Batches, Dropped uint64
}

// Stats reads the counters.
func (t *Transport) Stats() Stats {
	return Stats{Sent: t.sent.Load(), Batches: t.batches.Load(), Dropped: t.dropped.Load()}
}

// Send queues messages for a store, or sends them. It takes over the slice and the messages, and
// never blocks.
func (t *Transport) Send(storeID uint64, msgs []*rspb.RaftMessage) {
	r := t.remote(storeID)
	if r == nil {
		return
	}
	// Usually all are of one kind.
	var of [3]int
	for _, m := range msgs {
		of[kindOf(m)]++
	}
	switch len(msgs) {
	case of[kindControl]:
		r.control.push(msgs)
		return
	case of[kindBulk]:
		r.bulk.push(msgs)
		return
	}
	control, bulk := make([]*rspb.RaftMessage, 0, of[kindControl]),
		make([]*rspb.RaftMessage, 0, of[kindBulk])
	for _, m := range msgs {
		switch kindOf(m) {
		case kindControl:
			control = append(control, m)
		case kindBulk:
			bulk = append(bulk, m)
		case kindSnapshot:
			t.sendSnapshot(r, m)
		}
	}
	r.control.push(control)
	r.bulk.push(bulk)
}

// What a message is sent by: the lanes, or a stream of its own.
const (
	kindControl = iota
	kindBulk
	kindSnapshot
)

func kindOf(m *rspb.RaftMessage) int {
	switch {
	case m.GetMessage().GetSnapshot() != nil:
		return kindSnapshot
	case len(m.GetMessage().GetEntries()) > 0:
		return kindBulk
	}
	return kindControl
}

func (t *Transport) remote(storeID uint64) *remote {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return nil
	}
	r := t.mu.remotes[storeID]
	if r == nil {
		r = &remote{
			t: t, storeID: storeID, logger: t.logger.With(zap.Uint64("to-store-id", storeID)),
		}
		r.control, r.bulk = newLane(r), newLane(r)
		t.mu.remotes[storeID] = r
		for _, l := range []*lane{r.control, r.bulk} {
			t.wg.Add(1)
			// Owned by the transport; ends in Stop.
			go func() {
				defer t.wg.Done()
				l.run(t.ctx)
			}()
		}
	}
	return r
}

// Stop ends all goroutines and closes the connections. Idempotent.
func (t *Transport) Stop() {
	t.mu.Lock()
	t.mu.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.mu.remotes {
		r.mu.Lock()
		conn := r.mu.conn
		r.mu.Unlock()
		r.disconnect(conn)
	}
}

// remote is one other store: its address and its connection.
type remote struct {
	t       *Transport
	storeID uint64
	logger  *zap.Logger
	control *lane
	bulk    *lane

	mu struct {
		sync.Mutex
		conn     *rpc.Client
		addr     string
		resolved time.Time
		warned   time.Time
	}
}

// connect returns the connection, resolving the address when it is unknown or old.
func (r *remote) connect(ctx context.Context) (*rpc.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.conn != nil && time.Since(r.mu.resolved) < resolveTTL {
		return r.mu.conn, nil
	}
	rctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	addr, err := r.t.opts.Resolver(rctx, r.storeID)
	if err != nil {
		if r.mu.conn != nil && !errors.Is(err, ErrNoAddress) {
			// the placement service is away: the old address is the best there is
			return r.mu.conn, nil
		}
		return nil, fmt.Errorf("resolve store %d: %w", r.storeID, err)
	}
	r.mu.resolved = time.Now()
	if r.mu.conn != nil && addr == r.mu.addr {
		return r.mu.conn, nil
	}
	if r.mu.conn != nil {
		_ = r.mu.conn.Close()
	}
	r.mu.conn, r.mu.addr = r.t.dial(addr), addr
	return r.mu.conn, nil
}

// drop forgets the address, so that the next attempt asks for it again, if failed is the present
// connection.
func (r *remote) drop(failed *rpc.Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if failed == r.mu.conn {
		r.mu.resolved = time.Time{}
	}
}

// disconnect closes the connection, if it is the present one.
func (r *remote) disconnect(conn *rpc.Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if conn == r.mu.conn && conn != nil {
		_ = conn.Close()
		r.mu.conn = nil
	}
}

// warn logs at most once in five seconds per store.
func (r *remote) warn(msg string, err error) {
	r.mu.Lock()
	quiet := time.Since(r.mu.warned) < 5*time.Second
	if !quiet {
		r.mu.warned = time.Now()
	}
	r.mu.Unlock()
	if !quiet {
		r.logger.Warn(msg, zap.Error(err))
	}
}

// KeepAlive is how often an idle connection between stores is tried. A server must allow as much
// (server.MinKeepAlive), or it would cut its peers off every few minutes.
const KeepAlive = 10 * time.Second

func (t *Transport) dial(addr string) *rpc.Client {
	return rpc.New(addr, rpc.Options{
		MaxRecv: t.opts.MaxMessage, MaxSend: t.opts.MaxMessage, KeepAlive: KeepAlive,
		MinBackoff: 50 * time.Millisecond,
		Checksum:   true, OnCorrupt: t.opts.OnCorrupt, Dial: t.opts.Dial,
	})
}

// lane is a bounded queue of messages with the goroutine that sends them. What comes while that has
// nothing to do is sent by the goroutine that brings it, if the stream takes it without waiting: a
// goroutine less to wake for each batch.
type lane struct {
	r  *remote
	mu struct {
		sync.Mutex
		msgs  []*rspb.RaftMessage
		bytes int
		// idle is the stream while the goroutine waits for messages. Invariant: none are queued, or
		// being sent.
		idle *laneStream
	}
	wake chan struct{}
}

func newLane(r *remote) *lane { return &lane{r: r, wake: make(chan struct{}, 1)} }

func messageBytes(m *rspb.RaftMessage) int {
	n := 64
	for _, e := range m.GetMessage().GetEntries() {
		n += len(e.Data) + 16
	}
	return n
}

func (l *lane) push(msgs []*rspb.RaftMessage) {
	if len(msgs) == 0 {
		return
	}
	var refused []*rspb.RaftMessage
	l.mu.Lock()
	if l.sendNowLocked(msgs) {
		l.mu.Unlock()
		return
	}
	l.mu.idle = nil
	for _, m := range msgs {
		n := messageBytes(m)
		if len(l.mu.msgs) >= laneMessages || l.mu.bytes+n > laneBytes {
			refused = append(refused, m)
			continue
		}
		l.mu.msgs = append(l.mu.msgs, m)
		l.mu.bytes += n
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	for _, m := range refused {
		l.r.t.unreachable(m)
	}
}

// sendNowLocked sends messages if nothing is before them and it can be done without waiting.
func (l *lane) sendNowLocked(msgs []*rspb.RaftMessage) bool {
	if l.mu.idle == nil || len(msgs) > batchMessages ||
		!l.mu.idle.direct.TrySend(&rspb.BatchRaftMessage{Msgs: msgs}) {
		return false
	}
	l.sent(msgs)
	return true
}

// sent counts a batch that was sent and lets go of what is in it: its messages may lie in memory
// that lives longer.
func (l *lane) sent(batch []*rspb.RaftMessage) {
	l.r.t.sent.Add(uint64(len(batch)))
	l.r.t.batches.Add(1)
	for _, m := range batch {
		*m = rspb.RaftMessage{}
	}
}

// take removes the messages of one batch. If there are none, s is used by those who bring some.
func (l *lane) take(s *laneStream) []*rspb.RaftMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.idle = nil
	if len(l.mu.msgs) == 0 {
		l.mu.idle = s
		return nil
	}
	n, size := 0, 0
	for n < len(l.mu.msgs) && n < batchMessages {
		b := messageBytes(l.mu.msgs[n])
		if n > 0 && size+b > batchBytes {
			break
		}
		size += b
		n++
	}
	batch := make([]*rspb.RaftMessage, n)
	copy(batch, l.mu.msgs)
	rest := copy(l.mu.msgs, l.mu.msgs[n:])
	clear(l.mu.msgs[rest:])
	l.mu.msgs = l.mu.msgs[:rest]
	l.mu.bytes -= size
	return batch
}

func (l *lane) refuseAll(batch []*rspb.RaftMessage) {
	for len(batch) > 0 {
		for _, m := range batch {
			l.r.t.unreachable(m)
		}
		batch = l.take(nil)
	}
}

// laneStream is the stream a lane sends on; cancel ends it.
type laneStream struct {
	conn   *rpc.Client
	stream tinykvpb.TinyKv_RaftBatchClient
	direct *rpc.Stream // the same stream
	cancel context.CancelFunc
}

func (l *lane) open(ctx context.Context) (*laneStream, error) {
	conn, err := l.r.connect(ctx)
	if err != nil {
		return nil, err
	}
	s := &laneStream{conn: conn}
	ctx, s.cancel = context.WithCancel(ctx)
	if s.stream, err = tinykvpb.NewTinyKvClient(conn).RaftBatch(ctx); err != nil {
		s.cancel()
		l.r.drop(conn)
		return nil, err
	}
	s.direct = rpc.StreamOf(s.stream.Context()) //nolint:contextcheck // it is the stream's own
	if l == l.r.control {
		l.r.t.watch(ctx, s.stream, l.r.storeID)
	}
	return s, nil
}

// watch reports the end of a stream that was not ended from here. Nothing need be sent for that: a
// follower learns at once that its leader's process is gone.
func (t *Transport) watch(ctx context.Context, stream grpc.ClientStream, storeID uint64) {
	t.wg.Add(1)
	// Owned by the transport; ends with the stream, at the latest in Stop.
	go func() {
		defer t.wg.Done()
		_ = stream.RecvMsg(new(rspb.Done)) // the receiver answers only when the stream ends
		if f := t.feedback.Load(); f != nil && ctx.Err() == nil {
			(*f).ReportStoreLost(storeID)
		}
	}()
}

func (l *lane) run(ctx context.Context) {
	var s *laneStream
	defer func() {
		if s != nil {
			s.cancel()
		}
	}()
	for {
		batch := l.take(s)
		if len(batch) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-l.wake:
			}
			continue
		}
		var err error
		if s == nil {
			s, err = l.open(ctx)
		}
		if err == nil {
			err = l.send(s, batch)
		}
		if err == nil {
			l.sent(batch)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if s != nil {
			s.cancel()
			l.r.drop(s.conn)
			s = nil
		}
		l.r.warn("sending raft messages failed", err)
		l.refuseAll(batch)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryPause):
		}
		l.refuseAll(l.take(nil))
	}
}

var errStalled = errors.New("the store takes no messages although its connection lives")

// send sends a batch, which waits for the store to take it, but not for ever.
func (l *lane) send(s *laneStream, batch []*rspb.RaftMessage) error {
	stalled := time.AfterFunc(l.r.t.opts.StallTimeout, s.cancel)
	err := s.stream.Send(&rspb.BatchRaftMessage{Msgs: batch})
	if !stalled.Stop() && err != nil {
		l.r.disconnect(s.conn)
		return errStalled
	}
	return err
}

// sendSnapshot sends a raft snapshot in the background and reports how it ended, in every case:
// else raft would wait for ever (D6).
func (t *Transport) sendSnapshot(r *remote, m *rspb.RaftMessage) {
	select {
	case t.slots <- struct{}{}:
	default:
		t.reportSnapshot(m, false)
		return
	}
	t.wg.Add(1)
	// Owned by the transport; bounded by the snapshot timeout, ends in Stop.
	go func() {
		defer t.wg.Done()
		defer func() { <-t.slots }()
		start := time.Now()
		size, err := t.streamSnapshot(r, m)
		if err != nil {
			r.logger.Warn("sending raft snapshot failed", log.RegionID(m.RegionId), zap.Error(err))
			t.checkSnapshot(r, m)
		} else {
			r.logger.Info("sent raft snapshot", log.RegionID(m.RegionId), zap.Uint64("bytes", size),
				zap.Duration("took", time.Since(start)))
		}
		t.reportSnapshot(m, err == nil)
	}()
}

// checkSnapshot looks whether a snapshot that was not taken is still what was built. Else raft
// would have the same files sent again and again.
func (t *Transport) checkSnapshot(r *remote, m *rspb.RaftMessage) {
	var data rspb.RaftSnapshotData
	if t.ctx.Err() != nil || data.Unmarshal(m.Message.Snapshot.Data) != nil {
		return
	}
	md := m.Message.Snapshot.Metadata
	key := snap.Key{RegionID: m.RegionId, Term: md.GetTerm(), Index: md.GetIndex()}
	if err := t.opts.Snapshots.CheckBuilt(key, data.Meta); err != nil {
		r.logger.Error("built raft snapshot is damaged; it is built anew", log.RegionID(m.RegionId),
			zap.Error(err))
	}
}

func (t *Transport) streamSnapshot(r *remote, m *rspb.RaftMessage) (uint64, error) {
	var data rspb.RaftSnapshotData
	if err := data.Unmarshal(m.Message.Snapshot.Data); err != nil {
		return 0, err
	}
	md := m.Message.Snapshot.Metadata
	key := snap.Key{RegionID: m.RegionId, Term: md.GetTerm(), Index: md.GetIndex()}
	files, err := t.opts.Snapshots.OpenBuilt(key, data.Meta)
	if err != nil {
		return 0, err
	}
	defer files.Close()
	ctx, cancel := context.WithTimeout(t.ctx, t.opts.SnapshotTimeout)
	defer cancel()
	addr, err := t.opts.Resolver(ctx, r.storeID)
	if err != nil {
		return 0, fmt.Errorf("resolve store %d: %w", r.storeID, err)
	}
	conn := t.dial(addr)
	defer conn.Close()
	stream, err := tinykvpb.NewTinyKvClient(conn).Snapshot(ctx)
	if err != nil {
		return 0, err
	}
	if err := sendChunks(stream, m, files); err != nil {
		return 0, err
	}
	_, err = stream.CloseAndRecv()
	return data.FileSize, err
}
