package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/regionerr"
	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"github.com/tinykv/tinykv/scheduler/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore answers from a map; batch says how it treats BatchCommands.
type fakeStore struct {
	tinykvpb.UnimplementedTinyKvServer
	mu    sync.Mutex
	data  map[string]string
	batch string // "serve", "unknown", "break"
	// breakCode is the status with which a stream breaks; OK: Internal.
	breakCode codes.Code
	streams   atomic.Int64
	messages  atomic.Int64
	unary     atomic.Int64
	// regionErr, if set, is asked before each request.
	regionErr func(*kvrpcpb.Context) *errorpb.Error
	// index is the log index in the answers to writes.
	index uint64
	// puts are the attempts of writes that came, in order, before they were treated in any way.
	puts []seenPut
}

// seenPut is when an attempt came, what it said of itself, and how long the client gave it from
// then on.
type seenPut struct {
	at      time.Time
	context *kvrpcpb.Context
	answer  time.Duration
}

func (f *fakeStore) sawPut(ctx context.Context, in *kvrpcpb.RawPutRequest) {
	p := seenPut{at: time.Now(), context: in.Context}
	if d, ok := ctx.Deadline(); ok {
		p.answer = d.Sub(p.at)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts = append(f.puts, p)
}

func (f *fakeStore) RawGet(
	_ context.Context, in *kvrpcpb.RawGetRequest,
) (*kvrpcpb.RawGetResponse, error) {
	f.unary.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.regionErr != nil {
		if e := f.regionErr(in.Context); e != nil {
			return &kvrpcpb.RawGetResponse{RegionError: e}, nil
		}
	}
	v, ok := f.data[string(in.Key)]
	return &kvrpcpb.RawGetResponse{Value: []byte(v), NotFound: !ok}, nil
}

func (f *fakeStore) RawPut(
	ctx context.Context, in *kvrpcpb.RawPutRequest,
) (*kvrpcpb.RawPutResponse, error) {
	f.unary.Add(1)
	f.sawPut(ctx, in)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.regionErr != nil {
		if e := f.regionErr(in.Context); e != nil {
			return &kvrpcpb.RawPutResponse{RegionError: e}, nil
		}
	}
	f.data[string(in.Key)] = string(in.Value)
	return &kvrpcpb.RawPutResponse{LogIndex: f.index}, nil
}

func (f *fakeStore) BatchCommands(stream tinykvpb.TinyKv_BatchCommandsServer) error {
	f.streams.Add(1)
	f.mu.Lock()
	unknown := f.batch == "unknown"
	f.mu.Unlock()
	if unknown {
		return status.Error(codes.Unimplemented, "unknown method BatchCommands")
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		f.messages.Add(1)
		f.mu.Lock()
		breaks := f.batch == "break"
		f.mu.Unlock()
		if breaks {
			for _, c := range req.Commands {
				if c.Put != nil {
					f.sawPut(stream.Context(), c.Put)
				}
			}
			return status.Error(cmp.Or(f.breakCode, codes.Internal), "broken on purpose")
		}
		// Answered in reverse order: the ids must bring each reply to its caller.
		resp := &kvrpcpb.BatchCommandsResponse{}
		for i := len(req.Commands) - 1; i >= 0; i-- {
			c := req.Commands[i]
			r := &kvrpcpb.BatchReply{Id: c.Id}
			switch {
			case c.Get != nil:
				r.Get, _ = f.RawGet(stream.Context(), c.Get)
			case c.Put != nil:
				r.Put, _ = f.RawPut(stream.Context(), c.Put)
			default:
				r.Code, r.Message = uint32(codes.InvalidArgument), "not in this test"
			}
			resp.Replies = append(resp.Replies, r)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// fakePlacement knows one region on one store.
type fakePlacement struct {
	addr  string
	asked atomic.Int64
}

var onlyRegion = &metapb.Region{
	Id: 1, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	Peers: []*metapb.Peer{{Id: 1, StoreId: 1}},
}

func (p *fakePlacement) GetRegion(context.Context, []byte) (*client.Region, error) {
	p.asked.Add(1)
	return &client.Region{Meta: onlyRegion, Leader: onlyRegion.Peers[0]}, nil
}

func (p *fakePlacement) GetStore(context.Context, uint64) (*metapb.Store, error) {
	return &metapb.Store{Id: 1, Address: p.addr}, nil
}

func (p *fakePlacement) ScanRegions(
	context.Context, []byte, []byte, int,
) ([]*client.Region, error) {
	return nil, errors.New("not needed")
}

func serve(t *testing.T, f *fakeStore) *fakePlacement {
	t.Helper()
	addr, _ := serveStoppable(t, f)
	return &fakePlacement{addr: addr}
}

// serveStoppable serves f until stop is called or the test ends.
func serveStoppable(t *testing.T, f *fakeStore) (addr string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer(codec.ServerOption())
	tinykvpb.RegisterTinyKvServer(s, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	stop = func() { s.Stop(); <-done }
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func open(t *testing.T, p Placement, o Options) *Client {
	c := New(p, o)
	t.Cleanup(c.Close)
	return c
}

func TestManyCallersShareAStream(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "serve"}
	c := open(t, serve(t, f), Options{Conns: 1})
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 50 {
				key, value := fmt.Appendf(nil, "%d/%d", w, i), fmt.Appendf(nil, "v%d/%d", w, i)
				if err := c.Put(context.Background(), key, value); err != nil {
					t.Error(err)
					return
				}
				got, found, err := c.Get(context.Background(), key)
				if err != nil || !found || string(got) != string(value) {
					t.Errorf("get %s: %q %v %v", key, got, found, err)
				}
			}
		}()
	}
	wg.Wait()
	require.EqualValues(t, 1, f.streams.Load())
	require.Less(t, f.messages.Load(), int64(64*50*2), "nothing was batched")
	t.Logf("%d requests in %d messages", 64*50*2, f.messages.Load())
}

func TestOldStoresAreAskedCallByCall(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "unknown"}
	c := open(t, serve(t, f), Options{Conns: 1})
	for i := range 20 {
		require.NoError(t, c.Put(context.Background(), fmt.Appendf(nil, "k%d", i), nil))
	}
	require.EqualValues(t, 20, f.unary.Load())
	require.EqualValues(t, 1, f.streams.Load(), "asked once")
}

// TestBrokenStream: a write that was sent on a stream that broke has an unknown outcome; the next
// one opens a new stream.
func TestBrokenStream(t *testing.T) {
	for _, code := range []codes.Code{
		codes.Internal, codes.Unavailable, codes.ResourceExhausted, codes.InvalidArgument,
	} {
		t.Run(code.String(), func(t *testing.T) { brokenStream(t, code) })
	}
}

func brokenStream(t *testing.T, code codes.Code) {
	f := &fakeStore{data: map[string]string{}, batch: "break", breakCode: code}
	c := open(t, serve(t, f), Options{Conns: 1, NoRetryUnknown: true})
	err := c.Put(context.Background(), []byte("k"), []byte("v"))
	require.True(t, IsUnknown(err), "%v", err)
	f.mu.Lock()
	f.batch = "serve"
	f.mu.Unlock()
	require.Eventually(t, func() bool {
		return c.Put(context.Background(), []byte("k"), []byte("v")) == nil
	}, 5*time.Second, 10*time.Millisecond)
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	c := open(t, &fakePlacement{addr: addr}, Options{Conns: 1})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err = c.Put(ctx, []byte("k"), []byte("v"))
	require.Error(t, err)
	require.False(t, IsUnknown(err), "nothing can have been carried out: %v", err)
}

// TestTooLate: what is not even sent is not unknown.
func TestTooLate(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "serve"}
	c := open(t, serve(t, f), Options{})
	require.NoError(t, c.Put(context.Background(), []byte("k"), []byte("v")))
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	err := c.Put(ctx, []byte("k"), []byte("w"))
	require.Error(t, err)
	require.False(t, IsUnknown(err), "nothing was sent: %v", err)
	require.Equal(t, "v", f.data["k"])
}

// hangingStore answers the first request when hang is closed.
func hangingStore(hang <-chan struct{}) *fakeStore {
	f := &fakeStore{data: map[string]string{"k": "v"}, batch: "serve"}
	first := true
	f.regionErr = func(*kvrpcpb.Context) *errorpb.Error {
		if first {
			first = false
			f.mu.Unlock()
			<-hang
			f.mu.Lock()
		}
		return nil
	}
	return f
}

// TestAttemptsEndByThemselves: a store that takes a request and does not answer costs an attempt no
// more than its time, although the caller's context goes on.
func TestAttemptsEndByThemselves(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	c := open(t, serve(t, hangingStore(hang)), Options{
		Unary: true, Conns: 1, Timeout: time.Minute, AttemptTimeout: 50 * time.Millisecond,
	})
	v, found, err := c.Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "v", string(v))
}

