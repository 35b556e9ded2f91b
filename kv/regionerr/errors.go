package regionerr

import (
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// ErrStopping answers commands that were waiting when the store stopped, and were not proposed.
var ErrStopping = errors.New("raftstore: the store is stopping")

// ErrDeadlineExceeded answers commands that were still waiting to be proposed at their deadline:
// they were definitely not carried out. On the wire it is ServerIsBusy; clients of TiKV know the
// text by its beginning.
var ErrDeadlineExceeded = errors.New("deadline is exceeded: the command was not proposed in time")

// ErrFailed is returned once the store has failed on an IO error.
var ErrFailed = errors.New("raftstore: the store has failed")

// NotLeaderError: this peer does not lead the region. Leader is a hint and may be nil.
type NotLeaderError struct {
	RegionID uint64
	Leader   *metapb.Peer
}

func (e *NotLeaderError) Error() string {
	if e.Leader == nil {
		return fmt.Sprintf("region %d: not leader, leader unknown", e.RegionID)
	}
	return fmt.Sprintf("region %d: not leader, try peer %d on store %d", e.RegionID, e.Leader.Id,
		e.Leader.StoreId)
}

// RegionNotFoundError: this store has no such region.
type RegionNotFoundError struct{ RegionID uint64 }

func (e *RegionNotFoundError) Error() string {
	return fmt.Sprintf("region %d is not on this store", e.RegionID)
}

// KeyNotInRegionError: the key lies outside the region's range.
type KeyNotInRegionError struct {
	Key    []byte
	Region *metapb.Region
}

func (e *KeyNotInRegionError) Error() string {
	start, end := redact.Key(e.Region.GetStartKey()), redact.Key(e.Region.GetEndKey())
	return fmt.Sprintf("key %v is not in region %d [%v, %v)", redact.Key(e.Key), e.Region.GetId(),
		start, end)
}

// EpochNotMatchError: the request was made for another version of the region. Regions holds the
// current region and its neighbours that this store knows, in key order.
type EpochNotMatchError struct {
	RegionID uint64
	Regions  []*metapb.Region
}

func (e *EpochNotMatchError) Error() string {
	return fmt.Sprintf("region %d: epoch does not match", e.RegionID)
}

// StaleCommandError: the command was made for a leader of an older term, and was not proposed.
type StaleCommandError struct{ Term uint64 }

func (e *StaleCommandError) Error() string {
	return fmt.Sprintf("stale command, now in term %d", e.Term)
}

// StalePositionError: a write's log position is too old to tell it from an attempt that comes late.
// Nothing was done; it may be sent again with Position, which is committed.
type StalePositionError struct{ RegionID, Position uint64 }

func (e *StalePositionError) Error() string {
	return fmt.Sprintf("region %d: the write's log position is too old, it is at %d now",
		e.RegionID, e.Position)
}

// UndeterminedError: the log does not reach back far enough to tell whether an earlier attempt at a
// write was carried out. This attempt was not.
type UndeterminedError struct {
	RegionID uint64
	Reason   string
}

func (e *UndeterminedError) Error() string {
	return fmt.Sprintf("region %d: the outcome of an earlier attempt is not known any more: %s",
		e.RegionID, e.Reason)
}

// UnknownError answers a command that was proposed and whose fate this store will not learn: the
// entry may take effect on other stores, may have done so, or may never. It hides its cause from
// errors.As on purpose: most causes say "nothing was done" when they answer a command that was not
// proposed.
type UnknownError struct{ Cause error }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("the outcome of the command is unknown: %v", e.Cause)
}

// OverwrittenError answers a command whose place in the log another leader's entry has, committed:
// it will never take effect.
type OverwrittenError struct {
	// Term is the term of the entry that has its place.
	Term uint64
}

func (e *OverwrittenError) Error() string {
	return fmt.Sprintf("another leader's entry of term %d has the command's place", e.Term)
}

// ClusterNotMatchError: the request was meant for another cluster.
type ClusterNotMatchError struct{ Request, Actual uint64 }

func (e *ClusterNotMatchError) Error() string {
	return fmt.Sprintf("request for cluster %d arrived at cluster %d", e.Request, e.Actual)
}

// StoreNotMatchError: the request was meant for another store.
type StoreNotMatchError struct{ Request, Actual uint64 }

func (e *StoreNotMatchError) Error() string {
	return fmt.Sprintf("request for store %d arrived at store %d", e.Request, e.Actual)
}

// PeerNotMatchError: the request was meant for another peer of the region.
type PeerNotMatchError struct{ RegionID, Request, Actual uint64 }

func (e *PeerNotMatchError) Error() string {
	return fmt.Sprintf("region %d: request for peer %d arrived at peer %d", e.RegionID, e.Request,
		e.Actual)
}

// BusyError: a limit is reached; nothing was done. Try again after a pause.
type BusyError struct{ Reason string }

