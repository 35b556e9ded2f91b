package recovery

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func region(id uint64, start, end string, version, confVer uint64, stores ...uint64) Region {
	r := Region{ID: id, Start: []byte(start), End: []byte(end), Version: version, ConfVer: confVer}
	for _, s := range stores {
		r.Peers = append(r.Peers, Peer{ID: id*10 + s, StoreID: s})
	}
	return r
}

func replica(r Region, store, term, index uint64) Replica {
	return Replica{
		Region: r, PeerID: r.ID*10 + store, StoreID: store, LastTerm: term, LastIndex: index,
		Applied: index,
	}
}

func report(store uint64, replicas ...Replica) StoreReport {
	return StoreReport{
		ClusterID: 7, StoreID: store, Address: fmt.Sprint("s", store), MaxID: 100 + store,
		Replicas: replicas,
	}
}

func TestNewestReplicaGoesOn(t *testing.T) {
	r := region(1, "", "", 3, 5, 1, 2, 3, 4, 5)
	plan, err := PlanRegions([]StoreReport{
		report(1, replica(r, 1, 6, 90)), // longer, of an older term
		report(2, replica(r, 2, 7, 40)),
	}, []uint64{3, 4, 5})
	require.NoError(t, err)
	require.Len(t, plan.Rebirths, 1)
	b := plan.Rebirths[0]
	require.EqualValues(t, 2, b.StoreID)
	require.Equal(t, []Peer{{ID: 12, StoreID: 2}}, b.Becomes.Peers)
	require.Greater(t, b.Becomes.ConfVer, r.ConfVer)
	require.Equal(t, r.Version, b.Becomes.Version,
		"what is in the log and not applied would be refused")
	require.Equal(t, []uint64{3, 4, 5}, b.Lost)
	require.Equal(t, []End{{1, 11, 1, b.Becomes.Version, b.Becomes.ConfVer}}, plan.Ends)
	require.Empty(t, plan.Holes)
}

func TestMajorityIsLeftAlone(t *testing.T) {
	r := region(1, "", "", 1, 1, 1, 2, 3)
	plan, err := PlanRegions([]StoreReport{
		report(1, replica(r, 1, 6, 9)), report(2, replica(r, 2, 6, 9)),
	}, []uint64{3})
	require.NoError(t, err)
	require.Equal(t, 1, plan.Healthy)
	require.Empty(t, plan.Rebirths)
	require.Empty(t, plan.Holes)
}

// TestReplicaThatMissedASplit: the only replica of a region that is left does not know that the
// region was split. The new right half, which has a majority, keeps its keys.
func TestReplicaThatMissedASplit(t *testing.T) {
	whole := region(1, "", "", 1, 1, 1, 2, 3)
	right := region(2, "m", "", 2, 1, 1, 4, 5)
	plan, err := PlanRegions([]StoreReport{
		report(1, replica(whole, 1, 6, 9), replica(right, 1, 6, 9)),
		report(4, replica(right, 4, 6, 9)), report(5),
	}, []uint64{2, 3})
	require.NoError(t, err)
	require.Len(t, plan.Rebirths, 1)
	require.Equal(t, "m", string(plan.Rebirths[0].Becomes.End))
	require.Empty(t, plan.Holes)
}

func TestHoles(t *testing.T) {
	left := region(1, "", "c", 2, 1, 1, 2, 3)
	plan, err := PlanRegions([]StoreReport{report(1, replica(left, 1, 6, 9))}, []uint64{2, 3})
	require.NoError(t, err)
	require.Equal(t, []Hole{{Start: []byte("c")}}, plan.Holes)
	next := uint64(500)
	require.NoError(t, plan.Fill([]uint64{1}, func() (uint64, error) { next++; return next, nil }))
	fill := plan.Holes[0].Fill
	require.Equal(t, []Peer{{ID: 502, StoreID: 1}}, fill.Peers)
	require.Equal(t, "c", string(fill.Start))
}

func TestIncompleteReplicaDoesNotGoOn(t *testing.T) {
	r := region(1, "", "", 1, 1, 1, 2, 3)
	incomplete := replica(r, 1, 9, 99)
	incomplete.Installing = true
	plan, err := PlanRegions([]StoreReport{report(1, incomplete)}, []uint64{2, 3})
	require.NoError(t, err)
	require.Empty(t, plan.Rebirths)
	require.Len(t, plan.Holes, 1)
}

