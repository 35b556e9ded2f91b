package recovery

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Peer is a member of a region.
type Peer struct {
	ID      uint64 `json:"id,string"`
	StoreID uint64 `json:"store_id,string"`
	Learner bool   `json:"learner,omitempty"`
}

// Region is a key range [Start, End) with its members; an empty End is +infinity.
type Region struct {
	ID      uint64 `json:"id,string"`
	Start   []byte `json:"start"`
	End     []byte `json:"end"`
	Version uint64 `json:"version"`
	ConfVer uint64 `json:"conf_ver"`
	Peers   []Peer `json:"peers"`
}

// Replica is what a store says of one of its peers.
type Replica struct {
	Region    Region
	PeerID    uint64
	StoreID   uint64
	LastTerm  uint64
	LastIndex uint64
	Applied   uint64
	// Installing: its data is incomplete until a raft snapshot is installed.
	Installing bool
}

// Rebirth is a region that goes on as one replica: the newest that is left.
type Rebirth struct {
	// Was is the region as that replica knows it, Becomes what it is afterwards.
	Was     Region `json:"was"`
	Becomes Region `json:"becomes"`
	PeerID  uint64 `json:"peer_id,string"`
	StoreID uint64 `json:"store_id,string"`
	// LastTerm and LastIndex are the replica's raft position.
	LastTerm  uint64 `json:"last_term"`
	LastIndex uint64 `json:"last_index"`
	// Lost are the stores with voters that are gone. Writes that only those had are lost.
	Lost []uint64 `json:"lost_stores"`
}

// End is a replica that is destroyed: its region goes on elsewhere.
type End struct {
	RegionID uint64 `json:"region_id,string"`
	PeerID   uint64 `json:"peer_id,string"`
	StoreID  uint64 `json:"store_id,string"`
	Version  uint64 `json:"version"`
	ConfVer  uint64 `json:"conf_ver"`
}

// Hole is a key range of which no replica is left.
type Hole struct {
	Start []byte `json:"start"`
	End   []byte `json:"end"`
	// Fill is the empty region that takes its place; nil if it stays a hole.
	Fill *Region `json:"fill,omitempty"`
}

// Regions is a plan for the regions without a majority.
type Regions struct {
	ClusterID uint64    `json:"cluster_id,string"`
	Lost      []uint64  `json:"lost_stores"`
	Rebirths  []Rebirth `json:"rebirths"`
	Ends      []End     `json:"ends,omitempty"`
	Holes     []Hole    `json:"holes,omitempty"`
	// Healthy counts the regions that still have a majority: they mend themselves.
	Healthy int `json:"healthy_regions"`
}

// PlanRegions decides for each region without a majority which replica goes on: the newest by raft
// position, as an election among those that are left would.
func PlanRegions(reports []StoreReport, lost []uint64) (*Regions, error) {
	plan := &Regions{Lost: slices.Sorted(slices.Values(lost))}
	byRegion, err := plan.gather(reports)
	if err != nil {
		return nil, err
	}
	var alive []Region
	ids := make([]uint64, 0, len(byRegion))
	for id := range byRegion {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		replicas := byRegion[id]
		if known := newestRegion(replicas); plan.hasMajority(known, replicas) {
			plan.Healthy++
			alive = append(alive, known)
			continue
		}
		if best := newest(replicas); best != nil {
			plan.rebirth(best, replicas)
		}
	}
	plan.clip(alive)
	plan.findHoles(alive)
	return plan, nil
}

func (p *Regions) gather(reports []StoreReport) (map[uint64][]Replica, error) {
	if len(reports) == 0 {
		return nil, errors.New("no store has reported")
	}
	p.ClusterID = reports[0].ClusterID
	out := map[uint64][]Replica{}
	for _, r := range reports {
		if r.ClusterID != p.ClusterID {
			return nil,
				fmt.Errorf("store %d belongs to cluster %d, store %d to cluster %d",
					reports[0].StoreID, p.ClusterID, r.StoreID, r.ClusterID)
		}
		if slices.Contains(p.Lost, r.StoreID) {
			return nil, fmt.Errorf("store %d is called lost, but it reports", r.StoreID)
		}
		for _, rep := range r.Replicas {
			if rep.Region.ID != 0 && len(rep.Region.Peers) > 0 {
				out[rep.Region.ID] = append(out[rep.Region.ID], rep)
			}
		}
	}
	return out, nil
}

// newestRegion is the region as the replica with the newest membership knows it.
func newestRegion(replicas []Replica) Region {
	best := replicas[0].Region
	for _, r := range replicas[1:] {
		if c := cmp.Or(cmp.Compare(r.Region.ConfVer, best.ConfVer),
			cmp.Compare(r.Region.Version, best.Version)); c > 0 {
			best = r.Region
		}
	}
	return best
}

// hasMajority tells whether the voters that are not lost, and report, can elect a leader.
func (p *Regions) hasMajority(r Region, replicas []Replica) bool {
	voters, left := 0, 0
	for _, v := range r.Peers {
		if v.Learner {
			continue
		}
		voters++
		if slices.ContainsFunc(replicas, func(rep Replica) bool {
			return rep.PeerID == v.ID && !slices.Contains(p.Lost, v.StoreID)
		}) {
			left++
		}
	}
	return left >= voters/2+1
}

