package pdhttp

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// TestSizesAndDurations are written as PD writes them.
func TestSizesAndDurations(t *testing.T) {
	for want, v := range map[string]any{
		`"0B"`: Size(0), `"1023B"`: Size(1023), `"1KiB"`: Size(1024), `"1.5GiB"`: Size(3 << 29),
		`"931.3GiB"`: Size(1e12),
		`"16EiB"`:    Size(1<<64 - 1), `"1h0m3.5s"`: Duration(time.Hour + 3500*time.Millisecond),
	} {
		got, err := json.Marshal(v)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.Equal(t, "Disconnected", StateName("disconnected"))
}

func region(id uint64, start, end string, size int64) *core.RegionInfo {
	return core.NewRegion(&metapb.Region{
		Id: id, StartKey: []byte(start), EndKey: []byte(end),
		RegionEpoch: &metapb.RegionEpoch{Version: id, ConfVer: 1},
		Peers:       []*metapb.Peer{{Id: 10 * id, StoreId: 1}},
	}, nil, core.WithSize(size))
}

func ids(regions []*core.RegionInfo) (out []uint64) {
	for _, r := range regions {
		out = append(out, r.ID())
	}
	return out
}

// TestLists: orders keep the order of keys among equals; holes are at both ends and in the middle;
// histograms leave out empty bars.
func TestLists(t *testing.T) {
	all := []*core.RegionInfo{
		region(3, "b", "d", 5), region(9, "d", "f", 1), region(4, "h", "k", 5),
		region(5, "k", "m", 21),
	}
	require.Equal(t, []uint64{5, 3, 4, 9}, ids(Top(all, Orders["size"], 10)))
	require.Equal(t, []uint64{9, 5}, ids(Top(all, Orders["version"], 2)))
	require.Empty(t, Top(all, Orders["keys"], 0))
	require.Equal(t, []uint64{3, 9, 4, 5}, ids(all), "the list given stays as it is")

	require.Equal(t, [][2]string{{"", "62"}, {"66", "68"}, {"6D", ""}}, Holes(all))
	require.Equal(t, [][2]string{},
		Holes([]*core.RegionInfo{region(1, "", "b", 1), region(2, "b", "", 1)}))
	require.Equal(t, [][2]string{}, Holes(nil), "no region is known: as with PD, there is no hole")

	require.Equal(t, []Bar{{0, 4, 1}, {5, 9, 2}, {20, 24, 1}}, Histogram(all, Orders["size"], 5))
	require.Equal(t, []Bar{}, Histogram(nil, Orders["size"], 5))
	require.Equal(t, []uint64{9}, ids(Siblings(all, all[0])))
	require.Equal(t, []uint64{4}, ids(Siblings(all, all[3])))
	whole := region(1, "", "", 1)
	require.Empty(t, Siblings([]*core.RegionInfo{whole}, whole))

	offline := Facts{Replicas: 1, Offline: func(id uint64) bool { return id == 1 }}
	require.Len(t, Check(all, Checks["offline-peer"], offline), 4)
	require.Empty(t, Check(all, Checks["miss-peer"], offline))
	require.Equal(t, []uint64{9}, ids(Check(all, Checks["empty-region"], offline)))
	require.Len(t, Check(all, Checks["miss-peer"], Facts{Replicas: 3}), 4)
}
