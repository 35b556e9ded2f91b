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

// Apart is how far a store is from the others of a list: Isolation is half the sum of it over all
// of them.
func Apart(labels []string, s *core.StoreInfo, stores []*core.StoreInfo) int {
	score := 0
	for _, o := range stores {
		if o.ID() != s.ID() {
			score += pairScore(labels, s, o)
		}
	}
	return score
}

// Best is an upper bound of the isolation of n stores if the first label has so many values: as
// many pairs as possible in different ones, the others different in the next label.
func Best(labels []string, values, n int) int {
	if len(labels) == 0 || values == 0 {
		return 0
	}
	same, each := 0, n/values
	for i := range values {
		in := each
		if i < n%values {
			in++
		}
		same += in * (in - 1) / 2
	}
	unit := 1 << (2 * (len(labels) - 1))
	return (n*(n-1)/2-same)*unit + same*(unit/4)
}

func pairScore(labels []string, a, b *core.StoreInfo) int {
	for depth, l := range labels {
		if va, vb := a.Label(l), b.Label(l); va != vb && va != "" && vb != "" {
			return 1 << (2 * (len(labels) - depth - 1))
		}
	}
	return 0
}