// TestBatchedCallsEndByThemselves whether they were sent, wait for their turn or for a connection.
func TestBatchedCallsEndByThemselves(t *testing.T) {
	hang := make(chan struct{})
	conn := rpc.New(serve(t, hangingStore(hang)).addr, rpc.Options{})
	nowhere := rpc.New("nowhere:1", rpc.Options{
		ConnectTimeout: time.Minute,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	get := func(b *batcher, left time.Duration) error {
		ctx := rpc.WithDeadline(t.Context(), time.Now().Add(left))
		_, err := b.do(ctx, &kvrpcpb.BatchCommand{Get: &kvrpcpb.RawGetRequest{Key: []byte("k")}}, 1)
		return err
	}
	b, b2 := newBatcher(conn), newBatcher(nowhere)
	defer func() {
		close(hang)
		require.NoError(t, nowhere.Close())
		b.close()
		b2.close()
		require.NoError(t, conn.Close())
	}()
	require.Equal(t, codes.DeadlineExceeded, status.Code(get(b, 30*time.Millisecond)))
	long := make(chan error, 1)
	go func() { long <- get(b, time.Minute) }() // its deadline is not the first one
	require.Equal(t, codes.DeadlineExceeded, status.Code(get(b, 30*time.Millisecond)))
	require.Empty(t, long)

	// The first caller sends for the others, and comes back when the connection is there or is
	// given up.
	go func() { _ = get(b2, 50*time.Millisecond) }()
	require.Eventually(t, func() bool {
		b2.mu.Lock()
		defer b2.mu.Unlock()
		return b2.mu.sending
	}, time.Minute, time.Millisecond)
	require.ErrorIs(t, get(b2, 30*time.Millisecond), errNotSent)
}

// TestPatience: what is large gets more time for the answer, and what was late.
func TestPatience(t *testing.T) {
	f := &fakeStore{data: map[string]string{}}
	late := 0
	f.regionErr = func(*kvrpcpb.Context) *errorpb.Error {
		if late--; late >= 0 {
			return &errorpb.Error{
				ServerIsBusy: &errorpb.ServerIsBusy{Reason: regionerr.ErrDeadlineExceeded.Error()},
			}
		}
		return nil
	}
	c := open(t, serve(t, f),
		Options{Unary: true, AttemptTimeout: 20 * time.Second, Timeout: 10 * time.Minute})
	for _, put := range []struct {
		size, late int
		want       []seenPut // in seconds; the machine may take some of them
	}{
		{size: 0, want: []seenPut{{answer: 20}}},
		{size: slowBytes - 1, want: []seenPut{{answer: 20}}},
		{size: 1 << 20, want: []seenPut{{answer: 100}}},
		{
			late: 5,
			want: []seenPut{
				{answer: 20}, {answer: 40}, {answer: 80}, {answer: 160}, {answer: 160},
				{answer: 160},
			},
		},
	} {
		f.mu.Lock()
		f.puts, late = nil, put.late
		f.mu.Unlock()
		require.NoError(t, c.Put(context.Background(), []byte("k"), make([]byte, put.size)))
		f.mu.Lock()
		puts := f.puts
		f.mu.Unlock()
		require.Len(t, puts, len(put.want))
		for i, want := range put.want {
			require.InDelta(t, (want.answer*time.Second - 2*time.Second).Seconds(),
				puts[i].answer.Seconds(), 2.1, "%+v, attempt %d", put, i)
		}
	}
}

// TestGivingUpTellsWhy: the last attempt has no time left in the end, so that its failure alone
// would tell nothing.
func TestGivingUpTellsWhy(t *testing.T) {
	f := &fakeStore{data: map[string]string{}}
	var attempts atomic.Int64
	f.regionErr = func(*kvrpcpb.Context) *errorpb.Error {
		reason := "the disk is full"
		if attempts.Add(1) > 1 {
			reason = regionerr.ErrDeadlineExceeded.Error()
		}
		return &errorpb.Error{ServerIsBusy: &errorpb.ServerIsBusy{Reason: reason}}
	}
	c := open(t, serve(t, f), Options{Unary: true})
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, c.Put(ctx, []byte("k"), []byte("v")), "the disk is full")
	require.Greater(t, attempts.Load(), int64(1))
}

// putThroughBreak puts a key while the stream breaks once, and returns the attempts that the store
// saw.
func putThroughBreak(t *testing.T, c *Client, f *fakeStore) ([]seenPut, error) {
	t.Helper()
	f.mu.Lock()
	f.batch, f.puts = "break", nil
	f.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- c.Put(context.Background(), []byte("k"), make([]byte, maxBatched/2)) }()
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.puts) > 0 {
			f.batch = "serve"
		}
		return len(f.puts) > 0
	}, 20*time.Second, time.Millisecond)
	err := <-done
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.puts, err
}

