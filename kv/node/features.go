package node

import (
	"fmt"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/feature"
)

// features knows which features the store may use: those in force in its cluster (pkg/feature).
// They are kept in the marker of the data directory, so a store that starts without the placement
// service knows them too.
//
// Invariant: what on says is durable in the marker. A bit is never taken back.
type features struct {
	known  feature.Set // what this program can do
	on     atomic.Uint64
	logger *zap.Logger
	mu     struct {
		sync.Mutex
		dir    *DataDir
		marker Marker
	}
}

// begin takes over what the marker says.
func (f *features) begin(dir *DataDir, m Marker, logger *zap.Logger) {
	f.logger = logger
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.dir, f.mu.marker = dir, m
	f.on.Store(uint64(m.inForce()))
}

// identify writes to the marker whose data the directory holds.
func (f *features) identify(clusterID, storeID uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.mu.marker
	next.ClusterID, next.StoreID = clusterID, storeID
	if err := f.mu.dir.WriteMarker(next); err != nil {
		return err
	}
	f.mu.marker = next
	return nil
}

// inForce returns what the store may use.
func (f *features) inForce() feature.Set { return feature.Set(f.on.Load()) }

// learn takes in what the placement service says is in force. What this program does not know is
// left out: the placement service refuses such a store when it registers. A marker that cannot be
// written, as on a full disk, is tried again with the next heartbeat; until then nothing changes.
func (f *features) learn(set feature.Set) {
	set &= f.known
	if f.inForce().Has(set) {
		return
	}
	if err := f.keep(set); err != nil {
		f.logger.Warn("keeping the features in force failed", zap.Error(err))
	}
}

func (f *features) keep(set feature.Set) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.mu.marker
	added := set &^ next.inForce()
	if added == 0 {
		return nil
	}
	next.FeaturesOn = (next.inForce() | added).Names()
	if err := f.mu.dir.WriteMarker(next); err != nil {
		return fmt.Errorf("write the marker: %w", err)
	}
	f.mu.marker = next
	f.on.Store(uint64(next.inForce()))
	f.logger.Info("features came into force", zap.Stringer("features", added))
	return nil
}

// Settled tells whether all features that this program knows are in force.
func (n *Node) Settled() bool { return n.features.inForce().Has(n.features.known) }
