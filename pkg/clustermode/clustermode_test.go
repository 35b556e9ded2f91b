package clustermode

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for name, want := range map[string]Mode{"": Raw, "raw": Raw, "txn": Txn} {
		m, err := Parse(name)
		require.NoError(t, err)
		require.Equal(t, want, m)
		require.Contains(t, m.Refusal(), "mode "+string(want))
	}
	_, err := Parse("both")
	require.ErrorContains(t, err, `"both"`)
}
