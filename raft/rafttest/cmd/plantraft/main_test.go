package main

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOverlayBuilds: the places of the bugs exist, and raft builds with them.
func TestOverlayBuilds(t *testing.T) {
	path, err := overlay("../../..", t.TempDir())
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "go", "vet", "-overlay", path, "-tags", "planted",
		"../../sim").CombinedOutput()
	require.NoError(t, err, "%s", out)
}
