package server

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// overTheWire serves svc and returns a client of it.
func overTheWire(t testing.TB, svc *Server) tinykvpb.TinyKvClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := rpc.New(Options(svc.cfg))
	Register(g, svc)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(codec.CallOption(), grpc.MaxCallRecvMsgSize(16<<20)))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		g.Stop()
		require.ErrorIs(t, <-served, rpc.ErrStopped)
	})
	return tinykvpb.NewTinyKvClient(conn)
}

func regionOne() *kvrpcpb.Context {
	return &kvrpcpb.Context{
		RegionId: 1, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peer: &metapb.Peer{Id: 1, StoreId: 1},
	}
}

// TestInlineAnswers: what is answered where it is read is what the handlers would have said.
func TestInlineAnswers(t *testing.T) {
	svc := newReplicated(t)
	c, ctx := overTheWire(t, svc), context.Background()
	elsewhere := regionOne()
	elsewhere.RegionId = 77
	for _, tc := range []struct {
		name, cf, key string
		in            *kvrpcpb.Context
	}{
		{"written", "", "b", regionOne()},
		{"other column family", "write", "b", regionOne()},
		{"no such column family", "nope", "b", regionOne()},
		{"empty key", "", "", regionOne()},
		{"not in the region", "", "z", regionOne()},
		{"no such region", "", "b", elsewhere},
		{"no context", "", "b", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			put := &kvrpcpb.RawPutRequest{
				Context: tc.in, Cf: tc.cf, Key: []byte(tc.key), Value: []byte("v"),
			}
			get := &kvrpcpb.RawGetRequest{Context: tc.in, Cf: tc.cf, Key: []byte(tc.key)}
			del := &kvrpcpb.RawDeleteRequest{Context: tc.in, Cf: tc.cf, Key: []byte(tc.key)}
			for range 2 {
				wantPut, wantErr := svc.RawPut(ctx, put)
				gotPut, err := c.RawPut(ctx, put)
				require.Equal(t, status.Code(wantErr), status.Code(err))
				require.Equal(t, wantPut.LogIndex > 0, gotPut.LogIndex > wantPut.LogIndex,
					"each write has an entry of its own")
				wantPut.LogIndex, gotPut.LogIndex = 0, 0
				require.Equal(t, wantPut, gotPut)
				wantGet, wantErr := svc.RawGet(ctx, get)
				gotGet, err := c.RawGet(ctx, get)
				require.Equal(t, status.Code(wantErr), status.Code(err))
				require.Equal(t, wantGet, gotGet)
			}
			want, wantErr := svc.RawDelete(ctx, del)
			got, err := c.RawDelete(ctx, del)
			require.Equal(t, status.Code(wantErr), status.Code(err))
			want.LogIndex, got.LogIndex = 0, 0
			require.Equal(t, want, got)
			after, err := c.RawGet(ctx, get)
			require.NoError(t, err)
			require.Empty(t, after.Value)
		})
	}
}

// fakeStorage answers gets with a value of its own size, after a while, and writes when the test
// asks for it.
type fakeStorage struct {
	value []byte
	gets  atomic.Int64
	delay time.Duration
	mu    struct {
		sync.Mutex
		writes []func(uint64, error)
		// most is how many there were at once.
		most int
	}
}

func (f *fakeStorage) Get(
	context.Context, *kvrpcpb.Context, engine.CF, []byte,
) ([]byte, bool, error) {
	f.gets.Add(1)
	return f.value, true, nil
}

func (f *fakeStorage) GetLocal(
	*kvrpcpb.Context, engine.CF, []byte,
) (value []byte, found, ok bool, err error) {
	// a get that waits for the disk; too short a time to sleep for
	for start := time.Now(); time.Since(start) < f.delay; {
	}
	f.gets.Add(1)
	return f.value, true, true, nil
}

func (f *fakeStorage) Reader(context.Context, *kvrpcpb.Context, []byte) (storage.Reader, error) {
	return nil, errors.New("no scans here")
}

func (f *fakeStorage) Write(context.Context, *kvrpcpb.Context, []storage.Modify) (uint64, error) {
	return 0, errors.New("only asynchronous writes here")
}

func (f *fakeStorage) WriteAsync(
	_ *kvrpcpb.Context, _ []storage.Modify, _ time.Time, done func(uint64, error),
) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.writes = append(f.mu.writes, done)
	f.mu.most = max(f.mu.most, len(f.mu.writes))
}

func (f *fakeStorage) most() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.most
}

// finish answers all writes so far.
func (f *fakeStorage) finish(err error) {
	f.mu.Lock()
	writes := f.mu.writes
	f.mu.writes = nil
	f.mu.Unlock()
	for _, done := range writes {
		done(0, err)
	}
}

// keepFinishing answers writes as they come, until the function it returns is called.
func (f *fakeStorage) keepFinishing() (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			f.finish(nil)
			select {
			case <-end:
				f.finish(nil)
				return
			default:
				runtime.Gosched()
			}
		}
	}()
	return func() { close(end); <-ended }
}

