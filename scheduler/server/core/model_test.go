package core_test

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// naive is a dumb twin of the region map: a list, and the epoch rules written out.
type naive struct{ list []*core.RegionInfo }

func inf(end []byte) []byte {
	if len(end) == 0 {
		return []byte{0xff, 0xff}
	}
	return end
}

func share(a, b *core.RegionInfo) bool {
	return bytes.Compare(a.StartKey(), inf(b.EndKey())) < 0 &&
		bytes.Compare(b.StartKey(), inf(a.EndKey())) < 0
}

func (n *naive) put(r *core.RegionInfo) bool {
	sameRange := false
	for _, o := range n.list {
		if o.ID() != r.ID() {
			continue
		}
		if r.Version() < o.Version() || r.ConfVer() < o.ConfVer() {
			return false
		}
		if r.Version() == o.Version() && r.ConfVer() == o.ConfVer() && r.Term() < o.Term() {
			return false
		}
		sameRange = bytes.Equal(o.StartKey(), r.StartKey()) && bytes.Equal(o.EndKey(), r.EndKey())
	}
	for _, o := range n.list {
		if o.ID() == r.ID() || sameRange || !share(o, r) {
			continue
		}
		if r.Version() < o.Version() || r.Version() == o.Version() && r.ConfVer() < o.ConfVer() {
			return false
		}
	}
	var next []*core.RegionInfo
	for _, o := range n.list {
		if o.ID() != r.ID() && !share(o, r) {
			next = append(next, o)
		}
	}
	n.list = append(next, r)
	return true
}

func (n *naive) find(key []byte) *core.RegionInfo {
	for _, o := range n.list {
		if o.Contains(key) {
			return o
		}
	}
	return nil
}

func drawRegion(t *rapid.T) *core.RegionInfo {
	key := rapid.IntRange(0, 12)
	start, end := key.Draw(t, "start"), key.Draw(t, "end")
	if start > end {
		start, end = end, start
	}
	if start == end {
		end++
	}
	m := &metapb.Region{
		Id: rapid.Uint64Range(1, 8).Draw(t, "id"),
		RegionEpoch: &metapb.RegionEpoch{
			Version: rapid.Uint64Range(1, 4).Draw(t, "version"),
			ConfVer: rapid.Uint64Range(1, 3).Draw(t, "conf"),
		},
	}
	if start > 0 {
		m.StartKey = []byte{byte(start)}
	}
	if end < 12 {
		m.EndKey = []byte{byte(end)}
	}
	stores := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 9), 0, 7, rapid.ID[uint64]).Draw(t,
		"stores")
	var pending []uint64
	for i, s := range stores {
		id := m.Id*100 + s
		m.Peers = append(m.Peers,
			&metapb.Peer{Id: id, StoreId: s, Role: metapb.PeerRole(i % 4 / 3)})
		if rapid.IntRange(0, 5).Draw(t, "pending") == 0 {
			pending = append(pending, id)
		}
	}
	var leader uint64
	if len(stores) > 0 && rapid.Bool().Draw(t, "led") {
		leader = stores[0]
	}
	return core.NewRegion(m, nil, core.WithLeaderStore(leader), core.WithPending(pending...),
		core.WithSize(rapid.Int64Range(1, 50).Draw(t, "size")),
		core.WithTerm(rapid.Uint64Range(1, 3).Draw(t, "term")))
}

// The map agrees with a naive list on every report, in whatever order they come; its indexes agree
// with each other and its counters with a recount. (Accepting stale reports is found within a few
// cases.)
func TestRegionMapAgainstModel3C(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, model := core.NewBasicCluster(), &naive{}
		for range rapid.IntRange(1, 40).Draw(t, "reports") {
			r := drawRegion(t)
			_, err := c.PutRegion(r)
			if accepted := model.put(r); accepted != (err == nil) {
				t.Fatalf("%v: model accepts %v, map says %v", r, accepted, err)
			}
			if err := compare(c, model); err != nil {
				t.Fatalf("after %v: %v", r, err)
			}
			if rapid.IntRange(0, 9).Draw(t, "remove") == 0 {
				id := rapid.Uint64Range(1, 8).Draw(t, "gone")
				c.RemoveRegion(id)
				var next []*core.RegionInfo
				for _, o := range model.list {
					if o.ID() != id {
						next = append(next, o)
					}
				}
				model.list = next
			}
		}
	})
}

func compare(c *core.BasicCluster, model *naive) error {
	if c.RegionCount() != len(model.list) {
		return fmt.Errorf("map has %d regions, model %d", c.RegionCount(), len(model.list))
	}
	for _, o := range model.list {
		if c.Region(o.ID()) != o {
			return fmt.Errorf("region %d: map has %v, model %v", o.ID(), c.Region(o.ID()), o)
		}
	}
	for k := range 13 {
		for _, key := range [][]byte{{byte(k)}, {byte(k), 0}, nil} {
			if got, want := c.RegionByKey(key), model.find(key); got != want {
				return fmt.Errorf("key %x: map has %v, model %v", key, got, want)
			}
			var want *core.RegionInfo
			if at := model.find(key); at != nil && len(at.StartKey()) > 0 {
				for _, o := range model.list {
					if bytes.Equal(o.EndKey(), at.StartKey()) {
						want = o
					}
				}
			}
			if got := c.PrevRegion(key); got != want {
				return fmt.Errorf("before key %x: map has %v, model %v", key, got, want)
			}
		}
	}
	scan := c.ScanRegions(nil, nil, 0)
	for i := 1; i < len(scan); i++ {
		if bytes.Compare(scan[i-1].StartKey(), scan[i].StartKey()) >= 0 ||
			share(scan[i-1], scan[i]) {
			return fmt.Errorf("%v and %v out of order or overlapping", scan[i-1], scan[i])
		}
	}
	if len(scan) != len(model.list) {
		return fmt.Errorf("scan shows %d of %d regions", len(scan), len(model.list))
	}
	return recount(c, model)
}

func recount(c *core.BasicCluster, model *naive) error {
	want := map[uint64]core.StoreCounts{}
	sets := map[uint64]map[string]int{}
	for _, r := range model.list {
		for _, p := range r.Peers() {
			n := want[p.StoreID]
			if sets[p.StoreID] == nil {
				sets[p.StoreID] = map[string]int{}
			}
			n.RegionCount++
			n.RegionSize += r.Size()
			switch {
			case p.Learner:
			case r.LeaderStore() == p.StoreID:
				n.LeaderCount++
				n.LeaderSize += r.Size()
			default:
				sets[p.StoreID]["followers"]++
			}
			if r.IsPending(p.ID) {
				n.PendingCount++
			}
			want[p.StoreID] = n
		}
	}
	for id := range uint64(10) {
		if got := c.StoreCountsOf(id); got != want[id] {
			return fmt.Errorf("store %d: counters %+v, recount %+v", id, got, want[id])
		}
		followers := 0
		c.GetFollowersWithLock(id, func(rc core.RegionsContainer) {
			followers = rc.Len()
			for i := range rc.Len() {
				if _, ok := rc.At(i).StorePeer(id); !ok {
					followers = -1
				}
			}
		})
		if followers != sets[id]["followers"] {
			return fmt.Errorf("store %d: %d followers in the set, %d by recount", id, followers,
				sets[id]["followers"])
		}
	}
	return nil
}
