package sim

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

const (
	commandLatency  = 5 * time.Millisecond
	electionTimeout = 10 * time.Second
	transferTime    = 50 * time.Millisecond
	confChangeTime  = 10 * time.Millisecond
)

// Options are the physics of a run.
type Options struct {
	Seed          uint64
	Replicas      int
	HeartbeatTime time.Duration // period of region heartbeats
	StoreBeat     time.Duration // period of store heartbeats
	RateMiB       float64       // MiB/s of one snapshot
	Loss          float64       // share of region heartbeats lost
	MaxDelay      time.Duration // region heartbeats arrive up to this much later
	// share of region heartbeats that arrive twice, the second time late
	Duplicates float64
	AuditEach  bool // check all invariants after every event, not once a minute
	Schedule   config.Schedule
	Labels     []string
	Merge      bool // stores can merge regions
}

// DefaultOptions: a move of an average region takes about ten seconds.
func DefaultOptions() Options {
	s := config.DefaultSchedule()
	s.PatrolRegionInterval = config.Duration(time.Second)
	return Options{
		Seed: 1, Replicas: 3, HeartbeatTime: time.Minute, StoreBeat: 10 * time.Second, RateMiB: 9.6,
		Schedule: s,
	}
}

// Store is a simulated store.
type Store struct {
	id        uint64
	alive     bool
	cut       bool // partitioned from the other stores, not from the placement service
	busy      bool
	sync      time.Duration // what syncs take
	stalled   bool          // raft snapshots to it do not arrive
	sickened  bool          // replicas on it take no part, or did
	capacity  uint64
	labels    []*metapb.StoreLabel
	regions   map[*Region]struct{}
	tombstone bool
	used      uint64
	counted   time.Time
}

// Region is the truth about a region.
type Region struct {
	meta   *metapb.Region // replaced, never changed
	leader uint64         // store, 0 while there is none
	term   uint64
	size   int64               // MiB
	noData map[uint64]bool     // peers that wait for a snapshot, by peer id
	sick   map[uint64]sickness // replicas that take no part although their stores live, by peer id
	hb     *schedulerpb.RegionHeartbeatRequest
	stale  *schedulerpb.RegionHeartbeatRequest // what a cut former leader still reports
	moves  int
	trail  []uint64 // stores that peers of this region came to
	spread int      // zones before the move under way
	// written counts bytes since the last report.
	written uint64
	frozen  bool      // it is being merged
	split   time.Time // when it was made by a split, or lost keys by one
	joined  time.Time // when it took another region last
}

// Sim is one run.
type Sim struct {
	opts                                   Options
	now                                    time.Time
	began                                  time.Time
	rng                                    *rand.Rand
	cluster                                *server.RaftCluster
	stores                                 map[uint64]*Store
	order                                  []*Store
	regions                                []*Region
	byID                                   map[uint64]*Region
	queue                                  eventQueue
	seq                                    uint64
	nextID                                 uint64
	tickAt                                 time.Time
	beatPos                                int
	nextBeatSlot, nextStoreBeat, nextAudit time.Time
	load                                   Load
	// what the placement leader last knew
	epochs map[uint64][2]uint64
	holds  []merge.Hold

	// Faults lists violated invariants; a run that has any failed.
	Faults []string
	Stats  Stats
}

type event struct {
	at  time.Time
	seq uint64
	fn  func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *eventQueue) Push(x any) { *q = append(*q, x.(event)) }

// Pop implements heap.Interface.
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return e
}

// New returns a run without stores.
func New(opts Options) *Sim {
	s := &Sim{
		opts: opts, now: time.Unix(1_700_000_000, 0), rng: rand.New(rand.NewPCG(opts.Seed, 7)),
		stores: map[uint64]*Store{}, byID: map[uint64]*Region{}, nextID: 1 << 20,
	}
	s.began = s.now
	s.tickAt, s.nextBeatSlot, s.nextStoreBeat, s.nextAudit = s.now, s.now, s.now, s.now
	s.newScheduler()
	return s
}

