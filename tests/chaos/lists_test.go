package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/tests/listappend/recorder"
)

// TestChaosTransactions: histories of a cluster of transactions, one for three of raw keys. Clients
// append to lists and read them, with all kinds of commit; the faults are the same.
func TestChaosTransactions(t *testing.T) {
	if *flagHistories == 0 {
		t.Skip("minutes of work for all cores: make chaos N=10, or -args -histories 10")
	}
	for i := range (*flagHistories + 2) / 3 {
		seed := *flagSeed + uint64(i)
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			runHistory(t, seed, &lists{})
		})
		if !ok {
			t.Logf(
				"again: go test ./tests/chaos -run TestChaosTransactions -args -seed %d -histories 1 -duration %s", seed, *flagDuration)
		}
	}
}

// lists are the work of a cluster of transactions.
type lists struct {
	rec *recorder.Recorder
	cl  *txn.Client
}

// place is where a region of a key begins.
func (h *history) place(key []byte) []byte {
	if h.lists == nil {
		return key
	}
	return memcomparable.Encode(key)
}

// use begins the clients.
func (l *lists) use(h *history, wg *sync.WaitGroup) {
	var keys [][]byte
	for i := range keyCount / 3 {
		keys = append(keys, key(i*3))
	}
	l.rec, l.cl = recorder.New(keys), txn.New(h.cl, h.cl.Placement())
	h.t.Cleanup(l.cl.Close)
	for n := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(h.seed, uint64(3000+n)))
			for {
				select {
				case <-h.stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				var err error
				if rng.IntN(10) == 0 {
					err = l.rec.Look(ctx, l.cl)
				} else {
					err = l.rec.Run(ctx, l.cl, rng)
				}
				cancel()
				if err == nil {
					h.ops.Add(1)
				} else {
					time.Sleep(5 * time.Millisecond) // do not spin while a region has no leader
				}
			}
		}()
	}
}

// check judges the history, and looks whether all locks have gone that readers have met.
func (l *lists) check(h *history) {
	for range 2 { // the first one resolves what is left
		h.eventually(time.Minute, func() error {
			ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
			defer cancel()
			return l.rec.Look(ctx, l.cl)
		})
	}
	report := l.rec.Check()
	h.t.Logf("%v; %d transactions committed", report, l.rec.Committed())
	require.Empty(h.t, report.Anomalies, "%v\n%s", report, l.rec.Explain(report))
	require.Positive(h.t, l.rec.Committed())
}
