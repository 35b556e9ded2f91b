package runner_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// readCounter counts the snapshots, one for each region that is read.
type readCounter struct {
	engine.Engine
	reads int
}

func (e *readCounter) NewSnapshot() engine.Snapshot {
	e.reads++
	return e.Engine.NewSnapshot()
}

// TestSweeperRests: a region is read when its next key expires, when expiry times were written,
// when it has changed or is led anew, and after an error; otherwise it is left alone.
func TestSweeperRests(t *testing.T) {
	e, now, broken := &readCounter{Engine: memengine.New()}, uint64(1000), error(nil)
	led := []runner.Led{
		{Region: &metapb.Region{Id: 7, RegionEpoch: &metapb.RegionEpoch{Version: 1}}, Term: 6},
	}
	write := func(change func(b engine.Batch)) {
		b := e.NewBatch()
		change(b)
		require.NoError(t, e.Write(b, false))
	}
	put := func(key string, at uint64) {
		write(func(b engine.Batch) {
			b.Put(engine.DataKey(engine.CFDefault, []byte(key)), []byte("v"))
			b.Put(engine.DataKey(engine.CFDefault.Expiry(), []byte(key)),
				engine.AppendExpiry(nil, at))
		})
		led[0].Mortal++
	}
	removed := []string{}
	s := runner.NewSweeper(runner.SweeperOptions{
		Engine: e, Interval: time.Hour, Millis: func() uint64 { return now }, Logger: zap.NewNop(),
		Led: func() []runner.Led { return led },
		Expire: func(_ context.Context, _ *metapb.Region, req *raft_cmdpb.ExpireRequest) error {
			if broken != nil {
				return broken
			}
			for _, k := range req.Keys {
				removed = append(removed, string(k.Key))
				write(func(b engine.Batch) {
					b.Delete(engine.DataKey(engine.CFDefault.Expiry(), k.Key))
				})
			}
			return nil
		},
		Failed: func(uint64, error) { t.Error("a read failed") },
	})
	round := func(read bool, why string, want ...string) {
		t.Helper()
		before := e.reads
		s.Round(t.Context())
		require.Equal(t, read, e.reads > before, why)
		require.Equal(t, fmt.Sprint(want), fmt.Sprint(removed), why)
	}
	round(true, "never read")
	round(false, "nothing expires")
	put("a", 5000)
	put("b", 3000)
	round(true, "expiry times were written")
	now = 2999
	round(false, "the next key has not expired")
	now = 3000
	broken = errors.New("not now")
	round(true, "b has expired")
	round(true, "the round before failed")
	broken = nil
	round(true, "the round before failed", "b")
	now = 4999
	round(false, "a has not expired", "b")
	led[0].Term++
	round(true, "led anew", "b")
	led[0].Region = &metapb.Region{Id: 7, RegionEpoch: &metapb.RegionEpoch{Version: 2}}
	round(true, "another range", "b")
	here := led
	led = nil
	round(false, "not led", "b")
	led = here
	round(true, "led in between by another", "b")
	now = 5000
	round(true, "a has expired", "b", "a")
	now = 1 << 60
	round(false, "no key is left", "b", "a")
	require.EqualValues(t, 2, s.Swept())
}
