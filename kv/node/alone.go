package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/transport"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// The placement service is not on the path of the data. A store that has been a member of its
// cluster before starts without it: it knows its identity and the addresses of the stores that it
// shared regions with, and registers once the service answers. A store that has no identity yet, or
// that may have to bootstrap the cluster, waits.

const (
	// aloneAfter is how long a store that could go on alone waits for the placement service, for
	// each of finding it and registering.
	aloneAfter = 3 * time.Second
	// askTimeout bounds the question for an address when an older one is known.
	askTimeout = time.Second
	// rejoinPause is how long a store that is alone waits between two attempts to register.
	rejoinPause = 500 * time.Millisecond
)

// mayGoAlone returns the identity of a store that was a member of its cluster before; nil if it was
// not.
func mayGoAlone(e engine.Engine) (*rspb.StoreIdent, error) {
	ident := new(rspb.StoreIdent)
	found, err := meta.Load(e, meta.StoreIdentKey, ident)
	if err != nil || !found {
		return nil, err
	}
	// Whether the prepared first region counts is for the placement service to say.
	prepared, err := meta.Load(e, meta.PrepareBootstrapKey, new(rspb.RegionLocalState))
	if err != nil || prepared {
		return nil, err
	}
	return ident, nil
}

// connect makes the client of the placement service, and waits until the service answers if this
// store needs it.
func (n *Node) connect(ctx context.Context, marker *Marker) error {
	known, err := mayGoAlone(n.engine)
	if err != nil {
		return err
	}
	alone := uint64(0)
	if known != nil && marker != nil && marker.StoreID != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, aloneAfter)
		defer cancel()
		alone = known.ClusterId
	}
	if known == nil && marker != nil && marker.StoreID != 0 {
		if err := n.requireIdent(marker); err != nil {
			return err
		}
	}
	if err := n.reachPlacement(ctx, alone); err != nil {
		return err
	}
	if marker != nil && marker.ClusterID != 0 && marker.ClusterID != n.placement.ClusterID() {
		return fmt.Errorf(
			"data-dir %s belongs to cluster %d, but the placement service at %v serves cluster %d",
			n.cfg.DataDir, marker.ClusterID, n.cfg.Scheduler, n.placement.ClusterID())
	}
	if n.addresses, err = newAddressBook(n.engine, n.placement); err != nil {
		return err
	}
	n.addresses.secured = n.identity != nil
	return nil
}

// requireIdent refuses a directory whose marker names a store that its engine knows nothing of.
func (n *Node) requireIdent(marker *Marker) error {
	found, err := meta.Load(n.engine, meta.StoreIdentKey, new(rspb.StoreIdent))
	if err == nil && !found {
		err = fmt.Errorf(
			"data-dir %s is marked as store %d of cluster %d, but %s holds no store: its data is gone. "+
				"Put it back, or start with an empty data-dir to join as a new store; the regions of store %d are replaced elsewhere",
			n.cfg.DataDir, marker.StoreID, marker.ClusterID, n.dir.Sub("kv"), marker.StoreID)
	}
	return err
}

// reachPlacement makes the client. With the cluster that the store goes on in alone, it succeeds
// without an answer too.
func (n *Node) reachPlacement(ctx context.Context, alone uint64) error {
	secure, err := security.ClientTLS(n.cfg.Scheduler, n.cfg.PlacementFiles())
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	opts := []client.Option{client.WithLogger(n.logger.Named("placement"))}
	switch {
	case secure != nil && n.identity != nil:
		opts = append(opts, client.WithIdentity(n.identity))
	case secure != nil:
		opts = append(opts, client.WithTLS(secure))
	}
	if alone != 0 {
		opts = append(opts, client.WithoutService(alone))
	}
	if n.dial != nil {
		opts = append(opts, client.WithDialer(n.dial))
	}
	if n.placement, err = client.New(ctx, n.cfg.Scheduler, opts...); err != nil {
		return err
	}
	if want, have := n.cfg.ClusterID, n.placement.ClusterID(); want != 0 && want != have {
		return fmt.Errorf(
			"this store is to join cluster %d, but the placement service at %v serves cluster %d",
			want, n.cfg.Scheduler, have)
	}
	return nil
}

