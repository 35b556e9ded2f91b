package timing

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	for _, took := range []time.Duration{
		-1, 0, 15 * time.Microsecond, 16 * time.Microsecond, 31 * time.Microsecond, time.Hour,
	} {
		h.Note(took, 1)
	}
	h.Note(100*time.Microsecond, 7)
	got := h.Read()
	require.Equal(t, uint64(3), got.Classes[0])
	require.Equal(t, uint64(2), got.Classes[1])
	require.Equal(t, uint64(7), got.Classes[3])
	require.Equal(t, uint64(1), got.Classes[Classes-1])
	require.Equal(t, time.Hour+762*time.Microsecond, got.Total)
	for class, want := range map[int]time.Duration{
		0: 16 * time.Microsecond, 3: 128 * time.Microsecond, 20: 16777216 * time.Microsecond,
	} {
		require.Equal(t, want, Bound(class))
	}
	total, upTo := got.Buckets()
	require.Equal(t, uint64(13), total)
	require.Len(t, upTo, Classes-1, "the last class has no bound")
	require.Equal(t, uint64(3), upTo[0.000016])
	require.Equal(t, uint64(12), upTo[16.777216])
}
