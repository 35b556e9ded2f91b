package raftstore

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// oracle is a placement service that knows one region.
type oracle struct {
	lonely
	truth atomic.Pointer[metapb.Region]
	asked atomic.Int64
}

func (o *oracle) RegionByID(context.Context, uint64) (*metapb.Region, error) {
	o.asked.Add(1)
	return o.truth.Load(), nil
}

// TestRemovedPeerDoesNotSleepForEver: a sleeping follower to whom the news of its removal got lost hears from nobody. It
// asks after a while, sleeps on if it still belongs, and goes if it does not (G6).
func TestRemovedPeerDoesNotSleepForEver(t *testing.T) {
	s, _ := newTestStore(t, trio())
	o := &oracle{}
	o.truth.Store(trio())
	s.placement = o
	s.cfg.Raftstore.StalePeerCheck = config.Dur(time.Millisecond)
	startTestStore(t, s)
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) { v.p.wake(); v.p.fallAsleep() })) // it was dormant
	asked := func(n int64) func() bool {
		return func() bool {
			s.router.tick(1, s.live.now())
			return o.asked.Load() >= n
		}
	}
	require.Eventually(t, asked(3), 10*time.Second, time.Millisecond)
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		require.True(t, v.p.sleep.asleep, "an answer without news does not wake")
	}))
	o.truth.Store(region(1, "", "m", 2, 3, voter(2, 2), voter(3, 3)))
	require.Eventually(t, func() bool {
		s.router.tick(1, s.live.now())
		return peerID(t, s, 1) == 0
	}, 10*time.Second, time.Millisecond)
}

// TestSleepingFollowerAsksSeldom: not with each tick, and after it was awake no later than one that hears no leader.
func TestSleepingFollowerAsksSeldom(t *testing.T) {
	s, _ := newTestStore(t, trio())
	o := &oracle{}
	s.placement = o
	startTestStore(t, s)
	check := s.cfg.Raftstore.StalePeerCheck.Duration
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		p := v.p
		p.wake() // it was dormant
		p.fallAsleep()
		began := s.clock.Now()
		require.GreaterOrEqual(t, p.times.stale.Sub(p.sleep.began), sleepingChecks*check)
		require.EqualValues(t, p.times.stale.Sub(s.clock.Base()), p.box.duty.Load())
		p.doDuty(began)
		p.wake()
		require.LessOrEqual(t, p.times.stale.Sub(s.clock.Now()), check*3/2)
	}))
	require.Zero(t, o.asked.Load())
}
