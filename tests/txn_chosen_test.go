package tests

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// silent is a store's service as a client sees it that dies in the middle of a commit: prewrites of
// some keys do not reach the store, answers to others do not reach the client, and nothing else is
// done.
type silent struct {
	tinykvpb.TinyKvClient
	// lost are keys whose prewrite is lost, unanswered those whose answer is.
	lost, unanswered map[string]bool
	asked            *[]*kvrpcpb.PrewriteRequest
}

func (s silent) KvPrewrite(
	ctx context.Context, in *kvrpcpb.PrewriteRequest, o ...grpc.CallOption,
) (*kvrpcpb.PrewriteResponse, error) {
	*s.asked = append(*s.asked, in)
	for _, m := range in.Mutations {
		if s.lost[string(m.Key)] {
			return nil, status.Error(codes.Unavailable, "lost")
		}
	}
	resp, err := s.TinyKvClient.KvPrewrite(ctx, in, o...)
	for _, m := range in.Mutations {
		if s.unanswered[string(m.Key)] {
			return nil, status.Error(codes.Unavailable, "the answer is lost")
		}
	}
	return resp, err
}

func (s silent) KvCommit(
	context.Context, *kvrpcpb.CommitRequest, ...grpc.CallOption,
) (*kvrpcpb.CommitResponse, error) {
	return nil, status.Error(codes.InvalidArgument, "dead")
}

func (s silent) KvCheckSecondaryLocks(
	context.Context, *kvrpcpb.CheckSecondaryLocksRequest, ...grpc.CallOption,
) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	return nil, status.Error(codes.InvalidArgument, "dead")
}

func (s silent) KvBatchRollback(
	context.Context, *kvrpcpb.BatchRollbackRequest, ...grpc.CallOption,
) (*kvrpcpb.BatchRollbackResponse, error) {
	return nil, status.Error(codes.InvalidArgument, "dead")
}

// names are accounts, as a set.
func names(accounts ...int) map[string]bool {
	out := map[string]bool{}
	for _, i := range accounts {
		out[string(bankKey(i))] = true
	}
	return out
}

func setAll(ctx context.Context, cl *txn.Client, value string, accounts ...int) error {
	return cl.Run(ctx, func(x *txn.Txn) error {
		for _, i := range accounts {
			x.Set(bankKey(i), []byte(value))
		}
		return nil
	})
}

// getAll is what all accounts have; it fails if they differ.
func getAll(t *testing.T, ctx context.Context, cl *txn.Client, accounts ...int) string {
	t.Helper()
	x, err := cl.Begin(ctx)
	require.NoError(t, err)
	values := map[string]bool{}
	last := ""
	for _, i := range accounts {
		v, found, err := x.Get(ctx, bankKey(i))
		require.NoError(t, err)
		require.True(t, found)
		last = string(v)
		values[last] = true
	}
	require.Len(t, values, 1, "the transaction is there by half")
	return last
}

// TestAsyncCommitOfADeadClient: a client dies in the middle of an asynchronous commit. The
// transaction has happened if all its keys are locked, however little the client knew; else it has
// not. Others find out when its time is over.
func TestAsyncCommitOfADeadClient(t *testing.T) {
	for name, dies := range map[string]struct {
		lost, unanswered map[string]bool
		acknowledged     bool
		becomes          string
	}{
		"acknowledged, keys are locked":       {acknowledged: true, becomes: "new"},
		"the answer of the primary is lost":   {unanswered: names(1), becomes: "new"},
		"the answer of a secondary is lost":   {unanswered: names(15), becomes: "new"},
		"the prewrite of the primary is lost": {lost: names(1), becomes: "old"},
		"the prewrite of a secondary is lost": {lost: names(15), becomes: "old"},
	} {
		t.Run(name, func(t *testing.T) {
			c, cl := txnCluster(t, 20, 3)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			require.NoError(t, setAll(ctx, cl, "old", 1, 8, 15))
			require.Equal(t, "old", getAll(t, ctx, cl, 1, 8, 15)) // its locks are gone
			var asked []*kvrpcpb.PrewriteRequest
			kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient {
				return silent{s, dies.lost, dies.unanswered, &asked}
			})
			dead := txn.New(kv, c.Placement)
			require.NoError(t, setAllRoutes(ctx, dead, 1, 8, 15))
			short, stop := context.WithTimeout(ctx, 500*time.Millisecond)
			defer stop()
			err := setAll(short, dead, "new", 1, 8, 15)
			if dies.acknowledged {
				require.NoError(t, err)
			} else {
				require.True(t, txn.IsUnknown(err), "%v", err)
			}
			dead.Close()
			kv.Close()
			require.True(t, asked[0].UseAsyncCommit)
			require.Equal(t, dies.becomes, getAll(t, ctx, cl, 15, 8, 1))
			require.NoError(t, setAll(ctx, cl, "later", 1, 8, 15))
			require.Equal(t, "later", getAll(t, ctx, cl, 1, 8, 15))
		})
	}
}

// setAllRoutes has a client learn where accounts are.
func setAllRoutes(ctx context.Context, cl *txn.Client, accounts ...int) error {
	x, err := cl.Begin(ctx)
	for _, i := range accounts {
		if err == nil {
			_, _, err = x.Get(ctx, bankKey(i))
		}
	}
	return err
}

