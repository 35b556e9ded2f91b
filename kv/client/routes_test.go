package client

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// directory is a placement service that knows one region with a peer on each store, and may go
// away.
type directory struct {
	cluster uint64
	region  *metapb.Region
	addrs   map[uint64]string
	away    atomic.Bool
	second  atomic.Bool // the address of store 2 was given out
}

func newDirectory(addrs ...string) *directory {
	d := &directory{
		region: &metapb.Region{Id: 1, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1}},
		addrs:  map[uint64]string{},
	}
	for i, addr := range addrs {
		id := uint64(i + 1)
		d.addrs[id] = addr
		d.region.Peers = append(d.region.Peers, &metapb.Peer{Id: id, StoreId: id})
	}
	return d
}

func (d *directory) ClusterID() uint64 { return d.cluster }

func (d *directory) GetRegion(ctx context.Context, _ []byte) (*client.Region, error) {
	if d.away.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &client.Region{Meta: d.region, Leader: d.region.Peers[0]}, nil
}

func (d *directory) GetStore(ctx context.Context, id uint64) (*metapb.Store, error) {
	if d.away.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if id == 2 {
		d.second.Store(true)
	}
	return &metapb.Store{Id: id, Address: d.addrs[id]}, nil
}

func (d *directory) ScanRegions(context.Context, []byte, []byte, int) ([]*client.Region, error) {
	return nil, errors.New("not needed")
}

// TestRoutesOutliveThePlacementService: the placement service goes away, then the leader. The
// client finds the next leader, to which it has never spoken, whatever the old one says: nothing,
// that it does not lead, or that it has no such region.
func TestRoutesOutliveThePlacementService(t *testing.T) {
	for name, last := range map[string]*errorpb.Error{
		"stopped":          nil,
		"not leader":       {NotLeader: &errorpb.NotLeader{RegionId: 1}},
		"region not found": {RegionNotFound: &errorpb.RegionNotFound{RegionId: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			old, next := &fakeStore{data: map[string]string{}, batch: "serve"},
				&fakeStore{data: map[string]string{}, batch: "serve"}
			a, stop := serveStoppable(t, old)
			d := newDirectory(a, serve(t, next).addr)
			c := open(t, d, Options{Conns: 1, Timeout: 20 * time.Second})
			require.NoError(t, c.Put(t.Context(), []byte("k"), []byte("v")))
			require.Eventually(t, d.second.Load, 10*time.Second, time.Millisecond,
				"all addresses of the route")
			d.away.Store(true)
			if last == nil {
				stop()
			} else {
				old.mu.Lock()
				old.regionErr = func(*kvrpcpb.Context) *errorpb.Error { return last }
				old.mu.Unlock()
			}
			begun := time.Now()
			_, found, err := c.Get(t.Context(), []byte("k"))
			require.NoError(t, err)
			require.False(t, found, "this store has nothing")
			require.Less(t, time.Since(begun), 10*time.Second)
		})
	}
}

// TestForeignStoreIsForgotten: a store of another cluster answers at a known address. The client
// drops the address and asks again.
func TestForeignStoreIsForgotten(t *testing.T) {
	foreign, own := &fakeStore{data: map[string]string{"k": "foreign"}, batch: "serve"},
		&fakeStore{data: map[string]string{"k": "own"}, batch: "serve"}
	foreign.regionErr = func(kctx *kvrpcpb.Context) *errorpb.Error {
		if kctx.ClusterId == 8 {
			return nil
		}
		return &errorpb.Error{
			ClusterNotMatch: &errorpb.ClusterNotMatch{
				RequestClusterId: kctx.ClusterId, ActualClusterId: 8,
			},
		}
	}
	d := newDirectory(serve(t, foreign).addr)
	d.cluster = 7
	c := open(t, d, Options{Conns: 1, Timeout: 5 * time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, _, err := c.Get(ctx, []byte("k"))
	require.Error(t, err)
	d.addrs[1] = serve(t, own).addr
	value, _, err := c.Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "own", string(value))
}
