package client

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// silent is a placement service that answers the first question only.
type silent struct {
	Placement
	asked atomic.Int64
	again chan struct{} // closed when it is asked a second time
}

func (s *silent) GetStore(ctx context.Context, id uint64) (*metapb.Store, error) {
	if s.asked.Add(1) == 1 {
		return &metapb.Store{Id: id, Address: "127.0.0.1:1"}, nil
	}
	close(s.again)
	<-ctx.Done()
	return nil, ctx.Err()
}

// A known address that is old is used while it is asked for again: with the placement service away,
// clients went on for a minute and then waited for it.
func TestOldAddressIsUsedMeanwhile(t *testing.T) {
	placement := &silent{again: make(chan struct{})}
	p := &pool{
		placement: placement, opts: Options{Conns: 1, Timeout: time.Minute, MaxMessage: 1 << 20},
		stores: map[uint64]*storeConn{},
	}
	_, err := p.stub(t.Context(), 1)
	require.NoError(t, err)
	for range 3 {
		p.suspect(1)
		_, err = p.stub(t.Context(), 1)
		require.NoError(t, err)
	}
	<-placement.again
	require.EqualValues(t, 2, placement.asked.Load(), "one question at a time")
	p.close()
	_, err = p.stub(t.Context(), 1)
	require.ErrorIs(t, err, errClosed)
}