// TestRetryTellsWhatItRetries: after an attempt of unknown outcome the write goes out again at
// once, as the same write, and names the region and the position at which the attempts of unknown
// outcome began.
func TestRetryTellsWhatItRetries(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "serve", index: 7}
	c := open(t, serve(t, f),
		Options{Conns: 1, Timeout: time.Minute, AttemptTimeout: 13 * time.Second})
	require.NoError(t, c.Put(context.Background(), []byte("k"), []byte("v")))
	puts, err := putThroughBreak(t, c, f)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(puts), 2)
	first := puts[0].context
	require.NotZero(t, first.WriteClient)
	require.EqualValues(t, 7, first.LogPosition)
	require.Empty(t, first.WriteOrigins)
	for i, p := range puts[1:] {
		require.Equal(t, first.WriteClient, p.context.WriteClient)
		require.Equal(t, first.WriteNumber, p.context.WriteNumber)
		require.EqualValues(t, i+2, p.context.WriteAttempt)
		require.Equal(t, []*kvrpcpb.WriteOrigin{{RegionId: onlyRegion.Id, LogPosition: 7}},
			p.context.WriteOrigins)
	}
	require.Less(t, puts[1].at.Sub(puts[0].at), 6*time.Second,
		"an answer would have been waited for for 13 s")
}

