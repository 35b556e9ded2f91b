package sim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/scheduler/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestScenarios3C runs every file under testdata. Files whose name begins with "long" take minutes
// and run only with SIM_LONG=1 in the environment, those with "slow" only with SIM_SLOW=1.
func TestScenarios3C(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "long") && os.Getenv("SIM_LONG") == "" {
				t.Skip("set SIM_LONG=1 to run it")
			}
			if strings.HasPrefix(name, "slow") && os.Getenv("SIM_SLOW") == "" {
				t.Skip("set SIM_SLOW=1 to run it")
			}
			began := time.Now()
			sc := &sim.Scenario{Log: t.Logf}
			datadriven.RunTest(t, file, func(t *testing.T, d *datadriven.TestData) string {
				require.Equal(t, "do", d.Cmd)
				out := "ok"
				for line := range strings.SplitSeq(d.Input, "\n") {
					res, err := sc.Do(line)
					if err != nil {
						d.Fatalf(t, "%s: %v", line, err)
					}
					if res != "ok" && res != "" {
						out = line + "\n" + res
					}
				}
				return out
			})
			t.Logf("real time %v", time.Since(began).Round(time.Millisecond))
		})
	}
}

func TestOneSeedGivesOneRun(t *testing.T) {
	run := func() string {
		sc := &sim.Scenario{}
		for _, line := range []string{
			"cluster stores=4 regions=200 size=uniform(48,144) loss=0.1 delay=5s", "add-stores n=1",
			"measure",
			"run for=5m", "kill store=2", "run for=40m",
		} {
			_, err := sc.Do(line)
			require.NoError(t, err)
		}
		return sc.Sim.Result().String()
	}
	require.Equal(t, run(), run())
}
