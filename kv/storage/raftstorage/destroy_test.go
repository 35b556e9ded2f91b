package raftstorage

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// TestConcerns: a range to destroy concerns the regions that have a part of it. A replica without
// data has neither range nor leader, and must not hold the destruction up.
func TestConcerns(t *testing.T) {
	of := func(start, end string) *metapb.Region {
		return &metapb.Region{
			StartKey: []byte(start), EndKey: []byte(end),
			Peers: []*metapb.Peer{{Id: 1, StoreId: 1}},
		}
	}
	for name, c := range map[string]struct {
		region     *metapb.Region
		start, end string
		want       bool
	}{
		"inside":          {of("a", "m"), "b", "c", true},
		"across the end":  {of("a", "m"), "l", "x", true},
		"before":          {of("d", "m"), "b", "d", false},
		"behind":          {of("a", "m"), "m", "z", false},
		"without bounds":  {of("", ""), "b", "", true},
		"no data yet":     {&metapb.Region{}, "b", "c", false},
		"no data, no end": {&metapb.Region{}, "b", "", false},
	} {
		lower, upper := clip(c.region, []byte(c.start), []byte(c.end))
		require.Equal(t, c.want, concerns(c.region, lower, upper), name)
	}
}