// TestUnknownWithoutIdentities: a store that never gave a position may not know identities. A
// second write could overwrite what others have written since, so the outcome is unknown.
func TestUnknownWithoutIdentities(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "serve"}
	c := open(t, serve(t, f),
		Options{Conns: 1, Timeout: time.Minute, AttemptTimeout: 13 * time.Second})
	require.NoError(t, c.Put(context.Background(), []byte("k"), []byte("v")))
	puts, err := putThroughBreak(t, c, f)
	require.True(t, IsUnknown(err), "%v", err)
	require.Len(t, puts, 1)
}

// TestUndeterminedIsUnknown: when the log does not reach back, the client says so and does not
// write again.
func TestUndeterminedIsUnknown(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "serve", index: 7}
	c := open(t, serve(t, f),
		Options{Conns: 1, Timeout: time.Minute, AttemptTimeout: 13 * time.Second})
	require.NoError(t, c.Put(context.Background(), []byte("k"), []byte("v")))
	f.regionErr = func(kctx *kvrpcpb.Context) *errorpb.Error {
		if len(kctx.WriteOrigins) > 0 {
			return &errorpb.Error{
				UndeterminedResult: &errorpb.UndeterminedResult{Message: "the log begins later"},
			}
		}
		return nil
	}
	puts, err := putThroughBreak(t, c, f)
	require.True(t, IsUnknown(err), "%v", err)
	require.Len(t, puts, 2)
	require.Equal(t, "v", f.data["k"])
}

// TestLargePutsAreCallsOfTheirOwn: they do not hold up what shares a stream, and do not end with
// it.
func TestLargePutsAreCallsOfTheirOwn(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "break"}
	c := open(t, serve(t, f), Options{Conns: 1})
	require.NoError(t, c.Put(t.Context(), []byte("k"), make([]byte, maxBatched)))
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Len(t, f.data["k"], maxBatched)
	require.Zero(t, f.messages.Load(), "on the stream")
}