func (f *fakeStorage) pending() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.mu.writes)
}

func newFake(f *fakeStorage) *Server {
	return New(config.Default(), f, nil, nil, zap.NewNop())
}

// TestWriteIsAnsweredAtItsDeadline: also if its outcome stays away, and only once.
func TestWriteIsAnsweredAtItsDeadline(t *testing.T) {
	f := new(fakeStorage)
	svc := newFake(f)
	answers := make(chan error, 2)
	svc.rawPutAsync(&kvrpcpb.RawPutRequest{Key: []byte("k")}, time.Now().Add(time.Millisecond),
		func(_ *kvrpcpb.RawPutResponse, err error) { answers <- err })
	require.Equal(t, codes.DeadlineExceeded, status.Code(<-answers))
	require.Equal(t, 1, f.pending())
	f.finish(nil)
	require.Empty(t, answers)

	svc.rawDeleteAsync(&kvrpcpb.RawDeleteRequest{Key: []byte("k")}, time.Now().Add(time.Hour),
		func(_ *kvrpcpb.RawDeleteResponse, err error) { answers <- err })
	f.finish(nil)
	require.NoError(t, <-answers)
}

// TestBatchWriteHoldsItsSlotUntilItIsAnswered: requests beyond the limit wait for those before
// them.
func TestBatchWriteHoldsItsSlotUntilItIsAnswered(t *testing.T) {
	f := new(fakeStorage)
	c := overTheWire(t, newFake(f))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.BatchCommands(ctx)
	require.NoError(t, err)
	const puts = maxBatchInflight + 100
	for i := range puts {
		require.NoError(t,
			stream.Send(&kvrpcpb.BatchCommandsRequest{Commands: []*kvrpcpb.BatchCommand{
				{Id: uint64(i), Put: &kvrpcpb.RawPutRequest{Key: []byte("k")}},
			}}))
	}
	require.Eventually(t, func() bool {
		return f.pending() == maxBatchInflight
	}, 10*time.Second, time.Millisecond)
	defer f.keepFinishing()()
	seen := map[uint64]bool{}
	for len(seen) < puts {
		resp, err := stream.Recv()
		require.NoError(t, err)
		for _, r := range resp.Replies {
			require.False(t, seen[r.Id])
			require.NotNil(t, r.Put)
			seen[r.Id] = true
		}
	}
	require.Equal(t, maxBatchInflight, f.most())
}

// TestStopDoesNotWaitForWrites: their region may have lost its quorum, and the store is stopped
// after the server.
func TestStopDoesNotWaitForWrites(t *testing.T) {
	f := new(fakeStorage)
	start := time.Now()
	t.Run("served", func(t *testing.T) {
		c := overTheWire(t, newFake(f))
		stream, err := c.BatchCommands(context.Background())
		require.NoError(t, err)
		put := &kvrpcpb.RawPutRequest{Key: []byte("k")}
		require.NoError(t,
			stream.Send(&kvrpcpb.BatchCommandsRequest{
				Commands: []*kvrpcpb.BatchCommand{{Id: 1, Put: put}},
			}))
		go func() { _, _ = c.RawPut(context.Background(), put) }()
		require.Eventually(t, func() bool {
			return f.pending() == 2
		}, 10*time.Second, time.Millisecond)
	})
	require.Less(t, time.Since(start), config.Default().Server.RequestTimeout.Duration/2)
	f.finish(nil) // too late for anyone
}

// TestBatchBacklogIsBounded: a client that takes no replies is not served further, and loses
// nothing.
func TestBatchBacklogIsBounded(t *testing.T) {
	f := &fakeStorage{value: make([]byte, 64<<10)}
	c := overTheWire(t, newFake(f))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.BatchCommands(ctx)
	require.NoError(t, err)
	const gets = 2000 // 125 MiB
	sent := make(chan error, 1)
	go func() {
		for i := range gets {
			if err := stream.Send(&kvrpcpb.BatchCommandsRequest{Commands: []*kvrpcpb.BatchCommand{
				{Id: uint64(i), Get: &kvrpcpb.RawGetRequest{Key: []byte("k")}},
			}}); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	require.NoError(t, <-sent)
	last := int64(-1)
	require.Eventually(t, func() bool { // until nothing moves
		now := f.gets.Load()
		still := now == last
		last = now
		return still && now > 0
	}, 10*time.Second, 50*time.Millisecond)
	require.Less(t, last*int64(len(f.value)), int64(3*maxBatchBacklog))
	got := 0
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		got += len(resp.Replies)
	}
	require.Equal(t, gets, got)
}

// TestBatchStreamsEndAnyhow: streams are cancelled while requests arrive, are answered and expire.
func TestBatchStreamsEndAnyhow(t *testing.T) {
	const seed = 20261128
	f := &fakeStorage{value: make([]byte, 100)}
	t.Cleanup(f.keepFinishing())
	c := overTheWire(t, newFake(f))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for range 30 {
				endAnyhow(t, c, rng)
			}
		}()
	}
	wg.Wait()
}

