package raftstore

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// reports counts store heartbeats; the first few fail.
type reports struct {
	lonely
	fail int
	got  chan int
	n    int
}

func (r *reports) StoreHeartbeat(context.Context, *schedulerpb.StoreStats) error {
	r.n++
	r.got <- r.n
	if r.n <= r.fail {
		return errNobody
	}
	return nil
}

// TestFirstReportIsRepeated: a store that could not report does not wait for a whole interval, here
// of an hour, to learn which features are in force.
func TestFirstReportIsRepeated(t *testing.T) {
	s, _ := newTestStore(t, region(1, "", "", 1, 1, voter(1, 1)))
	s.cfg.Raftstore.StoreHeartbeatInterval = config.Dur(time.Hour)
	r := &reports{fail: 1, got: make(chan int, 16)}
	s.placement = r
	startTestStore(t, s)
	for want := 1; want <= 2; want++ {
		select {
		case n := <-r.got:
			require.Equal(t, want, n)
		case <-time.After(20 * time.Second):
			t.Fatalf("report %d does not come", want)
		}
	}
}
