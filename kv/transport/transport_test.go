package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/transport"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is the receiving side: the real service over a recorder.
type store struct {
	addr  string
	snaps *snap.Manager
	mu    sync.Mutex
	got   []*rspb.RaftMessage
	stop  func()
}

func (s *store) HandleRaft(m *rspb.RaftMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, m)
	return nil
}

func (s *store) HandleRaftBatch(msgs []*rspb.RaftMessage, _ func(*rspb.RaftMessage, error)) {
	for _, m := range msgs {
		_ = s.HandleRaft(m)
	}
}

func (s *store) messages() []*rspb.RaftMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*rspb.RaftMessage{}, s.got...)
}

func startStore(t *testing.T, addr string) *store {
	t.Helper()
	snaps, err := snap.Open(t.TempDir(), 4)
	require.NoError(t, err)
	s := &store{snaps: snaps}
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	s.addr = l.Addr().String()
	g := rpc.New(server.Options(config.Default()))
	server.Register(g, server.New(config.Default(), nil, s, snaps, zap.NewNop()))
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	var once sync.Once
	s.stop = func() { once.Do(func() { g.Stop(); <-done }) }
	t.Cleanup(s.stop)
	return s
}

// sender is the sending side with its feedback.
type sender struct {
	*transport.Transport
	snaps *snap.Manager
	dir   string
	mu    sync.Mutex
	lost  []uint64
	gone  []uint64
	snap  []bool
	addr  string
	err   error
}

func (s *sender) ReportUnreachable(_, toPeer uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, toPeer)
}

func (s *sender) ReportSnapshot(_, _ uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snap = append(s.snap, ok)
}

func (s *sender) resolve(context.Context, uint64) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr, s.err
}

func (s *sender) set(addr string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr, s.err = addr, err
}

func (s *sender) lostCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lost)
}

func (s *sender) snapshots() []bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]bool{}, s.snap...)
}

func (s *sender) ReportStoreLost(storeID uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = append(s.gone, storeID)
}

func (s *sender) lostStores() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]uint64{}, s.gone...)
}

func newSender(t *testing.T, addr string, change ...func(*transport.Options)) *sender {
	t.Helper()
	dir := t.TempDir()
	snaps, err := snap.Open(dir, 4)
	require.NoError(t, err)
	s := &sender{snaps: snaps, dir: dir, addr: addr}
	o := transport.Options{
		Resolver: s.resolve, Snapshots: snaps, SnapshotLimit: 1, SnapshotTimeout: 10 * time.Second,
		MaxMessage: 16 << 20, Logger: zap.NewNop(),
	}
	for _, f := range change {
		f(&o)
	}
	s.Transport = transport.New(o)
	s.SetFeedback(s)
	t.Cleanup(s.Stop)
	return s
}

func message(i uint64, entries int) *rspb.RaftMessage {
	m := &rspb.RaftMessage{
		RegionId: 1, FromPeer: &metapb.Peer{Id: 1, StoreId: 1},
		ToPeer:      &metapb.Peer{Id: 2, StoreId: 2},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Message: &eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgHeartbeat, From: 1, To: 2, Term: 6, Index: i,
		},
	}
	for range entries {
		m.Message.MsgType = eraftpb.MessageType_MsgAppend
		m.Message.Entries = append(m.Message.Entries,
			&eraftpb.Entry{Term: 6, Index: i, Data: make([]byte, 100)})
	}
	return m
}

// TestMessagesArriveInOrder: all of them, each lane in its order.
func TestMessagesArriveInOrder(t *testing.T) {
	dst := startStore(t, "127.0.0.1:0")
	src := newSender(t, dst.addr)
	const n = 2000
	for i := range uint64(n) {
		src.Send(2, []*rspb.RaftMessage{message(i, int(i%2))})
	}
	require.Eventually(t, func() bool {
		return len(dst.messages()) == n
	}, 10*time.Second, 5*time.Millisecond)
	last := map[eraftpb.MessageType]uint64{}
	for _, m := range dst.messages() {
		kind := m.Message.MsgType
		require.GreaterOrEqual(t, m.Message.Index, last[kind])
		last[kind] = m.Message.Index
	}
	require.Zero(t, src.lostCount())
}

