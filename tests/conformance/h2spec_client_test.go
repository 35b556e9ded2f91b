package conformance

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	h2client "github.com/summerwind/h2spec/client"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/spec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/tinykv/tinykv/pkg/rpc/client"
)

// dialer makes a client of a server, and what ends it.
type dialer func(t *testing.T, addr string) (grpc.ClientConnInterface, func() error)

func dialOurs(_ *testing.T, addr string) (grpc.ClientConnInterface, func() error) {
	c := client.New(addr, client.Options{})
	return c, c.Close
}

func dialGo(t *testing.T, addr string) (grpc.ClientConnInterface, func() error) {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	return c, c.Close
}

// h2specClient is h2spec for clients: it runs all cases against clients that dial makes, one for
// each, which make a call.
func h2specClient(t *testing.T, dial dialer, timeout time.Duration) map[string]string {
	t.Helper()
	stdout := os.Stdout
	var err error
	os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer func() { _ = os.Stdout.Close(); os.Stdout = stdout }()
	outcomes := map[string]string{}
	var walk func(g *spec.ClientTestGroup)
	walk = func(g *spec.ClientTestGroup) {
		for _, tc := range g.Tests {
			name := fmt.Sprintf("%s/%d %s", g.ID(), tc.Seq, tc.Desc)
			switch err := h2specClientCase(t, tc, dial, timeout); {
			case err == spec.ErrSkipped:
				outcomes[name] = skipped
			case err != nil:
				outcomes[name] = fmt.Sprint("failed: ", err)
			default:
				outcomes[name] = passed
			}
		}
		for _, sub := range g.Groups {
			walk(sub)
		}
	}
	walk(h2client.Spec())
	return outcomes
}

func h2specClientCase(
	t *testing.T, tc *spec.ClientTestCase, dial dialer, timeout time.Duration,
) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	cc, end := dial(t, l.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	called := make(chan struct{})
	go func() {
		defer close(called)
		_ = cc.Invoke(ctx, "/grpc.testing.TestService/EmptyCall", new(grpc_testing.Empty),
			new(grpc_testing.Empty))
	}()
	defer func() {
		cancel()
		<-called
		require.NoError(t, end())
	}()
	require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)))
	nc, err := l.Accept()
	require.NoError(t, err)
	defer nc.Close()
	c := &config.Config{Timeout: timeout, MaxHeaderLen: 4000}
	conn, err := spec.Accept(c, nc)
	if err != nil {
		return err
	}
	return tc.Run(c, conn)
}

// h2specClientCases is how many cases h2spec has for clients.
const h2specClientCases = 57

// TestH2SpecClient: the client passes all cases.
func TestH2SpecClient(t *testing.T) {
	ours := h2specClient(t, dialOurs, 3*time.Second)
	t.Logf("h2spec for clients: pkg/rpc passes %d of %d cases", count(ours, passed), len(ours))
	for name, outcome := range ours {
		if outcome != passed {
			t.Errorf("%s: %s", name, outcome)
		}
	}
	require.Len(t, ours, h2specClientCases)
}

// TestH2SpecClientOfOthers is the yardstick.
func TestH2SpecClientOfOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("cases that wait for what does not come")
	}
	theirs := h2specClient(t, dialGo, time.Second)
	t.Logf("h2spec for clients: grpc-go passes %d of %d cases", count(theirs, passed), len(theirs))
	require.Len(t, theirs, h2specClientCases)
}
