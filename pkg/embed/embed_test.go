package embed

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/client"
)

// TestMain looks for leaked goroutines for a while: connections between etcd members end only with
// their read timeout of five seconds.
func TestMain(m *testing.M) {
	code := m.Run()
	var leak error
	for end := time.Now().Add(10 * time.Second); code == 0 && time.Now().Before(end); {
		if leak = goleak.Find(); leak == nil {
			break
		}
	}
	if leak != nil && code == 0 {
		fmt.Fprintln(os.Stderr, leak)
		code = 1
	}
	os.Exit(code)
}

func begin(t *testing.T, cfg Config) (*Cluster, *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	c, err := Start(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	t.Logf("served after %v", time.Since(begun).Round(time.Millisecond))
	cl, err := c.Client(ctx)
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	return c, cl
}

func mustPut(t *testing.T, cl *client.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, cl.Put(ctx, []byte(key), []byte(value)))
}

func mustGet(t *testing.T, cl *client.Client, key, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	v, found, err := cl.Get(ctx, []byte(key))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, want, string(v))
}

// TestDefault: one store, nothing left in the directory or behind.
func TestDefault(t *testing.T) {
	c, cl := begin(t, Config{})
	mustPut(t, cl, "a", "1")
	mustGet(t, cl, "a", "1")
	require.Len(t, c.Stores(), 1)
	require.NotZero(t, c.Stores()[0].ID())
	dir := c.dir
	require.NoError(t, c.Stop())
	require.NoDirExists(t, dir)
	require.NoError(t, c.Stop(), "a second time")
}

// TestSeveralAtOnce: clusters of one process know nothing of each other.
func TestSeveralAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			errs[i] = func() error {
				c, err := Start(ctx, Config{Stores: 1 + i})
				if err != nil {
					return err
				}
				cl, err := c.Client(ctx)
				if err != nil {
					return errors.Join(err, c.Stop())
				}
				defer cl.Close()
				_, found, err := cl.Get(ctx, []byte("k"))
				if err == nil && found {
					err = errors.New("a new cluster has the key already")
				}
				return errors.Join(err, cl.Put(ctx, []byte("k"), fmt.Append(nil, i)), c.Stop())
			}()
		}()
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

// waitReplicas waits until all replicas are there, and returns the store that leads.
func waitReplicas(t *testing.T, c *Cluster, cl *client.Client) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.WaitReplicas(ctx))
	r, err := cl.Placement().GetRegion(ctx, []byte("k"))
	require.NoError(t, err)
	return r.Leader.StoreId
}

func storeOf(t *testing.T, c *Cluster, id uint64) *Store {
	t.Helper()
	for _, s := range c.Stores() {
		if s.ID() == id {
			return s
		}
	}
	t.Fatalf("no store %d", id)
	return nil
}

// TestKilledStoreComesBack: with its data, at the same address, while the others serve.
func TestKilledStoreComesBack(t *testing.T) {
	c, cl := begin(t, Config{Stores: 3})
	mustPut(t, cl, "k", "1")
	s := storeOf(t, c, waitReplicas(t, c, cl))
	id, addr := s.ID(), s.Addr()
	s.Kill()
	s.Kill()
	require.Zero(t, s.ID())
	mustGet(t, cl, "k", "1")
	mustPut(t, cl, "k", "2")
	require.NoError(t, s.Start(t.Context()))
	require.Error(t, s.Start(t.Context()), "it runs")
	require.Equal(t, id, s.ID())
	require.Equal(t, addr, s.Addr())
	for _, other := range c.Stores() {
		if other != s {
			other.Stop()
			mustGet(t, cl, "k", "2")
			require.NoError(t, other.Start(t.Context()))
			break
		}
	}
	select {
	case err := <-s.Failed():
		t.Fatal(err)
	default:
	}
}

// TestIsolatedLeader: the others elect another one; healed, it follows.
func TestIsolatedLeader(t *testing.T) {
	c, cl := begin(t, Config{Stores: 3})
	mustPut(t, cl, "k", "1")
	s := storeOf(t, c, waitReplicas(t, c, cl))
	c.Isolate(s.index)
	mustPut(t, cl, "k", "2")
	mustGet(t, cl, "k", "2")
	require.Eventually(t, func() bool {
		r, err := cl.Placement().GetRegion(t.Context(), []byte("k"))
		return err == nil && r != nil && r.Leader != nil && r.Leader.StoreId != s.ID()
	}, 20*time.Second, 10*time.Millisecond)
	c.Heal()
	waitReplicas(t, c, cl)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := cl.CheckConsistency(ctx, []byte("k"), 20*time.Second)
	require.NoError(t, err)
	for _, r := range out.Replicas {
		require.True(t, r.Known)
		require.Equal(t, out.Replicas[0].Hash, r.Hash)
	}
}

// TestPartition: without a majority on one side nothing is written, and nothing that was refused
// appears later.
func TestPartition(t *testing.T) {
	c, cl := begin(t, Config{Stores: 3})
	mustPut(t, cl, "k", "1")
	waitReplicas(t, c, cl)
	c.Partition([]int{0}, []int{1}, []int{2})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	err := cl.Put(ctx, []byte("k"), []byte("2"))
	cancel()
	require.Error(t, err)
	c.Heal()
	mustPut(t, cl, "k", "3")
	mustGet(t, cl, "k", "3")
}

// TestDirectoryIsTakenUp: a named directory stays, and the next cluster has what is in it.
func TestDirectoryIsTakenUp(t *testing.T) {
	dir := t.TempDir()
	c, cl := begin(t, Config{Dir: dir, Stores: 3, Schedulers: 3})
	mustPut(t, cl, "k", "1")
	waitReplicas(t, c, cl)
	require.NoError(t, c.Stop())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 7)
	_, err = Start(t.Context(), Config{Dir: dir, Stores: 3})
	require.ErrorContains(t, err, "a cluster of 3 schedulers, not 1")
	_, cl = begin(t, Config{Dir: dir, Stores: 3, Schedulers: 3})
	mustGet(t, cl, "k", "1")
}

// TestFaultyConfigIsRefused: with the reason, and without anything left running.
func TestFaultyConfigIsRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := Start(ctx, Config{Dir: "/dev/null/x"})
	require.ErrorContains(t, err, "/dev/null/x")
	http.DefaultClient.CloseIdleConnections()
}
