package latch

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func goOn() error { return nil }

// TestBarrierKeepsThemApart: an exclusion is alone, and all get in.
func TestBarrierKeepsThemApart(t *testing.T) {
	var b Barriers
	var inside, alone atomic.Int64
	var wg sync.WaitGroup
	d := Domain{RegionID: 1, Term: 2}
	for i := range 64 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 50 {
				if i%8 == 0 {
					leave, err := b.Exclude(context.Background(), d, goOn)
					if err != nil || alone.Add(1) != 1 || inside.Load() != 0 {
						t.Errorf("not alone: %v", err)
					}
					alone.Add(-1)
					leave()
					continue
				}
				leave, err := b.Enter(context.Background(), d, goOn)
				if inside.Add(1); err != nil || alone.Load() != 0 {
					t.Errorf("not kept out: %v", err)
				}
				inside.Add(-1)
				leave()
			}
		}()
	}
	wg.Wait()
	require.Empty(t, b.mu.gates)
}

// TestBarrierWaitsEnd: with the context, or when they make no sense any more; then the others go
// on.
func TestBarrierWaitsEnd(t *testing.T) {
	var b Barriers
	d, other := Domain{RegionID: 1, Term: 2}, Domain{RegionID: 1, Term: 3}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	leave, err := b.Enter(context.Background(), d, goOn)
	require.NoError(t, err)
	_, err = b.Exclude(ctx, d, goOn)
	require.ErrorIs(t, err, context.Canceled)
	useless := errors.New("the term has ended")
	_, err = b.Exclude(context.Background(), d, func() error { return useless })
	require.ErrorIs(t, err, useless)
	again, err := b.Enter(context.Background(), d, goOn)
	require.NoError(t, err)
	alone, err := b.Exclude(context.Background(), other, goOn)
	require.NoError(t, err)
	_, err = b.Enter(ctx, other, goOn)
	require.ErrorIs(t, err, context.Canceled)
	_, err = b.Exclude(context.Background(), other, func() error { return useless })
	require.ErrorIs(t, err, useless)
	again()
	leave()
	alone()
	require.Empty(t, b.mu.gates)
}
