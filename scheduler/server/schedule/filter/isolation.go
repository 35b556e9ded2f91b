package filter

import "github.com/tinykv/tinykv/scheduler/server/core"

// Isolation scores how far apart stores are: the sum over all pairs of how early their location
// labels differ. Pairs in different zones score more than pairs in one zone but different racks.
func Isolation(labels []string, stores []*core.StoreInfo) int {
	score := 0
	for i, a := range stores {
		for _, b := range stores[:i] {
			score += pairScore(labels, a, b)
		}
	}
	return score
}

func pairScore(labels []string, a, b *core.StoreInfo) int {
	for depth, l := range labels {
		if va, vb := a.Label(l), b.Label(l); va != vb && va != "" && vb != "" {
			return 1 << (2 * (len(labels) - depth - 1))
		}
	}
	return 0
}