// TestStoreComesBack: messages to a store that is down are reported, Send never blocks, and the
// lanes find the store again, also at another address. TestSentMessagesAreLetGo: a message that has
// arrived is not kept, nor what it shares an array with. Messages of one Ready do, so that a
// heartbeat used to hold the entries of its neighbours.
func TestSentMessagesAreLetGo(t *testing.T) {
	dst := startStore(t, "127.0.0.1:0")
	s := newSender(t, dst.addr)
	const n = 50
	var freed atomic.Int64
	var room [2 * n]rspb.RaftMessage // what the sender allocates messages from
	defer runtime.KeepAlive(&room)
	for i := range n {
		big, small := &room[2*i], &room[2*i+1]
		*big, *small = *message(1, 1), *message(1, 0)
		ready := []eraftpb.Message{*big.Message, *small.Message}
		runtime.AddCleanup(ready[0].Entries[0], func(struct{}) { freed.Add(1) }, struct{}{})
		big.Message, small.Message = &ready[0], &ready[1]
		s.Send(2, []*rspb.RaftMessage{big, small})
	}
	require.Eventually(t, func() bool {
		return len(dst.messages()) == 2*n
	}, 10*time.Second, 10*time.Millisecond)
	// The last batches may still be in the hands of the lanes.
	require.Eventually(t, func() bool {
		runtime.GC()
		return freed.Load() >= n*9/10
	}, 10*time.Second, 10*time.Millisecond)
}

func TestStoreComesBack(t *testing.T) {
	dst := startStore(t, "127.0.0.1:0")
	src := newSender(t, dst.addr)
	src.Send(2, []*rspb.RaftMessage{message(1, 0)})
	require.Eventually(t, func() bool {
		return len(dst.messages()) == 1
	}, 10*time.Second, 5*time.Millisecond)
	require.Empty(t, src.lostStores())
	dst.stop()
	// Noticed although nothing is sent.
	require.Eventually(t, func() bool {
		return slices.Equal(src.lostStores(), []uint64{2})
	}, 10*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		src.Send(2, []*rspb.RaftMessage{message(2, 0), message(2, 1)})
		return src.lostCount() > 2
	}, 10*time.Second, 20*time.Millisecond)
	again := startStore(t, "127.0.0.1:0")
	src.set(again.addr, nil)
	require.Eventually(t, func() bool {
		src.Send(2, []*rspb.RaftMessage{message(3, 1)})
		return len(again.messages()) > 0
	}, 10*time.Second, 20*time.Millisecond)
}

func TestUnknownStore(t *testing.T) {
	src := newSender(t, "")
	src.set("", transport.ErrNoAddress)
	src.Send(9, []*rspb.RaftMessage{message(1, 0)})
	require.Eventually(t, func() bool {
		return src.lostCount() == 1
	}, 10*time.Second, 5*time.Millisecond)
}

// TestQueuesAreBounded: what does not fit is reported at once.
func TestQueuesAreBounded(t *testing.T) {
	src := newSender(t, "")
	src.set("", errors.New("placement service is away"))
	for range 30 {
		msgs := make([]*rspb.RaftMessage, 1000)
		for i := range msgs {
			msgs[i] = message(uint64(i), 0)
		}
		src.Send(2, msgs)
	}
	require.Greater(t, src.lostCount(), 10_000)
}

// TestStoreThatTakesNothing: a store whose connection lives gives no window back. Its peers are
// unreachable, and the connection is made anew.
func TestStoreThatTakesNothing(t *testing.T) {
	l := rpctest.Listen(t)
	s := newSender(t, l.Address(), func(o *transport.Options) {
		o.StallTimeout = 50 * time.Millisecond
	})
	big := message(1, 2000)
	for i := range 2 {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { // what comes in the pause after a failure is dropped
			defer close(done)
			for ctx.Err() == nil {
				m := *big
				s.Send(2, []*rspb.RaftMessage{&m})
				time.Sleep(10 * time.Millisecond) // the pace of a leader
			}
		}()
		p := l.Greeted()
		p.Until("data", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData })
		stop()
		<-done
		p.Closed()
		require.Eventually(t, func() bool {
			return s.lostCount() > 0
		}, 10*time.Second, time.Millisecond, "connection %d", i)
	}
}

func buildSnapshot(t *testing.T, src *sender, index uint64) *rspb.RaftMessage {
	t.Helper()
	e := memengine.New()
	b := e.NewBatch()
	for i := range 20_000 {
		b.Put(engine.DataKey(engine.CFDefault, fmt.Appendf(nil, "key-%06d", i)), make([]byte, 200))
	}
	require.NoError(t, e.Write(b, true))
	view := e.NewSnapshot()
	defer view.Close()
	files, size, err := src.snaps.Build(view, snap.Key{RegionID: 1, Term: 6, Index: index},
		&metapb.Region{})
	require.NoError(t, err)
	data, err := (&rspb.RaftSnapshotData{
		Region: &metapb.Region{Id: 1}, FileSize: size, Meta: files,
	}).Marshal()
	require.NoError(t, err)
	m := message(index, 0)
	m.Message.MsgType = eraftpb.MessageType_MsgSnapshot
	m.Message.Snapshot = &eraftpb.Snapshot{
		Data: data, Metadata: &eraftpb.SnapshotMetadata{Index: index, Term: 6},
	}
	return m
}