func endAnyhow(t *testing.T, c tinykvpb.TinyKvClient, rng *rand.Rand) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.BatchCommands(ctx)
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	for i := range 1 + rng.IntN(20) {
		cmd := &kvrpcpb.BatchCommand{Id: uint64(i), TimeoutMs: rng.Uint64N(3)}
		switch rng.IntN(4) {
		case 0:
			cmd.Get = &kvrpcpb.RawGetRequest{Key: []byte("k")}
		case 1:
			cmd.Put = &kvrpcpb.RawPutRequest{Key: []byte("k")}
		case 2:
			cmd.Scan = &kvrpcpb.RawScanRequest{}
		}
		if stream.Send(&kvrpcpb.BatchCommandsRequest{
			Commands: []*kvrpcpb.BatchCommand{cmd},
		}) != nil {
			return
		}
	}
	switch rng.IntN(3) {
	case 0:
		_ = stream.CloseSend()
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	case 1:
		_, _ = stream.Recv()
	}
}

// TestSlowGetsGoAround: over the wire, too.
func TestSlowGetsGoAround(t *testing.T) {
	f := &fakeStorage{delay: 2 * gate.SlowGet}
	svc := newFake(f)
	c := overTheWire(t, svc)
	for range 2 * gate.Limit / gate.SlowWeight {
		_, err := c.RawGet(context.Background(),
			&kvrpcpb.RawGetRequest{Context: regionOne(), Key: []byte("k")})
		require.NoError(t, err)
	}
	require.True(t, svc.Gate().Closed())
}

// TestReusedGetsKeepNothing: what one request leaves in memory is not seen by the next.
func TestReusedGetsKeepNothing(t *testing.T) {
	full := regionOne()
	full.Term, full.ClusterId, full.WriteClient, full.WriteNumber = 7, 8, 9, 10
	full.WriteAttempt, full.LogPosition, full.WriteOrigins = 11, 12, []*kvrpcpb.WriteOrigin{{}}
	full.Peer.Role = metapb.PeerRole_Learner
	noEpoch, noPeer, zeroEpoch := regionOne(), regionOne(), regionOne()
	noEpoch.RegionEpoch, noPeer.Peer, zeroEpoch.RegionEpoch = nil, nil, &metapb.RegionEpoch{}
	g := new(getRequest)
	for _, tc := range []struct {
		req  *kvrpcpb.RawGetRequest
		want bool
	}{
		{&kvrpcpb.RawGetRequest{Context: full, Key: []byte("a long key"), Cf: "write"}, true},
		{&kvrpcpb.RawGetRequest{Context: regionOne(), Key: []byte("key")}, true},
		{&kvrpcpb.RawGetRequest{Context: noEpoch, Key: []byte("key")}, false},
		{&kvrpcpb.RawGetRequest{Context: noPeer, Key: []byte("key")}, false},
		{&kvrpcpb.RawGetRequest{Context: zeroEpoch, Key: []byte("key")}, false},
		{&kvrpcpb.RawGetRequest{Key: []byte("key")}, false},
		{&kvrpcpb.RawGetRequest{Context: regionOne()}, true},
		{&kvrpcpb.RawGetRequest{Context: full, Key: []byte("k")}, true},
	} {
		b, err := tc.req.Marshal()
		require.NoError(t, err)
		require.Equal(t, tc.want, g.decode(b))
		if !tc.want {
			continue
		}
		got, err := g.req.Marshal()
		require.NoError(t, err)
		require.Equal(t, b, got)
	}
	require.False(t, g.decode([]byte{0xff}))
}

// noteMessages is a RaftHandler that counts.
type noteMessages struct{ got chan uint64 }

func (n noteMessages) HandleRaft(m *rspb.RaftMessage) error { n.got <- m.RegionId; return nil }
func (n noteMessages) HandleRaftBatch(msgs []*rspb.RaftMessage, _ func(*rspb.RaftMessage, error)) {
	for _, m := range msgs {
		n.got <- m.RegionId
	}
}

// TestRaftBatchInOrder: whether the reader or the handler works the messages off, they arrive once
// and in order.
func TestRaftBatchInOrder(t *testing.T) {
	h := noteMessages{make(chan uint64, 10_000)}
	c := overTheWire(t, New(config.Default(), new(fakeStorage), h, nil, zap.NewNop()))
	stream, err := c.RaftBatch(context.Background())
	require.NoError(t, err)
	next := uint64(0)
	for range 1000 {
		batch := new(rspb.BatchRaftMessage)
		for range 3 {
			batch.Msgs = append(batch.Msgs, &rspb.RaftMessage{RegionId: next})
			next++
		}
		require.NoError(t, stream.Send(batch))
	}
	_, err = stream.CloseAndRecv()
	require.NoError(t, err)
	for want := range next {
		require.Equal(t, want, <-h.got)
	}
	require.Empty(t, h.got)
}
