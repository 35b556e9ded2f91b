package txnsim

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	scheduler "github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/tests/listappend/recorder"
)

var (
	flagSeed  = flag.Uint64("seed", 0, "the first seed; 0 draws one")
	flagSeeds = flag.Int("seeds", 100, "how many histories")
)

const (
	lists   = 6
	clients = 6
	rounds  = 25 // transactions of a client
)

func newModel(seed uint64) *model {
	m := &model{rng: rand.New(rand.NewPCG(seed, 1)), nextID: 2}
	for i := range stores {
		m.stores[i] = m.newStore(i, storage.NewMemStorage())
	}
	for i, at := range [][]byte{nil, memcomparable.Encode(key(lists / 2)), nil} {
		if i == 2 {
			break
		}
		end := memcomparable.Encode(key(lists / 2))
		if i == 1 {
			end = nil
		}
		r := &region{id: uint64(i + 1), term: 5, leader: i}
		for k := range stores {
			r.replicas[k].meta = meta(r.id, at, end, 1)
		}
		m.regions = append(m.regions, r)
		m.elect(r, i)
	}
	return m
}

func key(i int) []byte { return fmt.Appendf(nil, "list-%d", i) }

func (m *model) newStore(at int, mem *storage.MemStorage) *store {
	s := &store{m: m, at: at, mem: mem}
	s.srv = server.New(config.Default(), s, nil, nil, zap.NewNop())
	s.srv.SetMode(clustermode.Txn)
	s.srv.SetTimestamps(commands.NewTimestamps(func(context.Context) (uint64, error) {
		time.Sleep(m.draw())
		physical, logical := m.now()
		time.Sleep(m.draw())
		if m.chance(3) {
			return 0, status.Error(codes.Unavailable, "no timestamp")
		}
		return mvcc.Timestamp(physical, logical), nil
	}, func() bool { return true }))
	return s
}

// GetTS implements txn.Oracle.
func (m *model) GetTS(context.Context) (physical, logical int64, err error) {
	time.Sleep(m.draw() / 4)
	physical, logical = m.now()
	return physical, logical, nil
}

// GetRegion implements client.Placement.
func (m *model) GetRegion(_ context.Context, key []byte) (*scheduler.Region, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found *scheduler.Region
	for _, r := range m.regions {
		now := r.replicas[r.leader].meta
		if now != nil && string(key) >= string(now.StartKey) &&
			(len(now.EndKey) == 0 || string(key) < string(now.EndKey)) &&
			(found == nil || found.Meta.RegionEpoch.Version < now.RegionEpoch.Version) {
			found = &scheduler.Region{Meta: now, Leader: peer(r.id, r.leader)}
		}
	}
	return found, nil
}

// GetStore implements client.Placement.
func (m *model) GetStore(_ context.Context, id uint64) (*metapb.Store, error) {
	return &metapb.Store{Id: id, Address: fmt.Sprint(id)}, nil
}

// ScanRegions implements client.Placement.
func (m *model) ScanRegions(context.Context, []byte, []byte, int) ([]*scheduler.Region, error) {
	return nil, nil
}

// stub is the way to a store.
type stub struct {
	tinykvpb.TinyKvClient
	m  *model
	at int
}

// call has a request and its answer take their time, or get lost.
func call[Req, Resp any](
	ctx context.Context, s *stub, in Req,
	do func(*server.Server, context.Context, Req) (Resp, error),
) (Resp, error) {
	var none Resp
	lost := func() bool {
		time.Sleep(s.m.draw())
		if !s.m.chance(2) {
			return false
		}
		s.m.mu.Lock()
		defer s.m.mu.Unlock()
		s.m.events.lost++
		return true
	}
	if lost() {
		return none, status.Error(codes.Unavailable, "lost")
	}
	s.m.mu.Lock()
	life := s.m.stores[s.at]
	s.m.mu.Unlock()
	resp, err := do(life.srv, ctx, in)
	s.m.mu.Lock()
	dead := life.dead
	s.m.mu.Unlock()
	if dead || lost() {
		return none, status.Error(codes.Unavailable, "the answer is lost")
	}
	return resp, err
}

type opt = grpc.CallOption

func (s *stub) RawGet(
	ctx context.Context, in *kvrpcpb.RawGetRequest, _ ...opt,
) (*kvrpcpb.RawGetResponse, error) {
	return call(ctx, s, in, (*server.Server).RawGet)
}

func (s *stub) KvGet(
	ctx context.Context, in *kvrpcpb.GetRequest, _ ...opt,
) (*kvrpcpb.GetResponse, error) {
	return call(ctx, s, in, (*server.Server).KvGet)
}

func (s *stub) KvScan(
	ctx context.Context, in *kvrpcpb.ScanRequest, _ ...opt,
) (*kvrpcpb.ScanResponse, error) {
	return call(ctx, s, in, (*server.Server).KvScan)
}

func (s *stub) KvPrewrite(
	ctx context.Context, in *kvrpcpb.PrewriteRequest, _ ...opt,
) (*kvrpcpb.PrewriteResponse, error) {
	return call(ctx, s, in, (*server.Server).KvPrewrite)
}

