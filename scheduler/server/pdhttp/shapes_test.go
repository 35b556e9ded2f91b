package pdhttp

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSizesAndDurations are written as PD writes them.
func TestSizesAndDurations(t *testing.T) {
	for want, v := range map[string]any{
		`"0B"`: Size(0), `"1023B"`: Size(1023), `"1KiB"`: Size(1024), `"1.5GiB"`: Size(3 << 29), `"931.3GiB"`: Size(1e12),
		`"16EiB"`: Size(1<<64 - 1), `"1h0m3.5s"`: Duration(time.Hour + 3500*time.Millisecond),
	} {
		got, err := json.Marshal(v)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.Equal(t, "Disconnected", StateName("disconnected"))
}