// newest is the replica with the newest raft position, nil if none has its data.
func newest(replicas []Replica) *Replica {
	var best *Replica
	for i := range replicas {
		r := &replicas[i]
		if r.Installing {
			continue
		}
		if best == nil ||
			cmp.Or(cmp.Compare(r.LastTerm, best.LastTerm), cmp.Compare(r.LastIndex, best.LastIndex),
				cmp.Compare(r.Applied, best.Applied)) > 0 {
			best = r
		}
	}
	return best
}

// rebirth lets a region go on as one replica, under a conf version above all that anybody knows of
// it. The version stays: entries that are in the replica's log and not applied yet would be refused
// under another one.
func (p *Regions) rebirth(best *Replica, replicas []Replica) {
	was := best.Region
	becomes := was
	var lost []uint64
	for _, v := range newestRegion(replicas).Peers {
		if !v.Learner && slices.Contains(p.Lost, v.StoreID) {
			lost = append(lost, v.StoreID)
		}
	}
	for _, r := range replicas {
		becomes.ConfVer = max(becomes.ConfVer, r.Region.ConfVer)
	}
	// a lost leader may have changed members without those that are left
	becomes.ConfVer += epochMargin
	becomes.Peers = []Peer{{ID: best.PeerID, StoreID: best.StoreID}}
	p.Rebirths = append(p.Rebirths, Rebirth{
		Was: was, Becomes: becomes, PeerID: best.PeerID, StoreID: best.StoreID,
		LastTerm: best.LastTerm, LastIndex: best.LastIndex, Lost: lost,
	})
	for _, r := range replicas {
		if r.PeerID != best.PeerID {
			p.Ends = append(p.Ends,
				End{was.ID, r.PeerID, r.StoreID, becomes.Version, becomes.ConfVer})
		}
	}
}

// epochMargin is put onto an epoch that may have been ahead of what the plan knows.
const epochMargin = 1000

// clip cuts from the reborn regions what others have: a replica that was behind may not know of a
// split. The region of the newer version keeps the keys.
func (p *Regions) clip(alive []Region) {
	slices.SortStableFunc(p.Rebirths, func(a, b Rebirth) int {
		return cmp.Compare(b.Was.Version, a.Was.Version)
	})
	taken := slices.Clone(alive)
	var kept []Rebirth
	for _, r := range p.Rebirths {
		pieces := subtract(r.Becomes.Start, r.Becomes.End, taken)
		if len(pieces) == 0 {
			p.Ends = append(p.Ends,
				End{r.Was.ID, r.PeerID, r.StoreID, r.Becomes.Version, r.Becomes.ConfVer})
			continue
		}
		// What lies beyond the first piece is a hole then.
		r.Becomes.Start, r.Becomes.End = pieces[0].start, pieces[0].end
		taken = append(taken, r.Becomes)
		kept = append(kept, r)
	}
	slices.SortFunc(kept, func(a, b Rebirth) int {
		return bytes.Compare(a.Becomes.Start, b.Becomes.Start)
	})
	p.Rebirths = kept
}

// findHoles lists the key ranges that neither a region with a majority nor a reborn one has.
func (p *Regions) findHoles(alive []Region) {
	taken := slices.Clone(alive)
	for _, r := range p.Rebirths {
		taken = append(taken, r.Becomes)
	}
	for _, gap := range subtract(nil, nil, taken) {
		p.Holes = append(p.Holes, Hole{Start: gap.start, End: gap.end})
	}
}

// Fill plans an empty region for each hole, on the given stores in turn.
func (p *Regions) Fill(stores []uint64, newID func() (uint64, error)) error {
	if len(stores) == 0 {
		return errors.New("no store is left to fill a hole on")
	}
	for i := range p.Holes {
		h := &p.Holes[i]
		region, err := newID()
		if err != nil {
			return fmt.Errorf("id for a new region: %w", err)
		}
		peer, err := newID()
		if err != nil {
			return fmt.Errorf("id for a new peer: %w", err)
		}
		h.Fill = &Region{
			ID: region, Start: h.Start, End: h.End, Version: epochMargin, ConfVer: epochMargin,
			Peers: []Peer{{ID: peer, StoreID: stores[i%len(stores)]}},
		}
	}
	return nil
}

type span struct{ start, end []byte }

// subtract is what is left of [start, end) without the regions, in key order.
func subtract(start, end []byte, regions []Region) []span {
	sorted := slices.Clone(regions)
	slices.SortFunc(sorted, func(a, b Region) int { return bytes.Compare(a.Start, b.Start) })
	var out []span
	at := start
	for _, r := range sorted {
		if len(r.End) > 0 && bytes.Compare(r.End, at) <= 0 {
			continue
		}
		if len(end) > 0 && bytes.Compare(r.Start, end) >= 0 {
			break
		}
		if bytes.Compare(at, r.Start) < 0 {
			out = append(out, span{at, r.Start})
		}
		if len(r.End) == 0 {
			return out
		}
		at = r.End
	}
	if len(end) == 0 || bytes.Compare(at, end) < 0 {
		out = append(out, span{at, end})
	}
	return out
}