// TestSnapshot: the files arrive whole before the message does, and the sender gets a report of it.
func TestSnapshot(t *testing.T) {
	dst := startStore(t, "127.0.0.1:0")
	src := newSender(t, dst.addr)
	m := buildSnapshot(t, src, 42)
	src.Send(2, []*rspb.RaftMessage{m})
	require.Eventually(t, func() bool {
		return len(src.snapshots()) == 1
	}, 20*time.Second, 5*time.Millisecond)
	require.Equal(t, []bool{true}, src.snapshots())
	require.Len(t, dst.messages(), 1)
	var data rspb.RaftSnapshotData
	require.NoError(t, data.Unmarshal(m.Message.Snapshot.Data))
	require.Greater(t, data.FileSize, uint64(3<<20), "several chunks")
	require.NoError(t, dst.snaps.CheckReceived(1, 6, 42, data.Meta))
	require.NoError(t, dst.snaps.Verify(snap.Key{RegionID: 1, Term: 6, Index: 42}, data.Meta))
}

// TestSnapshotFailureIsReported: in every case, else raft would wait for ever.
func TestSnapshotFailureIsReported(t *testing.T) {
	dst := startStore(t, "127.0.0.1:0")
	src := newSender(t, dst.addr)
	m := buildSnapshot(t, src, 42)
	src.snaps.DeleteBuilt(snap.Key{RegionID: 1, Term: 6, Index: 42})
	src.Send(2, []*rspb.RaftMessage{m}) // its files are gone
	require.Eventually(t, func() bool {
		return len(src.snapshots()) == 1
	}, 10*time.Second, 5*time.Millisecond)
	dst.stop()
	src.Send(2, []*rspb.RaftMessage{buildSnapshot(t, src, 43)}) // nobody listens
	require.Eventually(t, func() bool {
		return len(src.snapshots()) == 2
	}, 20*time.Second, 5*time.Millisecond)
	require.Equal(t, []bool{false, false}, src.snapshots())
	require.Empty(t, dst.messages())
}

