package storage

import (
	"encoding/binary"
	"fmt"
)

// Root is the prefix of all keys of the placement service. Part of the on-disk format; the layout
// is TinyKV's (which is PD's), so that tools that read it keep working.
const Root = "/pd"

// ClusterIDKey holds the cluster id: 8 bytes, big-endian.
const ClusterIDKey = Root + "/cluster_id"

// Keys makes the keys of one cluster.
type Keys struct{ root string }

// KeysOf returns the keys of a cluster id.
func KeysOf(clusterID uint64) Keys { return Keys{root: fmt.Sprintf("%s/%d", Root, clusterID)} }

// All is the prefix of everything but the cluster id.
func (k Keys) All() string { return k.root + "/" }

// Leader holds the marshalled schedulerpb.Member of the placement leader.
func (k Keys) Leader() string { return k.root + "/leader" }

// LeaderTerm holds the leadership term (8 bytes, big-endian): the fence of every write.
func (k Keys) LeaderTerm() string { return k.root + "/leader_term" }

// Timestamp holds the upper bound of timestamps handed out (unix nanoseconds, 8 bytes, big-endian).
func (k Keys) Timestamp() string { return k.root + "/timestamp" }

// AllocID holds the upper bound of ids handed out (8 bytes, big-endian).
func (k Keys) AllocID() string { return k.root + "/alloc_id" }

// Cluster holds the marshalled metapb.Cluster; its existence means "bootstrapped".
func (k Keys) Cluster() string { return k.root + "/raft" }

// BootstrapTime holds the time of bootstrap (unix nanoseconds, 8 bytes, big-endian).
func (k Keys) BootstrapTime() string { return k.root + "/raft/status/raft_bootstrap_time" }

// BootstrapStore holds the id of the store that bootstrapped the cluster (8 bytes, big-endian), so
// that the same store, asking again after a lost answer, gets "yes" and not "somebody else did".
func (k Keys) BootstrapStore() string { return k.root + "/raft/status/bootstrap_store" }

// Features holds the features in force (8 bytes, big-endian; bits of pkg/feature). It only gains
// bits.
func (k Keys) Features() string { return k.root + "/raft/status/features" }

// Stores is the prefix of all stores.
func (k Keys) Stores() string { return k.root + "/raft/s/" }

// Store holds one marshalled metapb.Store.
func (k Keys) Store(id uint64) string { return fmt.Sprintf("%s%020d", k.Stores(), id) }

// StoreSettings is the prefix of what operators set about stores.
func (k Keys) StoreSettings() string { return k.root + "/schedule/store/" }

// StoreSetting holds one store's settings as JSON.
func (k Keys) StoreSetting(id uint64) string {
	return fmt.Sprintf("%s%020d", k.StoreSettings(), id)
}

// ScheduleConfig holds the schedule settings changed at run time, as JSON.
func (k Keys) ScheduleConfig() string { return k.root + "/schedule/config" }

// Memory holds what the next leader should know of silent stores and pauses, as JSON.
func (k Keys) Memory() string { return k.root + "/schedule/memory" }

// MergeHolds holds the ranges whose regions are not merged, as JSON.
func (k Keys) MergeHolds() string { return k.root + "/schedule/holds" }

// GCSafePoint holds the safe point in hexadecimal.
func (k Keys) GCSafePoint() string { return k.root + "/gc/safe_point" }

// GCBarriers holds what keeps the safe points back.
func (k Keys) GCBarriers() string { return k.root + "/gc/barriers" }

// GCClient holds the time at which a client has raised a safe point, in milliseconds since 1970, in
// decimal.
func (k Keys) GCClient() string { return k.root + "/gc/client" }

// Members is the prefix of what is kept about members.
func (k Keys) Members() string { return k.root + "/member/" }

// MemberInfo holds the marshalled schedulerpb.Member of a member, where etcd itself does not know
// the members.
func (k Keys) MemberInfo(id uint64) string { return fmt.Sprintf("%s/member/%d/info", k.root, id) }

// Uint64 encodes a number the way all fixed-size values are stored.
func Uint64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// ParseUint64 decodes it; anything of another length is damage.
func ParseUint64(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("storage: %d bytes where 8 are expected", len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}