// newScheduler makes a placement leader that knows nothing.
func (s *Sim) newScheduler() {
	s.epochs = map[uint64][2]uint64{}
	s.cluster = server.NewRaftCluster(server.ClusterOptions{
		Settings: &view.Settings{
			Schedule: s.opts.Schedule,
			Replication: config.Replication{
				MaxReplicas: s.opts.Replicas, LocationLabels: s.opts.Labels,
			},
		},
		Now: func() time.Time { return s.now }, Seed: s.rng.Uint64(), Sender: s,
		AllocID: func() (uint64, error) { s.nextID++; return s.nextID, nil },
	})
	s.cluster.SetHolds(s.holds)
}

// Failover replaces the placement leader by one that has to learn everything from heartbeats.
func (s *Sim) Failover() {
	s.newScheduler()
	for _, st := range s.order {
		s.register(st)
	}
	s.cluster.TakeOver()
	s.tickAt = s.now
}

func (s *Sim) after(d time.Duration, fn func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now.Add(d), s.seq, fn})
}

// AddStore adds a live store.
func (s *Sim) AddStore(capacityMiB uint64, labels ...*metapb.StoreLabel) *Store {
	st := &Store{
		id: uint64(len(s.order) + 1), alive: true, capacity: capacityMiB << 20, labels: labels,
		regions: map[*Region]struct{}{},
	}
	s.stores[st.id], s.order = st, append(s.order, st)
	s.register(st)
	s.storeBeat(st)
	return st
}

func (s *Sim) register(st *Store) {
	m := &metapb.Store{
		Id: st.id, Address: fmt.Sprintf("s%d", st.id), Labels: st.labels, Version: "sim",
	}
	if st.tombstone {
		m.State = metapb.StoreState_Tombstone
	}
	if s.opts.Merge {
		m.Features = uint64(feature.Merge)
	}
	s.cluster.Core().PutStore(core.NewStore(m, s.now))
	_ = s.cluster.AgreeFeatures(func(feature.Set) error { return nil })
}

// AddRegions spreads n regions over the stores, sizes drawn by size.
func (s *Sim) AddRegions(n int, size func(*rand.Rand) int64) {
	key := func(i int) []byte {
		if i == 0 || i == n {
			return nil
		}
		return binary.BigEndian.AppendUint32(nil, uint32(i))
	}
	var load []*Store
	for i := range n {
		if i%len(s.order) == 0 {
			load = append([]*Store(nil), s.order...)
			s.rng.Shuffle(len(load), func(i, j int) { load[i], load[j] = load[j], load[i] })
		}
		m := &metapb.Region{
			Id: uint64(i + 1), StartKey: key(i), EndKey: key(i + 1),
			RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		}
		r := &Region{meta: m, term: 6, size: size(s.rng), noData: map[uint64]bool{}}
		for j := range s.opts.Replicas {
			st := load[(i+j)%len(load)]
			s.nextID++
			m.Peers = append(m.Peers, &metapb.Peer{Id: s.nextID, StoreId: st.id})
			st.regions[r] = struct{}{}
		}
		r.leader = m.Peers[0].StoreId
		s.regions, s.byID[m.Id] = append(s.regions, r), r
	}
	for _, r := range s.regions {
		s.heartbeatNow(r)
	}
	for _, st := range s.order {
		s.storeBeat(st)
	}
}

func (s *Sim) usable(storeID uint64) bool {
	st := s.stores[storeID]
	return st != nil && st.alive && !st.cut
}

// sickness is why and since when a replica takes no part.
type sickness struct {
	damaged bool // its store knows and says so; else it is only silent
	since   time.Time
}

// peerDownAfter is the silence after which a leader reports a peer as down.
const peerDownAfter = 5 * time.Minute

