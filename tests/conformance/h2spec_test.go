package conformance

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tinykv/tinykv/pkg/embed"
)

const (
	passed  = "passed"
	skipped = "skipped"
)

// h2spec runs all cases, the strict ones too, against a server. It returns their outcomes by name;
// that of one that failed says why. timeout is how long a case waits for what must come.
func h2spec(t *testing.T, addr string, timeout time.Duration) map[string]string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	c := &config.Config{
		Host: host, Port: n, Path: "/", Timeout: timeout, MaxHeaderLen: 4000, Strict: true,
	}

	// It tells everything as it goes.
	stdout := os.Stdout
	os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer func() { _ = os.Stdout.Close(); os.Stdout = stdout }()

	outcomes := map[string]string{}
	var collect func(g *spec.TestGroup)
	collect = func(g *spec.TestGroup) {
		for i, tc := range append(g.Tests, g.StrictTests...) {
			name := fmt.Sprintf("%s/%d %s", g.ID(), i+1, tc.Desc)
			switch r := tc.Result; {
			case r == nil || r.Skipped:
				outcomes[name] = skipped
			case r.Failed:
				outcomes[name] = fmt.Sprint("failed: ", r.Error)
			default:
				outcomes[name] = passed
			}
		}
		for _, sub := range g.Groups {
			collect(sub)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		g.Test(c)
		collect(g)
	}
	return outcomes
}

// count tells how many cases have an outcome that begins so.
func count(outcomes map[string]string, outcome string) (n int) {
	for _, o := range outcomes {
		if strings.HasPrefix(o, outcome) {
			n++
		}
	}
	return n
}

// startGo serves with grpc-go until the test ends.
func startGo(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer(grpc.MaxConcurrentStreams(1024))
	register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

// h2specCases is how many cases h2spec has: none is lost.
const h2specCases = 146

// TestH2Spec: a store passes all cases.
func TestH2Spec(t *testing.T) {
	c, err := embed.Start(t.Context(), embed.Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Stop()) }()
	ours := h2spec(t, c.Stores()[0].Addr(), 5*time.Second)
	t.Logf("h2spec: a store passes %d of %d cases", count(ours, passed), len(ours))
	for name, outcome := range ours {
		if outcome != passed {
			t.Errorf("%s: %s", name, outcome)
		}
	}
	require.Len(t, ours, h2specCases)
}

// TestH2SpecOfOthers is the yardstick: since a store passes all, no case is worse than grpc-go's.
func TestH2SpecOfOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute of cases that wait for what does not come")
	}
	theirs := h2spec(t,
		startGo(t, func(s *grpc.Server) {
			grpc_health_v1.RegisterHealthServer(s, health.NewServer())
		}), time.Second)
	t.Logf("h2spec: grpc-go passes %d of %d cases, %d do not apply", count(theirs, passed),
		len(theirs), count(theirs, skipped))
	require.Len(t, theirs, h2specCases)
}
