package tests

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"github.com/tinykv/tinykv/tests/cluster"
	"github.com/tinykv/tinykv/tests/listappend/recorder"
)

// listKeys are the lists' places, in order.
func listKeys(n int) (keys [][]byte) {
	for i := range n {
		keys = append(keys, bankKey(i))
	}
	return keys
}

// TestListAppend: transactions of all kinds of commit over lists in several regions, while stores
// crash, networks part, leaders move and regions split; and while answers are lost and requests
// come again. No history has a cycle that snapshot isolation forbids, and each read is that of its
// timestamp.
func TestListAppend(t *testing.T) {
	for name, faults := range map[string][]func(*cluster.Cluster, *faultCounts, <-chan struct{}){
		"faults":  {crasher, transferer, partitioner, loser},
		"replays": {transferer},
	} {
		t.Run(name, func(t *testing.T) {
			c, cl := txnCluster(t, 12, 4)
			clean := cl
			var late *replayer
			if name == "replays" {
				late = newReplayer()
				kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient {
					return echo{s, late}
				})
				defer kv.Close()
				cl = txn.New(kv, c.Placement)
			}
			rec := recorder.New(listKeys(12))
			stop := make(chan struct{})
			var clients, nemesis sync.WaitGroup
			for n := range 6 {
				clients.Add(1)
				go func() {
					defer clients.Done()
					rng := rand.New(rand.NewPCG(uint64(n), uint64(time.Now().UnixNano())))
					for !stopped(stop) {
						ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
						if rng.IntN(10) == 0 {
							_ = rec.Look(ctx, cl) // it may not be possible; what is seen is checked
						} else {
							_ = rec.Run(ctx, cl, rng)
						}
						cancel()
					}
				}()
			}
			var counts faultCounts
			for _, f := range faults {
				nemesis.Add(1)
				go func() { defer nemesis.Done(); f(c, &counts, stop) }()
			}
			for begun := time.Now(); time.Since(begun) < 3*time.Second ||
				rec.Committed() < 20 && time.Since(begun) < time.Minute; {
				time.Sleep(20 * time.Millisecond) // not a synchronisation: the length of the round
			}
			c.Split(memcomparable.Encode(bankKey(7)))
			close(stop)
			nemesis.Wait()
			c.Net.SetFaults(0, 0, 0)
			c.Net.Heal()
			for _, n := range c.Nodes() {
				n.Restart()
			}
			clients.Wait()
			if late != nil {
				cl.Close()
				late.end()
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			require.NoError(t, rec.Look(ctx, clean), "and it resolves what is left")
			require.NoError(t, rec.Look(ctx, clean))
			report := rec.Check()
			require.Empty(t, report.Anomalies, "%v\n%s", report, rec.Explain(report))
			c.CheckConsistency()
			t.Logf("%v; %d transactions committed; crashes %d, partitions %d, transfers %d", report,
				rec.Committed(),
				counts.crashes.Load(), counts.partitions.Load(), counts.transfers.Load())
		})
	}
}

// TestLockedReadsAreOfTheirTimestamp: transactions that lock what they read, and change nothing,
// beside others that wait for these locks and append. Once a transaction has gone, nobody commits
// before its newest lock what it has not seen, although stores choose the timestamps, and the store
// of the one key knows nothing of the lock on the other.
func TestLockedReadsAreOfTheirTimestamp(t *testing.T) {
	c, cl := txnCluster(t, 4, 4)
	for i, r := range c.Placement.All() {
		c.TransferLeader(r.Id, r.Peers[i%len(r.Peers)])
	}
	rec := recorder.New(listKeys(4))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var clients sync.WaitGroup
	for n := range 8 {
		do := rec.Append
		if n%2 == 0 {
			do = rec.LockAndRead
		}
		clients.Add(1)
		go func() {
			defer clients.Done()
			rng := rand.New(rand.NewPCG(uint64(n), uint64(time.Now().UnixNano())))
			for rec.Committed() < 300 && ctx.Err() == nil {
				_ = do(ctx, cl, rng) // conflicts are to be expected
			}
		}()
	}
	clients.Wait()
	require.NoError(t, rec.Look(ctx, cl))
	report := rec.Check()
	require.Empty(t, report.Anomalies, "%v\n%s", report, rec.Explain(report))
	t.Logf("%v; %d transactions committed", report, rec.Committed())
}

func stopped(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}