// TestDamagedSnapshotIsBuiltAnew: files that are not what was built are not sent again and again.
func TestDamagedSnapshotIsBuiltAnew(t *testing.T) {
	dst := startStore(t, "127.0.0.1:0")
	src := newSender(t, dst.addr)
	m := buildSnapshot(t, src, 42)
	files, err := filepath.Glob(filepath.Join(src.dir, "gen_*_default.sst"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	data, err := os.ReadFile(files[0])
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.WriteFile(files[0], data, 0o600))
	src.Send(2, []*rspb.RaftMessage{m})
	require.Eventually(t, func() bool {
		return len(src.snapshots()) == 1
	}, 20*time.Second, 5*time.Millisecond)
	src.Send(2, []*rspb.RaftMessage{buildSnapshot(t, src, 42)})
	require.Eventually(t, func() bool {
		return len(src.snapshots()) == 2
	}, 20*time.Second, 5*time.Millisecond)
	require.Equal(t, []bool{false, true}, src.snapshots())
}

// TestSnapshotsCross: two stores that send each other raft snapshots through one slot each, and
// receive them with the same managers, do not wait for each other (M2).
func TestSnapshotsCross(t *testing.T) {
	a, b := startStore(t, "127.0.0.1:0"), startStore(t, "127.0.0.1:0")
	const n = 4
	start := func(from, to *store) *sender {
		s := &sender{snaps: from.snaps, addr: to.addr}
		s.Transport = transport.New(transport.Options{
			Resolver: s.resolve, Snapshots: from.snaps, SnapshotLimit: 1,
			SnapshotTimeout: 20 * time.Second, MaxMessage: 16 << 20, Logger: zap.NewNop(),
		})
		s.SetFeedback(s)
		t.Cleanup(s.Stop)
		return s
	}
	senders := []*sender{start(a, b), start(b, a)}
	sent := make([][]*rspb.RaftMessage, len(senders))
	for i, s := range senders {
		for j := range uint64(n) {
			sent[i] = append(sent[i], buildSnapshot(t, s, 100*uint64(i)+j+1))
		}
	}
	// Both send at the same time. One that finds the slot taken is refused, and raft sends it
	// again.
	var both sync.WaitGroup
	for i, s := range senders {
		both.Add(1)
		go func() {
			defer both.Done()
			for _, m := range sent[i] {
				for ok := false; !ok; {
					before := len(s.snapshots())
					s.Send(2, []*rspb.RaftMessage{m})
					if !assert.Eventually(t, func() bool {
						return len(s.snapshots()) > before
					}, 30*time.Second, time.Millisecond) {
						return
					}
					ok = s.snapshots()[before]
				}
			}
		}()
	}
	both.Wait()
	require.Len(t, a.messages(), n)
	require.Len(t, b.messages(), n)
}

// TestKeepAliveIsAllowed: a server ends connections that try more often than it allows (M5).
func TestKeepAliveIsAllowed(t *testing.T) {
	require.Greater(t, transport.KeepAlive, 2*server.MinKeepAlive)
}

// chunkStream plays back a stream of snapshot chunks.
type chunkStream struct {
	tinykvpb.TinyKv_SnapshotServer
	chunks []*rspb.SnapshotChunk
	done   bool
}

func (s *chunkStream) Recv() (*rspb.SnapshotChunk, error) {
	if len(s.chunks) == 0 {
		return nil, io.EOF
	}
	c := s.chunks[0]
	s.chunks = s.chunks[1:]
	return c, nil
}

func (s *chunkStream) SendAndClose(*rspb.Done) error { s.done = true; return nil }

// FuzzReceiveSnapshot: a stream of any chunks is stored whole or refused. What is routed can be
// verified, and what is refused leaves nothing behind.
func FuzzReceiveSnapshot(f *testing.F) {
	snaps, err := snap.Open(f.TempDir(), 4)
	if err != nil {
		f.Fatal(err)
	}
	m, files := smallSnapshot(f, snaps)
	head, err := (&rspb.SnapshotChunk{Message: m}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head, files, uint8(7))
	f.Add(head, files, uint8(255))
	f.Add(head, files[:len(files)-1], uint8(7))
	f.Add(head, append(files[:len(files):len(files)], 0), uint8(7))
	f.Add(head, []byte{}, uint8(1))
	f.Add([]byte{}, files, uint8(1))
	f.Add([]byte{10, 0}, files, uint8(1))
	f.Fuzz(func(t *testing.T, head, data []byte, size uint8) {
		first := new(rspb.SnapshotChunk)
		if first.Unmarshal(head) != nil {
			return
		}
		dir := t.TempDir()
		dst, err := snap.Open(dir, 1)
		require.NoError(t, err)
		s := &chunkStream{chunks: []*rspb.SnapshotChunk{first}}
		for size := int(size) + 1; len(data) > 0; data = data[min(size, len(data)):] {
			s.chunks = append(s.chunks, &rspb.SnapshotChunk{Data: data[:min(size, len(data))]})
		}
		var routed *rspb.RaftMessage
		pass := func(*rspb.RaftMessage) error { return nil }
		err = transport.ReceiveSnapshot(s, dst, pass, func(m *rspb.RaftMessage) error {
			routed = m
			return nil
		})
		_, receiving := dst.Counts()
		require.Zero(t, receiving)
		require.Equal(t, err == nil, s.done)
		if err != nil {
			require.Nil(t, routed)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
			return
		}
		var d rspb.RaftSnapshotData
		require.NoError(t, d.Unmarshal(routed.Message.Snapshot.Data))
		md := routed.Message.Snapshot.Metadata
		require.NoError(t, dst.CheckReceived(routed.RegionId, md.Term, md.Index, d.Meta))
		require.NoError(t,
			dst.Verify(snap.Key{RegionID: routed.RegionId, Term: md.Term, Index: md.Index}, d.Meta))
	})
}

// smallSnapshot is a raft snapshot of a few keys: its message, and its files as they are sent.
func smallSnapshot(t testing.TB, snaps *snap.Manager) (*rspb.RaftMessage, []byte) {
	e := memengine.New()
	b := e.NewBatch()
	for _, k := range []string{"a", "b", "c"} {
		b.Put(engine.DataKey(engine.CFDefault, []byte(k)), []byte("value "+k))
		b.Put(engine.DataKey(engine.CFLock, []byte(k)), nil)
	}
	require.NoError(t, e.Write(b, false))
	view := e.NewSnapshot()
	defer view.Close()
	key := snap.Key{RegionID: 1, Term: 6, Index: 42}
	meta, size, err := snaps.Build(view, key, &metapb.Region{})
	require.NoError(t, err)
	data, err := (&rspb.RaftSnapshotData{
		Region: &metapb.Region{Id: 1}, FileSize: size, Meta: meta,
	}).Marshal()
	require.NoError(t, err)
	r, err := snaps.OpenBuilt(key, meta)
	require.NoError(t, err)
	defer r.Close()
	files, err := io.ReadAll(r)
	require.NoError(t, err)
	m := message(42, 0)
	m.Message.MsgType = eraftpb.MessageType_MsgSnapshot
	m.Message.Snapshot = &eraftpb.Snapshot{
		Data: data, Metadata: &eraftpb.SnapshotMetadata{Index: 42, Term: 6},
	}
	return m, files
}