// TestFewestRequests: one region takes one request, several take one round; and so they do not
// where it is switched off, or there are many keys.
func TestFewestRequests(t *testing.T) {
	c, _ := txnCluster(t, 20, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n := &counts{by: map[string]int{}}
	kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient {
		return counting{s, n}
	})
	defer kv.Close()
	require.NoError(t, setAllRoutes(ctx, txn.New(kv, c.Placement), 1, 8, 15))
	commit := func(k txn.Commits, accounts ...int) map[string]int {
		t.Helper()
		cl := txn.New(kv, c.Placement)
		x, err := cl.Begin(ctx)
		require.NoError(t, err)
		x.SetCommits(k)
		for _, i := range accounts {
			x.Set(bankKey(i), []byte("v"))
		}
		require.NoError(t, x.Commit(ctx))
		require.Greater(t, x.CommitTS(), x.StartTS())
		cl.Close() // it waits for what runs in the background
		return n.take()
	}
	require.Equal(t, map[string]int{"one phase": 1}, commit(txn.Fastest, 1, 2))
	require.Equal(t, map[string]int{"plain": 1, "commit": 1}, commit(txn.TwoPhases, 1, 2))
	require.Equal(t, map[string]int{"async": 3, "commit": 3}, commit(txn.Fastest, 1, 8, 15))
	require.Equal(t, map[string]int{"async": 1, "commit": 1}, commit(txn.NoOnePhase, 1))
	many := make([]int, 300)
	for i := range many {
		many[i] = 100 + i
	}
	many[0] = 1
	require.Equal(t, map[string]int{"plain": 2, "commit": 2}, commit(txn.Fastest, many...))
}

// counting counts requests.
type counting struct {
	tinykvpb.TinyKvClient
	n *counts
}

type counts struct {
	mu sync.Mutex
	by map[string]int
}

func (c *counts) add(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[kind]++
}

// take returns the counts since the last call.
func (c *counts) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.by
	c.by = map[string]int{}
	return out
}

func (c counting) KvPrewrite(
	ctx context.Context, in *kvrpcpb.PrewriteRequest, o ...grpc.CallOption,
) (*kvrpcpb.PrewriteResponse, error) {
	kind := "plain"
	switch {
	case in.TryOnePc:
		kind = "one phase"
	case in.UseAsyncCommit:
		kind = "async"
	}
	c.n.add(kind)
	return c.TinyKvClient.KvPrewrite(ctx, in, o...)
}

func (c counting) KvCommit(
	ctx context.Context, in *kvrpcpb.CommitRequest, o ...grpc.CallOption,
) (*kvrpcpb.CommitResponse, error) {
	c.n.add("commit")
	return c.TinyKvClient.KvCommit(ctx, in, o...)
}

// early is a store's service for a client that has its transactions commit as early as the store
// allows.
type early struct{ tinykvpb.TinyKvClient }

func (e early) KvPrewrite(
	ctx context.Context, in *kvrpcpb.PrewriteRequest, o ...grpc.CallOption,
) (*kvrpcpb.PrewriteResponse, error) {
	req := *in
	req.MinCommitTs = 0
	return e.TinyKvClient.KvPrewrite(ctx, &req, o...)
}

// TestCommitsOfALaterLeader: a leader serves a read, and hands over. What the next one commits by a
// timestamp of its choice is behind that read.
func TestCommitsOfALaterLeader(t *testing.T) {
	c, _ := txnCluster(t, 20, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient { return early{s} })
	defer kv.Close()
	cl := txn.New(kv, c.Placement)
	defer cl.Close()
	require.NoError(t, setAll(ctx, cl, "0", 1))
	for round := 1; round < 6; round++ {
		writer, err := cl.Begin(ctx)
		require.NoError(t, err)
		writer.Set(bankKey(1), fmt.Append(nil, round))
		reader, err := cl.Begin(ctx)
		require.NoError(t, err)
		see := func() string {
			v, _, err := reader.Get(ctx, bankKey(1))
			require.NoError(t, err)
			return string(v)
		}
		require.Equal(t, fmt.Sprint(round-1), see())
		leader := c.WaitLeader(cluster.FirstRegionID).ID
		for _, p := range c.Placement.Region(cluster.FirstRegionID).Peers {
			if p.StoreId != leader {
				c.TransferLeader(cluster.FirstRegionID, p)
				break
			}
		}
		require.NoError(t, writer.Commit(ctx))
		require.Greater(t, writer.CommitTS(), reader.StartTS())
		require.Equal(t, fmt.Sprint(round-1), see(), "a snapshot has changed")
	}
}

// TestOnePhaseWhileARegionSplits: a client takes two regions for one. Its transaction is committed
// all the same.
func TestOnePhaseWhileARegionSplits(t *testing.T) {
	c, cl := txnCluster(t, 20, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, setAll(ctx, cl, "old", 1, 15))
	c.Split(memcomparable.Encode(bankKey(8)))
	require.NoError(t, setAll(ctx, cl, "new", 1, 15))
	require.Equal(t, "new", getAll(t, ctx, cl, 1, 15))
}
