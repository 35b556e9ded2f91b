//go:build linux || darwin

package descriptors

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestShare(t *testing.T) {
	for _, c := range []struct {
		limit uint64
		want  Plan
	}{
		{Minimum, Plan{256, 128, 64}},
		{400, Plan{400, 200, 136}},
		{4096, Plan{4096, 1536, 2496}},
		{1 << 20, Plan{1 << 20, 1536, 1<<20 - 1536 - 64}},
		{1<<64 - 1, Plan{1 << 24, 1536, 1<<24 - 1536 - 64}},
	} {
		p, err := Share(c.limit)
		require.NoError(t, err)
		require.Equal(t, c.want, p)
		require.Less(t, p.Disk+p.Conns, p.Limit)
	}
	_, err := Share(Minimum - 1)
	require.ErrorContains(t, err, "the limit of open files is 255, and at least 256 are needed")
}

// TestPrepareRaisesTheSoftLimit in a process of its own, since a limit holds for a whole process.
func TestPrepareRaisesTheSoftLimit(t *testing.T) {
	if os.Getenv("TINYKV_DESCRIPTORS_CHILD") != "" {
		require.NoError(t,
			syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 300, Max: 500}))
		p, err := Prepare()
		require.NoError(t, err)
		require.Equal(t, 500, p.Limit)
		var l syscall.Rlimit
		require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l))
		require.EqualValues(t, 500, l.Cur)
		require.NoError(t,
			syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 100, Max: 100}))
		_, err = Prepare()
		require.ErrorContains(t, err, "at least 256 are needed")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPrepareRaisesTheSoftLimit$", "-test.count=1")
	cmd.Env = append(os.Environ(), "TINYKV_DESCRIPTORS_CHILD=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}
