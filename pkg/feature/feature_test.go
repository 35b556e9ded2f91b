package feature

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNames(t *testing.T) {
	all := ConditionalOps | Transactions | AsyncCommit | Merge | TxnMerge | TTL
	require.Equal(t, Set(63), all, "the bits are part of the wire format")
	require.Equal(t, "conditional-ops, transactions, async-commit, merge, merge-transactions, ttl",
		all.String())
	require.Equal(t, []string{"transactions", "feature-6"}, (Transactions | 1<<6).Names())
	require.Empty(t, Set(0).Names())
	got, unknown := Parse([]string{
		"conditional-ops", "transactions", "async-commit", "merge", "merge-transactions", "ttl",
		"holidays",
	})
	require.Equal(t, all, got)
	require.Equal(t, []string{"holidays"}, unknown)
	require.True(t, all.Has(Transactions))
	require.False(t, Transactions.Has(all))
	require.True(t, all.Has(Supported), "each feature that is served has a name")
}
