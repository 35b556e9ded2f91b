package raftstore

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
)

// checks writes to a region of about 268 KB, of which nothing is left to write anew after 1,000 writes, and checks its size
// after each 64. found hears of every finding.
func checks(t *testing.T, splitSize, maxSize config.Size, rounds int, found func(p *peer, m *message.SplitChecked)) {
	h := newHandRun(t, 1)
	cfg := &h.s.cfg.Raftstore
	cfg.RegionSplitSize, cfg.RegionMaxSize = splitSize, maxSize
	got := make(chan *message.SplitChecked, 1)
	h.s.splitChecker = runner.NewSplitChecker(h.s.engine, uint64(splitSize), uint64(maxSize), func(_ uint64, m message.Msg) error {
		got <- m.(*message.SplitChecked)
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.s.splitChecker.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	p := h.s.router.get(1).peer
	for range rounds {
		h.writes(64)
		if p.checkSplit(); p.stats.checkingSplit {
			found(p, <-got)
		}
	}
}

// TestOverwrittenRegionIsCountedRarely: the region is not read again and again for values that replace others.
func TestOverwrittenRegionIsCountedRarely(t *testing.T) {
	const maxSize, rounds = 400 << 10, 200
	findings, counts := 0, 0
	checks(t, 320<<10, maxSize, rounds, func(p *peer, m *message.SplitChecked) {
		findings++
		if m.Counted != (message.Counted{}) {
			counts++
			require.Less(t, m.Size, uint64(300<<10))
		}
		require.Empty(t, m.SplitKey)
		p.onSplitChecked(m)
		require.Less(t, p.stats.sinceCount, uint64(maxSize+100<<10), "it is counted at the latest when as much was written as may be in it")
	})
	require.Greater(t, findings, rounds/4)
	require.GreaterOrEqual(t, counts, 5)
	require.Less(t, counts, findings/3)
}

// TestGrownRegionIsCountedInTime: a region that grows gets its split key as soon as it is too big.
func TestGrownRegionIsCountedInTime(t *testing.T) {
	const maxSize = 200 << 10
	var key []byte
	checks(t, 160<<10, maxSize, 1000/64, func(p *peer, m *message.SplitChecked) {
		if m.SplitKey != nil && key == nil {
			key = m.SplitKey
			require.Less(t, m.Size, uint64(maxSize*5/4))
		}
		m.SplitKey = nil
		p.onSplitChecked(m)
	})
	require.NotNil(t, key)
}

// TestTooBigRegionIsCountedSoon: whatever is written to it, since its split may have failed.
func TestTooBigRegionIsCountedSoon(t *testing.T) {
	const splitSize = 160 << 10
	tooBig := 0
	checks(t, splitSize, 200<<10, 60, func(p *peer, m *message.SplitChecked) {
		if m.SplitKey != nil {
			tooBig++
		} else if tooBig > 0 {
			require.Fail(t, "it was not counted", "%d bytes after the last count", p.stats.sinceCount)
		}
		m.SplitKey = nil // the split fails
		p.onSplitChecked(m)
	})
	require.Greater(t, tooBig, 10)
}
