package stages

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tinykv/tinykv/kv/raftstore/message"
)

const ms = time.Millisecond

// entry passed its stages at these milliseconds.
func entry(came, proposed, appended, committed, begun, applied int) *message.Proposal {
	p := message.NewProposal(7, 6, 100, message.NewCallback(), message.NewCallback())
	p.Stages = message.Stages{
		Came: time.Duration(came) * ms, Proposed: time.Duration(proposed) * ms,
		Appended:  time.Duration(appended) * ms,
		Committed: time.Duration(committed) * ms, Begun: time.Duration(begun) * ms,
		Applied: time.Duration(applied) * ms,
	}
	return &p
}

func TestStagesAddUp(t *testing.T) {
	for name, p := range map[string]*message.Proposal{
		"one after the other":                      entry(1, 3, 6, 10, 15, 21),
		"committed before it is appended here":     entry(1, 3, 9, 8, 15, 21),
		"taken by a worker that had begun already": entry(1, 3, 6, 10, 4, 21),
		"without a time of coming":                 entry(3, 3, 6, 10, 15, 21),
	} {
		t.Run(name, func(t *testing.T) {
			var sum time.Duration
			for _, s := range All() {
				from, took := s.Of(&p.Stages)
				require.GreaterOrEqual(t, took, time.Duration(0))
				require.GreaterOrEqual(t, from, p.Stages.Came)
				if s != Append {
					sum += took
				}
			}
			require.Equal(t, p.Stages.Applied-p.Stages.Came, sum)
		})
	}
}

func TestRecorderCounts(t *testing.T) {
	r := New(0, zap.NewNop())
	r.Note(1, entry(1, 3, 6, 10, 15, 21))
	r.Note(1, entry(1, 3, 6, 10, 15, 21))
	for s, want := range map[Stage]time.Duration{
		Wait: 4 * ms, Append: 6 * ms, Commit: 14 * ms, ApplyWait: 10 * ms, Apply: 12 * ms,
	} {
		got := r.Read(s)
		require.Equal(t, want, got.Total, s)
		total, _ := got.Buckets()
		require.Equal(t, uint64(2), total)
	}
}

// TestSlowWrites: a slow write is one line with its stages. In a second there is one, which says
// how many others there were.
func TestSlowWrites(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	r := New(20*ms, zap.New(core))
	r.Note(4, entry(1, 3, 6, 10, 15, 20))
	require.Empty(t, logs.All(), "it is not slow")
	r.Note(4, entry(1, 3, 6, 10, 15, 21))
	r.Note(4, entry(1, 3, 6, 10, 15, 500))
	r.Note(4, entry(1, 3, 6, 10, 15, 1020))
	require.Len(t, logs.All(), 1)
	r.Note(5, entry(1, 3, 6, 10, 15, 1021))
	require.Len(t, logs.All(), 2)
	require.Equal(t, map[string]any{
		"region-id": uint64(4), "index": uint64(7), "bytes": int64(100), "commands": int64(2),
		"took": 20 * ms,
		"wait": 2 * ms, "append-log": 3 * ms, "commit": 7 * ms, "apply-wait": 5 * ms,
		"apply": 6 * ms,
	}, logs.All()[0].ContextMap())
	require.Equal(t, uint64(2), logs.All()[1].ContextMap()["others"])
}