func isLearner(p *metapb.Peer) bool { return p.Role == metapb.PeerRole_Learner }

func voters(m *metapb.Region) int {
	n := 0
	for _, p := range m.Peers {
		if !isLearner(p) {
			n++
		}
	}
	return n
}

// canServe tells whether a peer is alive and has the data.
func (s *Sim) canServe(r *Region, p *metapb.Peer) bool {
	_, sick := r.sick[p.Id]
	return s.usable(p.StoreId) && !r.noData[p.Id] && !sick
}

// healthy counts voters that are alive and have the data.
func (s *Sim) healthy(r *Region, m *metapb.Region) int {
	n := 0
	for _, p := range m.Peers {
		if !isLearner(p) && s.canServe(r, p) {
			n++
		}
	}
	return n
}

func (s *Sim) hasQuorum(r *Region) bool { return s.healthy(r, r.meta) > voters(r.meta)/2 }

// heartbeat builds the report of a region's leader; it is kept until the region changes.
func (s *Sim) heartbeat(r *Region) *schedulerpb.RegionHeartbeatRequest {
	if r.hb != nil && len(r.sick) == 0 {
		return r.hb
	}
	hb := &schedulerpb.RegionHeartbeatRequest{
		Region: r.meta, Term: r.term, ApproximateSize: uint64(r.size) << 20,
		BytesWritten: r.written, SizeMeasured: true,
	}
	r.written = 0
	for _, p := range r.meta.Peers {
		if p.StoreId == r.leader {
			hb.Leader = p
		}
		if r.noData[p.Id] {
			hb.PendingPeers = append(hb.PendingPeers, p)
		}
		if sick, ok := r.sick[p.Id]; ok && s.now.Sub(sick.since) >= peerDownAfter {
			hb.DownPeers = append(hb.DownPeers, &schedulerpb.PeerStats{
				Peer: p, DownSeconds: uint64(s.now.Sub(sick.since).Seconds()),
			})
		}
	}
	r.hb = hb
	return hb
}

// heartbeatNow reports a region, with loss and delay if the run has them.
func (s *Sim) heartbeatNow(r *Region) {
	if r.stale != nil {
		s.deliver(r.stale)
	}
	if r.leader == 0 || !s.stores[r.leader].alive {
		return
	}
	if s.opts.Loss > 0 && s.rng.Float64() < s.opts.Loss {
		return
	}
	hb := s.heartbeat(r)
	if s.opts.Duplicates > 0 && s.rng.Float64() < s.opts.Duplicates {
		s.after(rand2(s.rng, time.Minute), func() { s.deliver(hb) })
	}
	if s.opts.MaxDelay > 0 {
		s.after(rand2(s.rng, s.opts.MaxDelay), func() { s.deliver(hb) })
		return
	}
	s.deliver(hb)
}

func rand2(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d) + 1))
}

func (s *Sim) deliver(hb *schedulerpb.RegionHeartbeatRequest) {
	s.Stats.Heartbeats++
	s.checked(hb.Region.Id, func() {
		_ = s.cluster.HandleRegionHeartbeat(hb) // stale ones are refused, that is the point
	})
}

func (s *Sim) storeBeat(st *Store) {
	if !st.alive || st.tombstone {
		return
	}
	if s.now.Sub(st.counted) >= 5*time.Minute || len(st.regions) < 1000 { // adding up is slow
		st.counted, st.used = s.now, 0
		for r := range st.regions {
			st.used += uint64(r.size) << 20
		}
	}
	used := st.used
	_ = s.cluster.HandleStoreHeartbeat(&schedulerpb.StoreStats{
		StoreId: st.id, Capacity: st.capacity, Available: st.capacity - min(used, st.capacity),
		UsedSize:    used,
		RegionCount: uint32(len(st.regions)), IsBusy: st.busy, DamagedPeerIds: s.damagedOn(st),
		SyncMicros: uint64(cmp.Or(st.sync, 2*time.Millisecond).Microseconds()),
	})
}

