package localcluster

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// laidOut is a cluster of one scheduler and one store of which nothing runs.
func laidOut(t *testing.T) *Cluster {
	t.Helper()
	bin := t.TempDir()
	for _, name := range []string{"tinykv-server", "tinyscheduler"} {
		require.NoError(t,
			os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nexec sleep 60\n"), 0o700))
	}
	c, err := New(Options{BinDir: bin, Dir: t.TempDir(), Stores: 1})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	return c
}

// TestPortsInUse: nothing is started where somebody else listens, on whichever port.
func TestPortsInUse(t *testing.T) {
	for _, p := range laidOut(t).Processes() {
		for i := range p.ports {
			c := laidOut(t)
			var taken string
			for _, q := range c.Processes() {
				if q.Name == p.Name {
					taken = q.ports[i]
				}
			}
			l, err := net.Listen("tcp", taken)
			require.NoError(t, err)
			err = c.Start(t.Context())
			require.ErrorContains(t, err, taken)
			require.ErrorContains(t, err, "in use by another process")
			for _, q := range c.Processes() {
				require.False(t, q.Running())
			}
			require.NoError(t, l.Close())
		}
	}
}

// TestStrangers: who answers in a scheduler's place, without its token, is refused before a store
// is started.
func TestStrangers(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"without a token": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"cluster_id": 7}`))
		},
		"with another": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(instanceHeader, "x")
			_, _ = w.Write([]byte(`{"cluster_id": 7}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := laidOut(t)
			sched := c.Schedulers[0]
			s := httptest.NewUnstartedServer(answer)
			s.Start()
			defer s.Close()
			// It took the port after it was looked at.
			sched.Listen = s.Listener.Addr().String()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			require.ErrorIs(t, c.Start(ctx), errStranger)
			require.False(t, c.Stores[0].Running())
		})
	}
}