// join registers the run of the store; joined is false if it goes on without and has to register
// later.
func (n *Node) join(ctx context.Context) (ident *rspb.StoreIdent, joined bool, err error) {
	known, err := mayGoAlone(n.engine)
	if err != nil {
		return nil, false, err
	}
	if known != nil {
		if err := beginRun(n.engine, known); err != nil {
			return nil, false, err
		}
		n.run = known.PendingRun
	}
	timeout := joinTimeout
	if known != nil {
		timeout = aloneAfter
	}
	if n.placement.Connected() {
		jctx, cancel := context.WithTimeout(ctx, timeout)
		store := n.storeMeta()
		ident, err = Join(jctx, n.placement, n.engine, n.raftLog, store, n.logger)
		n.run = store.Run
		cancel()
		if err == nil || known == nil || !errors.Is(err, context.DeadlineExceeded) ||
			ctx.Err() != nil {
			return ident, err == nil, err
		}
	}
	n.logger.Warn("starting without the placement service, which does not answer",
		log.StoreID(known.StoreId), zap.Strings("endpoints", n.cfg.Scheduler))
	return known, false, nil
}

// joinLater registers a store that has started alone. Being refused for good is the end of the
// store.
func (n *Node) joinLater(ctx context.Context) {
	for ctx.Err() == nil {
		jctx, cancel := context.WithTimeout(ctx, joinTimeout)
		ident, err := Join(jctx, n.placement, n.engine, n.raftLog, n.storeMeta(), n.logger)
		cancel()
		switch {
		case err == nil && ident.QuarantineThrough != n.ident.QuarantineThrough:
			n.fail(
				errors.New(
					"this data directory is an older copy than what the store had promised, and was served before the " +
						"placement service could say so; start the store again: its replicas are replaced one by one"))
			return
		case err == nil:
			n.registered.Store(true)
			n.logger.Info("registered with the placement service", log.StoreID(n.ident.StoreId))
			n.store.HeartbeatAll()
			return
		case ctx.Err() != nil || errors.Is(err, client.ErrClosed):
			return
		case errors.Is(err, context.DeadlineExceeded):
			n.logger.Warn("waiting for the placement service", zap.Error(err))
		default:
			n.fail(fmt.Errorf("registering after a start without the placement service: %w", err))
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(rejoinPause):
		}
	}
}

// resolve implements transport.Resolver.
func (n *Node) resolve(ctx context.Context, storeID uint64) (string, error) {
	return n.addresses.resolve(ctx, storeID)
}

// storeFinder is what the address book asks.
type storeFinder interface {
	GetStore(ctx context.Context, id uint64) (*metapb.Store, error)
}

// addressBook knows the addresses of other stores, also while the placement service can not be
// asked, and across restarts. Safe for concurrent use.
type addressBook struct {
	engine engine.Engine
	ask    storeFinder
	// secured: this store has certificates.
	secured bool
	mu      struct {
		sync.Mutex
		known map[uint64]string
	}
}

func newAddressBook(e engine.Engine, ask storeFinder) (*addressBook, error) {
	b := &addressBook{engine: e, ask: ask}
	b.mu.known = map[uint64]string{}
	var saved schedulerpb.GetAllStoresResponse
	if _, err := meta.Load(e, meta.AddressBookKey, &saved); err != nil {
		return nil, fmt.Errorf("read the addresses of other stores: %w", err)
	}
	for _, st := range saved.Stores {
		b.mu.known[st.Id] = security.Address(st.Address, st.Tls) // as it was used
	}
	return b, nil
}

// resolve asks the placement service. While that does not answer, the last address is used.
func (b *addressBook) resolve(ctx context.Context, storeID uint64) (string, error) {
	b.mu.Lock()
	last := b.mu.known[storeID]
	b.mu.Unlock()
	if last != "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askTimeout)
		defer cancel()
	}
	st, err := b.ask.GetStore(ctx, storeID)
	switch {
	case errors.Is(err, client.ErrStoreNotFound):
		return "", transport.ErrNoAddress
	case err != nil && last != "":
		return last, nil
	case err != nil:
		return "", err
	case st.State == metapb.StoreState_Tombstone || st.Address == "":
		return "", transport.ErrNoAddress
	}
	addr := security.ServiceAddress(st, b.secured)
	if addr != last {
		if err := b.remember(storeID, addr); err != nil {
			return "", err
		}
	}
	return addr, nil
}

// remember keeps an address on disk. Addresses change rarely, so all are written again.
func (b *addressBook) remember(storeID uint64, addr string) error {
	b.mu.Lock()
	b.mu.known[storeID] = addr
	var all schedulerpb.GetAllStoresResponse
	for id, a := range b.mu.known {
		hostport, secure := security.SplitAddress(a)
		all.Stores = append(all.Stores, &metapb.Store{Id: id, Address: hostport, Tls: secure})
	}
	b.mu.Unlock()
	batch := b.engine.NewBatch()
	meta.Put(batch, meta.AddressBookKey, &all)
	if err := b.engine.Write(batch, true); err != nil {
		return fmt.Errorf("keep the address of store %d: %w", storeID, err)
	}
	return nil
}