func (e *BusyError) Error() string { return "server is busy: " + e.Reason }

// EntryTooLargeError: the command exceeds the limit of one raft entry.
type EntryTooLargeError struct{ RegionID, Size, Limit uint64 }

func (e *EntryTooLargeError) Error() string {
	return fmt.Sprintf("region %d: command of %d bytes exceeds the limit of %d", e.RegionID, e.Size,
		e.Limit)
}

// DiskFullError: the store's free space is below its reserve; deletes and reads still work.
type DiskFullError struct{ StoreID uint64 }

func (e *DiskFullError) Error() string {
	return fmt.Sprintf("store %d: free disk space is below the reserve", e.StoreID)
}

// FeatureError: the request takes a feature that is not in force in the cluster; nothing was done.
type FeatureError struct{ Missing feature.Set }

func (e *FeatureError) Error() string {
	return fmt.Sprintf(
		"not served yet: every store of the cluster must run a version that knows %s", e.Missing)
}

// InvalidError: the request itself is wrong, at every store.
type InvalidError struct{ Reason string }

func (e *InvalidError) Error() string { return e.Reason }

// Invalidf makes an InvalidError.
func Invalidf(format string, args ...any) error {
	return &InvalidError{Reason: fmt.Sprintf(format, args...)}
}

// ToProto turns an error into its form on the wire; ok is false for errors that are no region
// errors and become the status of the RPC.
func ToProto(err error) (pb *errorpb.Error, ok bool) {
	pb = &errorpb.Error{Message: err.Error()}
	var (
		notLeader  *NotLeaderError
		notFound   *RegionNotFoundError
		keyOut     *KeyNotInRegionError
		epoch      *EpochNotMatchError
		stale      *StaleCommandError
		unknown    *UnknownError
		overwrite  *OverwrittenError
		store      *StoreNotMatchError
		peer       *PeerNotMatchError
		busy       *BusyError
		tooLarge   *EntryTooLargeError
		diskFull   *DiskFullError
		invalidReq *InvalidError
		missing    *FeatureError
		position   *StalePositionError
		undecided  *UndeterminedError
		cluster    *ClusterNotMatchError
	)
	switch {
	case errors.As(err, &notLeader):
		pb.NotLeader = &errorpb.NotLeader{RegionId: notLeader.RegionID, Leader: notLeader.Leader}
	case errors.As(err, &notFound):
		pb.RegionNotFound = &errorpb.RegionNotFound{RegionId: notFound.RegionID}
	case errors.As(err, &keyOut):
		pb.KeyNotInRegion = &errorpb.KeyNotInRegion{
			Key: keyOut.Key, RegionId: keyOut.Region.GetId(),
			StartKey: keyOut.Region.GetStartKey(), EndKey: keyOut.Region.GetEndKey(),
		}
	case errors.As(err, &epoch):
		pb.EpochNotMatch = &errorpb.EpochNotMatch{CurrentRegions: epoch.Regions}
	case errors.As(err, &stale), errors.As(err, &unknown), errors.As(err, &overwrite):
		// One code for all: clients must take it for an unknown outcome.
		pb.StaleCommand = &errorpb.StaleCommand{}
	case errors.As(err, &store):
		pb.StoreNotMatch = &errorpb.StoreNotMatch{
			RequestStoreId: store.Request, ActualStoreId: store.Actual,
		}
	case errors.As(err, &peer):
		// The client's picture of the region is old; it must reload it.
		pb.RegionNotFound = &errorpb.RegionNotFound{RegionId: peer.RegionID}
	case errors.As(err, &busy):
		pb.ServerIsBusy = &errorpb.ServerIsBusy{Reason: busy.Reason, BackoffMs: 20}
	case errors.Is(err, ErrDeadlineExceeded):
		pb.ServerIsBusy = &errorpb.ServerIsBusy{Reason: ErrDeadlineExceeded.Error()}
	case errors.As(err, &tooLarge):
		pb.RaftEntryTooLarge = &errorpb.RaftEntryTooLarge{
			RegionId: tooLarge.RegionID, EntrySize: tooLarge.Size,
		}
	case errors.As(err, &diskFull):
		pb.DiskFull = &errorpb.DiskFull{
			StoreId: []uint64{diskFull.StoreID}, Reason: diskFull.Error(),
		}
	case errors.As(err, &position):
		pb.StalePosition = &errorpb.StalePosition{
			RegionId: position.RegionID, LogPosition: position.Position,
		}
	case errors.As(err, &undecided):
		pb.UndeterminedResult = &errorpb.UndeterminedResult{Message: undecided.Reason}
	case errors.As(err, &cluster):
		pb.ClusterNotMatch = &errorpb.ClusterNotMatch{
			RequestClusterId: cluster.Request, ActualClusterId: cluster.Actual,
		}
	case errors.As(err, &invalidReq), errors.As(err, &missing):
	default:
		return nil, false
	}
	return pb, true
}
