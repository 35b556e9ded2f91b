package config_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
)

// TestRolesByName: lists of names need a certificate, and a name is in one of them only.
func TestRolesByName(t *testing.T) {
	c := config.Default()
	require.True(t, c.Security.Names().Empty())
	c.Security.CertNodeCN = []string{"kv1"}
	require.ErrorContains(t, c.Validate(), "cert-node-cn")
	c.Security.CertClientCN = []string{"app", "kv1"}
	require.ErrorContains(t, c.Validate(),
		`security: cert-client-cn: "kv1" is in cert-node-cn already`)
	require.Equal(t, []string{"kv1"}, c.Security.Names().Node)
	require.Equal(t, []string{"app", "kv1"}, c.Security.Names().Client)
}
