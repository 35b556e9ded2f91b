package feature

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNames(t *testing.T) {
	all := ConditionalOps | ReplicaHash
	require.Equal(t, Set(3), all, "the bits are part of the wire format")
	require.Equal(t, "conditional-ops, replica-hash", all.String())
	require.Equal(t, []string{"replica-hash", "feature-5"}, (ReplicaHash | 1<<5).Names())
	require.Empty(t, Set(0).Names())
	got, unknown := Parse([]string{"conditional-ops", "replica-hash", "holidays"})
	require.Equal(t, all, got)
	require.Equal(t, []string{"holidays"}, unknown)
	require.True(t, all.Has(ReplicaHash))
	require.False(t, ReplicaHash.Has(all))
	require.True(t, all.Has(Supported), "each feature that is served has a name")
}