// TestStalePositionIsSentAgain: the store's position replaces the client's, and nothing was done
// before.
func TestStalePositionIsSentAgain(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "serve", index: 43}
	f.regionErr = func(kctx *kvrpcpb.Context) *errorpb.Error {
		if kctx.LogPosition < 42 {
			return &errorpb.Error{
				StalePosition: &errorpb.StalePosition{RegionId: 1, LogPosition: 42},
			}
		}
		return nil
	}
	c := open(t, serve(t, f), Options{Conns: 1, Timeout: time.Minute, NoRetryUnknown: true})
	require.NoError(t, c.Put(context.Background(), []byte("k"), []byte("v")))
	require.NoError(t, c.Put(context.Background(), []byte("k"), []byte("w")))
	require.Len(t, f.puts, 3)
	require.Empty(t, f.puts[1].context.WriteOrigins)
	require.EqualValues(t, 42, f.puts[1].context.LogPosition)
	require.EqualValues(t, 43, f.puts[2].context.LogPosition)
}

// TestRegionErrorsAreFollowed: each kind leads where it should.
func TestRegionErrorsAreFollowed(t *testing.T) {
	for name, e := range map[string]*errorpb.Error{
		"not leader, no hint": {NotLeader: &errorpb.NotLeader{RegionId: 1}},
		"region not found":    {RegionNotFound: &errorpb.RegionNotFound{RegionId: 1}},
		"busy":                {ServerIsBusy: &errorpb.ServerIsBusy{Reason: "x"}},
		"stale command":       {StaleCommand: &errorpb.StaleCommand{}},
		"older epoch": {
			EpochNotMatch: &errorpb.EpochNotMatch{
				CurrentRegions: []*metapb.Region{
					{Id: 1, RegionEpoch: &metapb.RegionEpoch{}, Peers: onlyRegion.Peers},
				},
			},
		},
		"no regions":        {EpochNotMatch: &errorpb.EpochNotMatch{}},
		"key not in region": {KeyNotInRegion: &errorpb.KeyNotInRegion{RegionId: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			left := 3
			f := &fakeStore{data: map[string]string{"k": "v"}, batch: "serve"}
			f.regionErr = func(*kvrpcpb.Context) *errorpb.Error {
				if left--; left >= 0 {
					return e
				}
				return nil
			}
			c := open(t, serve(t, f), Options{})
			v, found, err := c.Get(context.Background(), []byte("k"))
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, "v", string(v))
			require.Less(t, left, 0)
		})
	}
}

func TestFinalErrorsAreNotRetried(t *testing.T) {
	f := &fakeStore{data: map[string]string{}, batch: "serve"}
	calls := 0
	f.regionErr = func(*kvrpcpb.Context) *errorpb.Error {
		calls++
		return &errorpb.Error{Message: "too large", RaftEntryTooLarge: &errorpb.RaftEntryTooLarge{}}
	}
	c := open(t, serve(t, f), Options{})
	_, _, err := c.Get(context.Background(), []byte("k"))
	var req *RequestError
	require.ErrorAs(t, err, &req)
	require.Equal(t, 1, calls)
	_, _, err = c.Get(context.Background(), nil)
	require.ErrorAs(t, err, &req)
}

// TestCacheNeverGoesBack: an older version of a region never replaces what is known, a newer one
// replaces everything it overlaps (N1).
func TestCacheNeverGoesBack(t *testing.T) {
	region := func(id, version uint64, start, end string) *metapb.Region {
		return &metapb.Region{
			Id: id, StartKey: []byte(start), EndKey: []byte(end),
			RegionEpoch: &metapb.RegionEpoch{Version: version, ConfVer: 1}, Peers: onlyRegion.Peers,
		}
	}
	c := newRegionCache(nil, func([]*metapb.Peer) {})
	c.insert(region(1, 1, "", ""), nil)
	c.insert(region(1, 2, "", "m"), nil)
	require.Nil(t, c.lookup([]byte("z")), "what the new version does not cover is unknown")
	c.insert(region(2, 2, "m", ""), nil)
	require.EqualValues(t, 2, c.lookup([]byte("z")).meta.Id)
	c.insert(region(1, 1, "", ""), nil)
	require.EqualValues(t, 2, c.lookup([]byte("a")).meta.RegionEpoch.Version)
	require.EqualValues(t, 2, c.lookup([]byte("z")).meta.Id)
	c.insert(region(3, 3, "f", "p"), nil)
	require.Nil(t, c.lookup([]byte("a")))
	require.EqualValues(t, 3, c.lookup([]byte("m")).meta.Id)
}