// changed drops the kept report and sends a new one: stores report changes at once.
func (s *Sim) changed(r *Region) {
	r.hb = nil
	s.heartbeatNow(r)
}

// Run lets virtual time pass.
func (s *Sim) Run(d time.Duration) {
	end := s.now.Add(d)
	for {
		next := end
		for _, t := range []time.Time{s.tickAt, s.nextBeatSlot, s.nextStoreBeat, s.nextAudit} {
			if t.Before(next) {
				next = t
			}
		}
		if len(s.queue) > 0 && s.queue[0].at.Before(next) {
			next = s.queue[0].at
		}
		if next.After(s.now) {
			s.now = next
		}
		s.step()
		if !s.now.Before(end) {
			s.audit()
			return
		}
	}
}

func (s *Sim) step() {
	for len(s.queue) > 0 && !s.queue[0].at.After(s.now) {
		s.checked(0, heap.Pop(&s.queue).(event).fn)
	}
	if !s.nextStoreBeat.After(s.now) {
		s.nextStoreBeat = s.now.Add(s.opts.StoreBeat)
		for _, st := range s.order {
			s.storeBeat(st)
		}
		s.elections()
		s.bury()
	}
	if !s.nextBeatSlot.After(s.now) {
		s.nextBeatSlot = s.now.Add(time.Second)
		s.beatSome()
	}
	woken := false
	select {
	case <-s.cluster.Planner().Woken():
		woken = true
	default:
	}
	if woken && s.tickAt.After(s.now.Add(2*time.Millisecond)) {
		s.tickAt = s.now.Add(2 * time.Millisecond)
	}
	if !s.tickAt.After(s.now) {
		var next time.Time
		s.checked(0, func() { next = s.cluster.Tick() })
		s.tickAt = next
		if least := s.now.Add(2 * time.Millisecond); next.Before(least) {
			s.tickAt = least
		}
		s.Stats.Ticks++
		s.measure()
	}
	if !s.nextAudit.After(s.now) {
		s.nextAudit = s.now.Add(time.Minute)
		s.audit()
	}
}

// beatSome sends the periodic reports of one second, spread over the period.
func (s *Sim) beatSome() {
	n := len(s.regions)
	if n == 0 {
		return
	}
	count := int(math.Ceil(float64(n) / s.opts.HeartbeatTime.Seconds()))
	for range count {
		s.heartbeatNow(s.regions[s.beatPos%n])
		s.beatPos = (s.beatPos + 1) % n
	}
}

// elections replace leaders that died or were cut off.
func (s *Sim) elections() {
	for _, r := range s.regions {
		if r.leader != 0 && s.usable(r.leader) {
			continue
		}
		if !s.hasQuorum(r) {
			continue
		}
		for _, p := range r.meta.Peers {
			if !isLearner(p) && s.canServe(r, p) {
				r.leader = p.StoreId
				r.term++
				s.changed(r)
				break
			}
		}
	}
}

// bury does what the server's store loop does.
func (s *Sim) bury() {
	if !s.cluster.Prepared() {
		return
	}
	for _, st := range s.cluster.Core().Stores() {
		if !st.IsOffline() || st.RegionCount() > 0 || st.EmptyBeats() < 2 {
			continue
		}
		if n := len(s.stores[st.ID()].regions); n > 0 {
			s.faultf("store %d was buried with %d regions", st.ID(), n)
		}
		s.stores[st.ID()].tombstone = true
		s.cluster.Core().UpdateStore(st.ID(), core.WithState(metapb.StoreState_Tombstone))
	}
}

func (s *Sim) faultf(format string, args ...any) {
	if len(s.Faults) < 20 {
		s.Faults = append(s.Faults,
			fmt.Sprintf("at %v: ", s.now.Sub(s.began))+fmt.Sprintf(format, args...))
	}
}