func TestReportsThatContradict(t *testing.T) {
	other := report(2)
	other.ClusterID = 8
	_, err := PlanRegions([]StoreReport{report(1), other}, nil)
	require.ErrorContains(t, err, "cluster 8")
	_, err = PlanRegions([]StoreReport{report(1)}, []uint64{1})
	require.ErrorContains(t, err, "called lost")
	_, err = PlanRegions(nil, nil)
	require.Error(t, err)
	_, err = PlanScheduler([]StoreReport{report(1), other}, time.Now())
	require.ErrorContains(t, err, "cluster 8")
	_, err = PlanScheduler([]StoreReport{report(1), report(1)}, time.Now())
	require.ErrorContains(t, err, "twice")
	raw, txn := report(1), report(2)
	raw.Mode, txn.Mode = "raw", "txn"
	_, err = PlanScheduler([]StoreReport{raw, txn}, time.Now())
	require.ErrorContains(t, err, "mode txn")
}

func TestPlanScheduler(t *testing.T) {
	now := time.UnixMilli(5_000_000)
	a, b := report(1, replica(region(1, "", "", 1, 1, 1, 2, 9), 1, 6, 9)), report(2)
	b.UnixMS = now.Add(time.Hour).UnixMilli()
	b.Features = []string{"replica-hash", "conditional-ops"}
	a.Features = b.Features[:1]
	a.TLS, b.AllowPlain = true, true
	a.Mode = "txn" // the other one is of an older version
	s, err := PlanScheduler([]StoreReport{b, a}, now)
	require.NoError(t, err)
	require.EqualValues(t, 7, s.ClusterID)
	require.Greater(t, s.AllocID, uint64(102+1000))
	require.Greater(t, s.TimestampMS, b.UnixMS)
	require.Equal(t, []uint64{9}, s.Missing)
	require.EqualValues(t, 1, s.Stores[0].ID)
	require.Equal(t, []string{"conditional-ops", "replica-hash"}, s.Features,
		"what one store uses is in force")
	require.Equal(t, "txn", s.Mode)
	require.True(t,
		s.Stores[0].TLS && !s.Stores[0].AllowPlain && !s.Stores[1].TLS && s.Stores[1].AllowPlain)
	require.NoError(t, s.Validate())
	s.Mode = "both"
	require.Error(t, s.Validate())
	s.Mode = ""
	s.Stores = nil
	require.Error(t, s.Validate())
}

// TestPlansTileTheKeySpace: whatever is left, regions with a majority, reborn regions and holes
// cover each key once, no replica both goes on and ends, and an epoch only grows.
func TestPlansTileTheKeySpace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bounds := []string{"", "c", "g", "m", "t", ""}
		stores := map[uint64][]Replica{}
		id := uint64(0)
		for i := 0; i+1 < len(bounds); i++ {
			// A region may be known in its state before a split, too, with the range of its
			// neighbour.
			for _, wide := range []bool{false, rapid.Bool().Draw(t, "stale replica")} {
				end, version := bounds[i+1], uint64(2+i)
				if wide {
					if i+2 >= len(bounds) {
						continue
					}
					end, version = bounds[i+2], 1
				} else {
					id++
				}
				r := region(id, bounds[i], end, version, 1, 1, 2, 3)
				for _, s := range []uint64{1, 2, 3} {
					if rapid.Bool().Draw(t, "has") &&
						!slices.ContainsFunc(stores[s], func(x Replica) bool {
							return x.Region.ID == id
						}) {
						stores[s] = append(stores[s],
							replica(r, s, rapid.Uint64Range(5, 7).Draw(t, "term"),
								rapid.Uint64Range(6, 9).Draw(t, "index")))
					}
				}
			}
		}
		lost := rapid.SampledFrom([][]uint64{{3}, {2, 3}}).Draw(t, "lost")
		var reports []StoreReport
		for _, s := range []uint64{1, 2, 3} {
			if !slices.Contains(lost, s) {
				reports = append(reports, report(s, stores[s]...))
			}
		}
		plan, err := PlanRegions(reports, lost)
		require.NoError(t, err)
		checkTiling(t, plan)
	})
}

func checkTiling(t require.TestingT, plan *Regions) {
	ended := map[uint64]bool{}
	for _, e := range plan.Ends {
		ended[e.PeerID] = true
	}
	var spans []span
	for _, b := range plan.Rebirths {
		require.False(t, ended[b.PeerID], "peer %d goes on and ends", b.PeerID)
		require.Greater(t, b.Becomes.ConfVer, b.Was.ConfVer)
		require.Equal(t, b.Was.Version, b.Becomes.Version)
		spans = append(spans, span{b.Becomes.Start, b.Becomes.End})
	}
	for _, h := range plan.Holes {
		spans = append(spans, span{h.Start, h.End})
	}
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.start, b.start) })
	for i := 1; i < len(spans); i++ {
		require.NotEmpty(t, spans[i-1].end, "%q is not the last", spans[i-1].start)
		require.LessOrEqual(t, bytes.Compare(spans[i-1].end, spans[i].start), 0,
			"%q and %q overlap", spans[i-1].start, spans[i].start)
	}
}
