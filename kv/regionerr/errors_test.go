package regionerr

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// TestEveryErrorHasItsForm: each error is either a region error of the right kind, or none.
func TestEveryErrorHasItsForm(t *testing.T) {
	r := &metapb.Region{Id: 1, StartKey: []byte("a"), EndKey: []byte("b")}
	check := func(err error) string {
		pb, ok := ToProto(err)
		if !ok {
			return ""
		}
		require.NotEmpty(t, pb.Message)
		switch {
		case pb.NotLeader != nil:
			return "not_leader"
		case pb.RegionNotFound != nil:
			return "region_not_found"
		case pb.KeyNotInRegion != nil:
			return "key_not_in_region"
		case pb.EpochNotMatch != nil:
			return "epoch_not_match"
		case pb.StaleCommand != nil:
			return "stale_command"
		case pb.StoreNotMatch != nil:
			return "store_not_match"
		case pb.ServerIsBusy != nil:
			return "server_is_busy"
		case pb.RaftEntryTooLarge != nil:
			return "raft_entry_too_large"
		case pb.DiskFull != nil:
			return "disk_full"
		}
		return "message"
	}
	require.Equal(t, "not_leader",
		check(&NotLeaderError{RegionID: 1, Leader: &metapb.Peer{Id: 1, StoreId: 1}}))
	require.Equal(t, "region_not_found", check(&RegionNotFoundError{RegionID: 1}))
	require.Equal(t, "region_not_found", check(&PeerNotMatchError{RegionID: 1}))
	require.Equal(t, "key_not_in_region", check(&KeyNotInRegionError{Key: []byte("x"), Region: r}))
	require.Equal(t, "epoch_not_match",
		check(&EpochNotMatchError{RegionID: 1, Regions: []*metapb.Region{r}}))
	require.Equal(t, "stale_command", check(&StaleCommandError{Term: 3}))
	require.Equal(t, "stale_command", check(&OverwrittenError{Term: 3}))
	require.Equal(t, "stale_command",
		check(&UnknownError{Cause: &RegionNotFoundError{RegionID: 1}}),
		"the cause would say that nothing was done")
	require.Equal(t, "store_not_match", check(&StoreNotMatchError{1, 2}))
	require.Equal(t, "server_is_busy", check(&BusyError{"x"}))
	require.Equal(t, "server_is_busy", check(ErrDeadlineExceeded))
	require.Equal(t, "raft_entry_too_large", check(&EntryTooLargeError{1, 2, 3}))
	require.Equal(t, "disk_full", check(&DiskFullError{1}))
	require.Equal(t, "message", check(Invalidf("x")))
	require.Equal(t, "message", check(&FeatureError{Missing: 1}))
	for _, err := range []error{ErrStopping, ErrFailed, errors.New("disk on fire")} {
		require.Empty(t, check(err), err)
	}
}
