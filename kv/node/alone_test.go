package node

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/transport"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// registry is a placement service that may be away.
type registry struct {
	away   bool
	stores map[uint64]*metapb.Store
}

func (r *registry) GetStore(ctx context.Context, id uint64) (*metapb.Store, error) {
	if r.away {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if st := r.stores[id]; st != nil {
		return st, nil
	}
	return nil, client.ErrStoreNotFound
}

// TestAddressBook: addresses are known while the placement service is away, also after a restart,
// and what the service says comes first.
func TestAddressBook(t *testing.T) {
	e := memengine.New()
	r := &registry{
		stores: map[uint64]*metapb.Store{2: {Id: 2, Address: "a:1"}, 3: {Id: 3, Address: "b:1"}},
	}
	b, err := newAddressBook(e, r)
	require.NoError(t, err)
	is := func(id uint64, want string) {
		t.Helper()
		got, err := b.resolve(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	is(2, "a:1")
	is(3, "b:1")
	r.stores[3].Address = "c:1"
	is(3, "c:1")
	r.away = true
	is(3, "c:1")
	b, err = newAddressBook(e, r)
	require.NoError(t, err)
	is(2, "a:1")
	is(3, "c:1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.resolve(ctx, 4)
	require.ErrorIs(t, err, context.Canceled, "never known")
	r.away = false
	r.stores[2].State = metapb.StoreState_Tombstone
	_, err = b.resolve(t.Context(), 2)
	require.ErrorIs(t, err, transport.ErrNoAddress)
}

// beats answers store heartbeats as a placement service does that knows another run of the store.
type beats struct {
	placementService
	during func()
}

func (b beats) Heartbeat(context.Context, *schedulerpb.StoreStats) (feature.Set, error) {
	b.during()
	return 0, fmt.Errorf("%w: store 1 was started again", client.ErrDuplicateStore)
}

// TestHeartbeatsBeforeRegistering: a store that has started alone reports before the placement
// service has counted its run, and is not ended by what the service says of the run before. Once it
// is registered, the same answer ends it.
func TestHeartbeatsBeforeRegistering(t *testing.T) {
	var registered atomic.Bool
	var ended error
	p := placement{beats{during: func() { registered.Store(true) }}, &registered, func(err error) {
		ended = err
	}, nil}
	require.ErrorIs(t, p.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 1}),
		client.ErrDuplicateStore)
	require.NoError(t, ended, "the answer is about the run before")
	require.ErrorIs(t, p.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 1}),
		client.ErrDuplicateStore)
	require.ErrorIs(t, ended, client.ErrDuplicateStore)
}
