package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

func TestTiming(t *testing.T) {
	var timing Timing
	for _, took := range []time.Duration{-1, 0, 15 * time.Microsecond, 16 * time.Microsecond, 31 * time.Microsecond, time.Hour} {
		timing.Note(took, 1)
	}
	timing.Note(100*time.Microsecond, 7)
	timing.Note(time.Second, 0)
	timing.Fail(codes.Unavailable)
	timing.Fail(codes.Code(400))
	got := timing.Read()
	require.Equal(t, uint64(3), got.Classes[0])
	require.Equal(t, uint64(2), got.Classes[1])
	require.Equal(t, uint64(7), got.Classes[3])
	require.Equal(t, uint64(1), got.Classes[TimingBuckets-1])
	require.Equal(t, time.Hour+762*time.Microsecond, got.Total)
	require.Equal(t, map[codes.Code]uint64{codes.Unavailable: 1, codes.Unauthenticated: 1}, got.Failed)
	for class, want := range map[int]time.Duration{0: 16 * time.Microsecond, 3: 128 * time.Microsecond, 20: 16777216 * time.Microsecond} {
		require.Equal(t, want, TimingBound(class))
	}
	var none *Timing
	none.Note(time.Second, 1)
	none.Fail(codes.Unknown)
}