func (s *stub) KvCommit(
	ctx context.Context, in *kvrpcpb.CommitRequest, _ ...opt,
) (*kvrpcpb.CommitResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCommit)
}

func (s *stub) KvBatchRollback(
	ctx context.Context, in *kvrpcpb.BatchRollbackRequest, _ ...opt,
) (*kvrpcpb.BatchRollbackResponse, error) {
	return call(ctx, s, in, (*server.Server).KvBatchRollback)
}

func (s *stub) KvResolveLock(
	ctx context.Context, in *kvrpcpb.ResolveLockRequest, _ ...opt,
) (*kvrpcpb.ResolveLockResponse, error) {
	return call(ctx, s, in, (*server.Server).KvResolveLock)
}

func (s *stub) KvCheckTxnStatus(
	ctx context.Context, in *kvrpcpb.CheckTxnStatusRequest, _ ...opt,
) (*kvrpcpb.CheckTxnStatusResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCheckTxnStatus)
}

func (s *stub) KvCheckSecondaryLocks(
	ctx context.Context, in *kvrpcpb.CheckSecondaryLocksRequest, _ ...opt,
) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	return call(ctx, s, in, (*server.Server).KvCheckSecondaryLocks)
}

func (s *stub) KvPessimisticLock(
	ctx context.Context, in *kvrpcpb.PessimisticLockRequest, _ ...opt,
) (*kvrpcpb.PessimisticLockResponse, error) {
	return call(ctx, s, in, (*server.Server).KvPessimisticLock)
}

func (s *stub) KvPessimisticRollback(
	ctx context.Context, in *kvrpcpb.PessimisticRollbackRequest, _ ...opt,
) (*kvrpcpb.PessimisticRollbackResponse, error) {
	return call(ctx, s, in, (*server.Server).KvPessimisticRollback)
}

func (s *stub) KvTxnHeartBeat(
	ctx context.Context, in *kvrpcpb.TxnHeartBeatRequest, _ ...opt,
) (*kvrpcpb.TxnHeartBeatResponse, error) {
	return call(ctx, s, in, (*server.Server).KvTxnHeartBeat)
}

// disturb moves leaders, splits and restarts until stop is closed.
func (m *model) disturb(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(m.draw() * 20):
		}
		m.mu.Lock()
		r, to, what := m.regions[m.rng.IntN(len(m.regions))], m.rng.IntN(stores), m.rng.IntN(20)
		at := key(m.rng.IntN(lists))
		m.mu.Unlock()
		switch {
		case what == 0:
			m.restart(to)
		case what < 4:
			m.split(r, memcomparable.Encode(at))
		default:
			m.elect(r, to)
		}
	}
}

// history runs one seed.
func history(t *testing.T, seed uint64) {
	m := newModel(seed)
	kv := client.New(m,
		client.Options{Dial: func(_ context.Context, id uint64) (tinykvpb.TinyKvClient, error) {
			return &stub{m: m, at: int(id - 1)}, nil
		}})
	cl := txn.New(kv, m)
	var keys [][]byte
	for i := range lists {
		keys = append(keys, key(i))
	}
	rec := recorder.New(keys)
	stop := make(chan struct{})
	var working, nemesis sync.WaitGroup
	for n := range clients {
		working.Add(1)
		go func() {
			defer working.Done()
			rng := rand.New(rand.NewPCG(seed, uint64(100+n)))
			for range rounds {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				switch rng.IntN(8) {
				case 0:
					_ = rec.Look(ctx, cl) // none of them need succeed
				case 1, 2:
					_ = rec.LockAndRead(ctx, cl, rng)
				case 3, 4:
					_ = rec.Append(ctx, cl, rng)
				default:
					_ = rec.Run(ctx, cl, rng)
				}
				cancel()
			}
		}()
	}
	nemesis.Add(1)
	go func() { defer nemesis.Done(); m.disturb(stop) }()
	working.Wait()
	close(stop)
	nemesis.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for rec.Look(ctx, cl) != nil && ctx.Err() == nil {
		time.Sleep(time.Second) // virtual
	}
	report := rec.Check()
	cl.Close()
	kv.Close()
	time.Sleep(time.Minute) // virtual: what is under way in the model ends
	require.Empty(t, report.Anomalies, "seed %d: %v\n%s", seed, report, rec.Explain(report))
	require.Positive(t, rec.Committed(), "seed %d", seed)
	if testing.Verbose() {
		t.Logf("seed %d: %v, %d committed, %+v", seed, report, rec.Committed(), m.events)
	}
}

// TestHistories: no history has an anomaly, and each read is that of its timestamp. The seed draws
// what happens, but for what goroutines do in the same moment.
func TestHistories(t *testing.T) {
	first := *flagSeed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	for i := range *flagSeeds {
		ok := true
		synctest.Test(t, func(t *testing.T) {
			history(t, first+uint64(i))
			ok = !t.Failed()
		})
		if !ok {
			t.Fatalf("again: go test ./tests/txnsim -args -seed %d -seeds 1", first+uint64(i))
		}
	}
}
