package raftstore

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// TestJudge compares the judgement with its definition, over all small groups.
func TestJudge(t *testing.T) {
	for voters := 1; voters <= 5; voters++ {
		for learners := 0; learners <= 1; learners++ {
			judgeGroups(t, voters, learners)
		}
	}
}

// judgeGroups tries every way in which replicas have one of three hashes, or none.
func judgeGroups(t *testing.T, voters, learners int) {
	region := &metapb.Region{Id: 1}
	for i := range voters + learners {
		p := &metapb.Peer{Id: uint64(i + 1), StoreId: uint64(i + 1)}
		if i >= voters {
			p.Role = metapb.PeerRole_Learner
		}
		region.Peers = append(region.Peers, p)
	}
	n := len(region.Peers)
	for code := range 1 << (2 * n) {
		hashes, votes := map[uint64]uint64{}, map[uint64]int{}
		kinds := map[uint64]bool{}
		for i := range n {
			if h := uint64(code >> (2 * i) & 3); h > 0 {
				hashes[uint64(i+1)], kinds[h] = h, true
				if i < voters {
					votes[h]++
				}
			}
		}
		out, majority := judge(region, hashes)
		var winner uint64
		for h, v := range votes {
			if 2*v > voters {
				winner = h
			}
		}
		require.Equal(t, hashes, out.Hashes)
		require.Equal(t, len(kinds) > 1 && winner == 0, out.Undecided)
		require.Equal(t, len(hashes) == n && len(kinds) == 1, out.Equal())
		if len(kinds) > 1 && winner != 0 {
			require.Equal(t, winner, majority)
			for id, h := range hashes {
				require.Equal(t, h != winner, slices.Contains(out.Diverged, id))
			}
		} else {
			require.Empty(t, out.Diverged)
		}
	}
}

// TestCompareSlots: regions are due at different times, each once in an interval.
func TestCompareSlots(t *testing.T) {
	s, _ := newTestStore(t)
	begin := time.Now()
	changes := [24]int{}
	for id := range uint64(1000) {
		clock := &handClock{base: begin, now: begin}
		s.clock = clock
		slot, changed := s.comparisons.slot(id), 0
		for hour := range 24 {
			clock.advance(s.cfg.Raftstore.CompareInterval.Duration / 24)
			if next := s.comparisons.slot(id); next != slot {
				require.Equal(t, slot+1, next)
				slot = next
				changes[hour]++
				changed++
			}
		}
		require.Equal(t, 1, changed, "region %d", id)
	}
	for hour, n := range changes {
		require.InDelta(t, 1000/24, n, 25, "hour %d", hour)
	}
}
