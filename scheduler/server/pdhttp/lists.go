package pdhttp

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"github.com/pingcap/kvproto/pkg/metapb"

	"github.com/tinykv/tinykv/scheduler/server/core"
)

// What PD's tools ask about all regions: the first of an order, those in a condition, histograms,
// holes; and the labels of stores. All are functions of the regions, in the order of their keys, or
// of the stores.

// Orders are the orders of regions, by the name in the path: the greatest number comes first.
var Orders = map[string]func(r *core.RegionInfo) uint64{
	"writeflow": func(r *core.RegionInfo) uint64 { return r.Flow().BytesWritten },
	"readflow":  func(r *core.RegionInfo) uint64 { return r.Flow().BytesRead },
	"confver":   func(r *core.RegionInfo) uint64 { return r.ConfVer() },
	"version":   func(r *core.RegionInfo) uint64 { return r.Version() },
	"size":      func(r *core.RegionInfo) uint64 { return uint64(r.Size()) },
	"keys":      func(r *core.RegionInfo) uint64 { return uint64(r.Keys()) },
}

// UsualTop and MostTop are how many regions an order has if the request does not say, and at most.
const (
	UsualTop = 16
	MostTop  = 10240
)

// Top are the first n regions of an order. Equal ones stay in the order of their keys.
func Top(regions []*core.RegionInfo, by func(r *core.RegionInfo) uint64, n int) []*core.RegionInfo {
	out := slices.Clone(regions)
	slices.SortStableFunc(out, func(a, b *core.RegionInfo) int { return cmp.Compare(by(b), by(a)) })
	return out[:min(len(out), max(n, 0))]
}

// Facts are what a condition of regions depends on beside the region.
type Facts struct {
	Replicas int // that a region should have
	// Offline tells whether a store is being emptied.
	Offline func(storeID uint64) bool
}

// emptySize is the size in MiB up to which PD calls a region empty.
const emptySize = 1

// Checks are the conditions of regions, by the name in the path.
var Checks = map[string]func(r *core.RegionInfo, f Facts) bool{
	"miss-peer":    func(r *core.RegionInfo, f Facts) bool { return len(r.Peers()) < f.Replicas },
	"extra-peer":   func(r *core.RegionInfo, f Facts) bool { return len(r.Peers()) > f.Replicas },
	"pending-peer": func(r *core.RegionInfo, _ Facts) bool { return r.HasPending() },
	"down-peer":    func(r *core.RegionInfo, _ Facts) bool { return len(r.DownPeers()) > 0 },
	"learner-peer": func(r *core.RegionInfo, _ Facts) bool { return r.Voters() < len(r.Peers()) },
	"empty-region": func(r *core.RegionInfo, _ Facts) bool { return r.Size() <= emptySize },
	"offline-peer": func(r *core.RegionInfo, f Facts) bool {
		return slices.ContainsFunc(r.Peers(), func(p core.Peer) bool {
			return f.Offline(p.StoreID)
		})
	},
}

// Check are the regions in a condition.
func Check(
	regions []*core.RegionInfo, is func(*core.RegionInfo, Facts) bool, f Facts,
) []*core.RegionInfo {
	var out []*core.RegionInfo
	for _, r := range regions {
		if is(r, f) {
			out = append(out, r)
		}
	}
	return out
}

// Bar is how many regions have a number from Start up to and including End.
type Bar struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
	Count int64 `json:"count"`
}

// Histogram counts regions by a number, in bars of the width bound; empty bars are left out.
func Histogram(regions []*core.RegionInfo, by func(*core.RegionInfo) uint64, bound int64) []Bar {
	counts := map[int64]int64{}
	for _, r := range regions {
		counts[int64(by(r))/bound]++
	}
	out := []Bar{}
	for n, count := range counts {
		out = append(out, Bar{Start: n * bound, End: (n+1)*bound - 1, Count: count})
	}
	slices.SortFunc(out, func(a, b Bar) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

// Holes are the ranges [start, end) that no region has, in hexadecimal; an empty bound is that of
// all keys.
func Holes(regions []*core.RegionInfo) [][2]string {
	out := [][2]string{}
	var end []byte
	for _, r := range regions {
		if !bytes.Equal(r.StartKey(), end) {
			out = append(out, [2]string{hexKey(end), hexKey(r.StartKey())})
		}
		end = r.EndKey()
	}
	if len(end) > 0 {
		out = append(out, [2]string{hexKey(end), ""})
	}
	return out
}

// Siblings are the regions beside one; at the ends of all keys there is one only.
func Siblings(regions []*core.RegionInfo, of *core.RegionInfo) []*core.RegionInfo {
	var out []*core.RegionInfo
	for _, r := range regions {
		left := len(r.EndKey()) > 0 && bytes.Equal(r.EndKey(), of.StartKey())
		right := len(of.EndKey()) > 0 && bytes.Equal(r.StartKey(), of.EndKey())
		if left || right {
			out = append(out, r)
		}
	}
	return out
}

// Labels are the different labels of stores, in order; names and values count without regard to
// capitals.
func Labels(stores []*core.StoreInfo) []*metapb.StoreLabel {
	out, seen := []*metapb.StoreLabel{}, map[[2]string]bool{}
	for _, st := range stores {
		for key, value := range st.Labels() {
			if id := [2]string{strings.ToLower(key), strings.ToLower(value)}; !seen[id] {
				seen[id] = true
				out = append(out, &metapb.StoreLabel{Key: key, Value: value})
			}
		}
	}
	slices.SortFunc(out, func(a, b *metapb.StoreLabel) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Value, b.Value))
	})
	return out
}
