package raftstore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCacheIsTrimmed: the log keeps in memory what a live follower lacks, and no more.
func TestCacheIsTrimmed(t *testing.T) {
	s, o, _ := handingOver(t)
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		for range s.cfg.Raftstore.ElectionTicks { // the transfer is given up
			v.p.rn.Tick()
		}
	}))
	// trim is what a tick does once the last put is applied here, and as far as the followers have
	// answered.
	trim := func() (left int64) {
		require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) { v.p.compact.trimCache() }))
		return s.log.Stats().CacheBytes
	}
	require.NoError(t, put(s, trio(), "a").wait(t))
	require.Eventually(t, func() bool { return trim() == 0 }, 10*time.Second, time.Millisecond)

	o.mute.Store(3)
	require.NoError(t, put(s, trio(), "b").wait(t))
	require.Eventually(t, func() bool {
		info, err := s.Peer(t.Context(), 1)
		return err == nil && info.AppliedIndex == info.LastIndex
	}, 10*time.Second, time.Millisecond)
	require.Positive(t, trim(), "peer 3 was heard a moment ago and lacks the last entry")

	// Once it is taken for dead it reads from the disk, if it comes back.
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		for range 2 * s.cfg.Raftstore.ElectionTicks {
			v.p.rn.Tick()
		}
	}))
	require.Eventually(t, func() bool { return trim() == 0 }, 10*time.Second, time.Millisecond)
}
