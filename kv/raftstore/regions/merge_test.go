package regions

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

func mergeRegion(id uint64, start, end string, version, conf uint64) *metapb.Region {
	return &metapb.Region{
		Id: id, StartKey: []byte(start), EndKey: []byte(end),
		RegionEpoch: &metapb.RegionEpoch{Version: version, ConfVer: conf},
		Peers:       []*metapb.Peer{{Id: 10 * id, StoreId: 1}, {Id: 10*id + 1, StoreId: 2}},
	}
}

func TestJoin(t *testing.T) {
	for _, c := range []struct {
		target, source *metapb.Region
		start, end     string
		version        uint64
	}{
		{mergeRegion(1, "b", "m", 3, 2), mergeRegion(2, "m", "t", 9, 5), "b", "t", 10},
		{mergeRegion(1, "m", "t", 9, 2), mergeRegion(2, "b", "m", 3, 5), "b", "t", 10},
		{mergeRegion(1, "", "m", 4, 2), mergeRegion(2, "m", "", 4, 5), "", "", 5},
		{mergeRegion(1, "m", "", 4, 2), mergeRegion(2, "", "m", 4, 5), "", "", 5},
	} {
		got, err := Join(c.target, c.source, 7)
		require.NoError(t, err)
		require.Equal(t, []string{c.start, c.end},
			[]string{string(got.StartKey), string(got.EndKey)})
		require.Equal(t, &metapb.RegionEpoch{Version: c.version, ConfVer: 2}, got.RegionEpoch)
		require.Equal(t, c.target.Peers, got.Peers)
		require.Empty(t, c.target.Merges, "the target was changed in place")
	}
	for _, source := range []*metapb.Region{
		mergeRegion(2, "n", "t", 1, 1), mergeRegion(1, "m", "t", 1, 1),
		mergeRegion(2, "a", "d", 1, 1), mergeRegion(2, "", "", 1, 1),
		mergeRegion(0, "m", "t", 1, 1), mergeRegion(2, "l", "", 1, 1),
	} {
		_, err := Join(mergeRegion(1, "b", "m", 1, 1), source, 7)
		require.Error(t, err, "%v", source)
	}
	require.True(t, Adjacent(mergeRegion(1, "a", "", 1, 1), mergeRegion(2, "", "a", 1, 1)))
	require.False(t, Adjacent(mergeRegion(1, "", "", 1, 1), mergeRegion(2, "", "", 1, 1)),
		"an empty end is no border")
}

// TestFloorOfJoinAndSplit: what a region is made of takes its expiry floor along.
func TestFloorOfJoinAndSplit(t *testing.T) {
	for _, c := range [][3]uint64{{0, 0, 0}, {7, 0, 7}, {0, 8, 8}, {7, 8, 8}, {9, 8, 9}} {
		target, source := mergeRegion(1, "b", "m", 3, 2), mergeRegion(2, "m", "t", 9, 5)
		target.ExpiryFloor, source.ExpiryFloor = c[0], c[1]
		joined, err := Join(target, source, 7)
		require.NoError(t, err)
		require.Equal(t, c[2], joined.ExpiryFloor)
		left, right, err := Split(joined,
			&raft_cmdpb.SplitRequest{
				SplitKey: []byte("m"), NewRegionId: 3, NewPeerIds: []uint64{30, 31},
			})
		require.NoError(t, err)
		require.Equal(t, [2]uint64{c[2], c[2]}, [2]uint64{left.ExpiryFloor, right.ExpiryFloor})
		require.Equal(t, c[2], NextVersion(joined).ExpiryFloor)
	}
}

// TestMergeVerdict has a target go through random changes, and compares what each of its states
// says with its history.
func TestMergeVerdict(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		target := mergeRegion(1, "m", "n", 1, 1)
		history := []*metapb.Region{target}
		names := []string{""} // of the merge that made the state
		for i := range uint64(3 * maxMerges) {
			next := Clone(target)
			name := ""
			switch rng.IntN(4) {
			case 0:
				next = NextVersion(target)
			case 1:
				next.RegionEpoch.ConfVer++
			default:
				commit := 1 + rng.Uint64N(9)
				source := mergeRegion(2+i, "", string(target.StartKey), 1+rng.Uint64N(40), 1)
				joined, err := Join(target, source, commit)
				require.NoError(t, err)
				require.Greater(t, joined.RegionEpoch.Version,
					max(source.RegionEpoch.Version, target.RegionEpoch.Version))
				next, name = joined, fmt.Sprint(source.Id, commit)
				// as if it had been split since, which changes nothing here
				next.StartKey = []byte("m")
			}
			target = next
			history, names = append(history, target), append(names, name)
		}
		for at, old := range history {
			for now, state := range history {
				for _, merge := range []struct{ id, commit uint64 }{
					{2 + rng.Uint64N(3*maxMerges), 1 + rng.Uint64N(9)}, mergeOf(history, at),
				} {
					got := MergeVerdict(state, merge.id, merge.commit, old.RegionEpoch)
					checkVerdict(t, got, names, at, now, fmt.Sprint(merge.id, merge.commit))
				}
			}
		}
	}
}

// mergeOf is the merge that followed a state, if one did.
func mergeOf(history []*metapb.Region, at int) (m struct{ id, commit uint64 }) {
	if at+1 < len(history) {
		if all := history[at+1].Merges; len(all) > 0 {
			m.id, m.commit = all[len(all)-1].SourceId, all[len(all)-1].Commit
		}
	}
	return m
}

func checkVerdict(
	t *testing.T, got rspb.MergeMessage_Verdict, names []string, at, now int, name string,
) {
	t.Helper()
	committed, merges := false, 0
	for i := at + 1; i <= now; i++ {
		committed = committed || names[i] == name
		if names[i] != "" {
			merges++
		}
	}
	switch got {
	case rspb.MergeMessage_Nothing:
		require.LessOrEqual(t, now, at)
	case rspb.MergeMessage_Committed:
		require.Greater(t, now, at)
		require.Contains(t, names[1:now+1], name)
	case rspb.MergeMessage_Refused:
		require.Greater(t, now, at)
		require.False(t, committed, "a merge that took place is called refused")
	case rspb.MergeMessage_Unknown:
		require.Greater(t, merges, maxMerges, "the list has room")
	}
}

func TestToldSaysNothingOfMerges(t *testing.T) {
	r := mergeRegion(1, "m", "n", 4, 2)
	told := Told(r, &metapb.RegionEpoch{Version: 9, ConfVer: 7})
	require.Equal(t, rspb.MergeMessage_Unknown, MergeVerdict(told, 2, 7, r.RegionEpoch))
	require.EqualValues(t, 4, r.RegionEpoch.Version)
	require.Equal(t, rspb.MergeMessage_Nothing, MergeVerdict(told, 2, 7, told.RegionEpoch))
}

// TestSplitKeepsTheMerges: the half with the region's id remembers what came into the region. The
// other one is new.
func TestSplitKeepsTheMerges(t *testing.T) {
	joined, err := Join(mergeRegion(1, "b", "m", 3, 2), mergeRegion(2, "m", "t", 9, 5), 7)
	require.NoError(t, err)
	joined.MergesFloor = 2
	left, right, err := Split(joined,
		&raft_cmdpb.SplitRequest{
			SplitKey: []byte("m"), NewRegionId: 3, NewPeerIds: []uint64{30, 31},
		})
	require.NoError(t, err)
	require.Equal(t, joined.Merges, left.Merges)
	require.EqualValues(t, 2, left.MergesFloor)
	require.Empty(t, right.Merges)
	require.Zero(t, right.MergesFloor)
}
