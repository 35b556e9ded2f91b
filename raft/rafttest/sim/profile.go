package sim

import "fmt"

// Profile is the climate of one run: every seed draws its own, with extreme values, because a run
// under average weather finds little (swarm testing).
type Profile struct {
	Name     string
	Voters   int
	Learners int

	// Production: AckOnPersist, AsyncApply, UnstableOnly, LazyCommit as the raftstore sets them.
	// Else the course's contract.
	Production           bool
	PreVote, CheckQuorum bool
	ElectionTick         int
	HeartbeatTick        int
	MaxSizePerMsg        uint64
	MaxInflightMsgs      int
	MaxInflightBytes     uint64
	MaxUncommitted       uint64
	MaxCommittedPerReady uint64
	LogCacheBytes        uint64

	Loss, Dup float64
	// DelayUS is the usual delay of a message, TailUS the longest one.
	DelayUS, TailUS int

	// CrashPerReady is the chance of a crash at one of the crash points of a Ready.
	CrashPerReady float64
	RestartUS     int
	// SplitBatch writes entries and hard state as two records, which a crash may part.
	SplitBatch bool
	SyncUS     int
	ApplyUS    int
	// SlowApply is the chance that a node applies slowly: each batch takes about SlowApplyUS.
	SlowApply   float64
	SlowApplyUS int
	// KVSync is the chance that an applied batch is synced at once.
	KVSync float64

	// ClientUS lies between two commands, FaultUS between two faults (0: none).
	ClientUS, FaultUS int
	ConfChange        float64
	Transfer          float64
	Compact           float64
	Read              float64
	Payload           int
	SnapFail          float64
	SnapReportLost    float64
	SnapUnavailable   float64
	StorageError      float64
	// Wipe is the chance that a node for which it is time loses its whole disk, and is replaced.
	Wipe float64

	// These break what raft rests on. No seed draws them: they are for tests which show that the
	// invariants notice. LyingSync is the chance that a sync does nothing, LostTail that a crash
	// takes entries that were synced. WipedRejoin lets a wiped node come back under its ID.
	LyingSync, LostTail float64
	WipedRejoin         bool

	// Rates are drawn from [RateLo, RateHi]: how fast a node's clock runs.
	RateLo, RateHi float64
	Lease          bool
	// LeaseTicks is how long a lease lasts at the leader.
	LeaseTicks float64
}

// tickUS is the length of a tick of a clock at rate 1.
const tickUS = 10_000

// drawProfile makes the profile of a seed.
func drawProfile(seed uint64, r *rng) Profile {
	p := Profile{
		Name: "swarm", Voters: r.between(1, 5), ElectionTick: 10, HeartbeatTick: r.between(1, 3),
		Production: r.chance(0.6), PreVote: r.chance(0.5),
		DelayUS: r.between(100, 4000), TailUS: pick(r, 5_000, 50_000, 300_000),
		RateLo: 1, RateHi: 1, ClientUS: r.between(500, 6000), Payload: pick(r, 8, 16, 64, 200),
		RestartUS: pick(r, 25_000, 200_000, 1_000_000), SyncUS: pick(r, 0, 0, 500, 5000),
		ApplyUS: pick(r, 0, 200, 3000, 30_000), KVSync: pick(r, 1, 0.3, 0.02),
		SplitBatch: r.chance(0.3),
	}
	p.CheckQuorum = p.PreVote || r.chance(0.3)
	if r.chance(0.3) {
		p.Learners = r.between(1, 2)
	}
	if r.chance(0.7) {
		p.Loss = r.float(0, 0.3)
	}
	if r.chance(0.5) {
		p.Dup = r.float(0, 0.1)
	}
	if r.chance(0.6) {
		p.CrashPerReady = pick(r, 0.001, 0.003, 0.01)
	}
	if r.chance(0.7) {
		p.FaultUS = pick(r, 100_000, 400_000, 1_500_000)
	}
	if r.chance(0.6) {
		p.ConfChange = pick(r, 0.01, 0.05, 0.2)
	}
	if r.chance(0.5) {
		p.Transfer = pick(r, 0.005, 0.05)
	}
	if r.chance(0.6) {
		p.Compact = pick(r, 0.01, 0.1)
	}
	if r.chance(0.9) {
		p.Read = pick(r, 0.1, 0.5)
	}
	drawLimits(&p, r)
	drawClocks(&p, r)
	switch {
	case seed%4 == 0:
		storm(&p, r)
	case seed%8 == 3:
		exodus(&p, r)
	}
	if r.chance(0.4) {
		p.Wipe = pick(r, 0.1, 0.5, 1)
	}
	return p
}

func drawLimits(p *Profile, r *rng) {
	if r.chance(0.6) {
		p.MaxSizePerMsg = uint64(pick(r, 1, 100, 1000))
	}
	if r.chance(0.6) {
		p.MaxInflightMsgs = pick(r, 1, 4, 32)
	}
	if r.chance(0.3) {
		p.MaxInflightBytes = uint64(pick(r, 100, 3000))
	}
	if r.chance(0.3) {
		p.MaxUncommitted = uint64(pick(r, 100, 2000))
	}
	if r.chance(0.5) {
		p.MaxCommittedPerReady = uint64(pick(r, 1, 300, 5000))
	}
	p.LogCacheBytes = uint64(pick(r, 0, 200, 5000))
	if r.chance(0.4) {
		p.SnapFail, p.SnapReportLost = r.float(0, 0.3), r.float(0, 0.5)
		p.SnapUnavailable = r.float(0, 0.4)
	}
	if r.chance(0.2) {
		p.StorageError = r.float(0, 0.2)
	}
}

func drawClocks(p *Profile, r *rng) {
	if p.CheckQuorum && r.chance(0.5) {
		// A lease of 8 ticks against a promise of at least 9, and clocks less than 12 % apart.
		p.Lease, p.LeaseTicks, p.RateLo, p.RateHi = true, 8, 0.96, 1.04
		return
	}
	if r.chance(0.4) {
		p.RateLo, p.RateHi = 0.5, 2
	}
}

// storm is the weather that finds forgotten promises: few nodes, so that one of them matters,
// always crashing and soon back, with elections all the time.
func storm(p *Profile, r *rng) {
	p.Name, p.Voters, p.Learners = "storm", 3, 0
	p.PreVote, p.CheckQuorum, p.Lease = false, false, false
	p.Loss, p.CrashPerReady, p.RestartUS = 0.3, 0.01, 25_000
	if r.chance(0.5) {
		p.ConfChange = 0
	}
	p.RateLo, p.RateHi = 1, 1
}

// exodus is the weather for what depends on the members: they change all the time, some nodes learn
// of it late, and the network falls apart along the line between the old ones and the new ones.
func exodus(p *Profile, r *rng) {
	p.Name, p.Voters, p.Learners, p.Production = "exodus", r.between(2, 4), 0, true
	p.PreVote, p.CheckQuorum, p.Lease = false, false, false
	p.Loss, p.Dup, p.CrashPerReady, p.SyncUS = 0.02, 0, 0, 0
	p.DelayUS, p.TailUS, p.RateLo, p.RateHi = 300, 5000, 1, 1
	p.SlowApply, p.SlowApplyUS, p.ApplyUS = 0.5, pick(r, 100_000, 400_000, 1_500_000), 0
	p.ConfChange, p.Transfer, p.FaultUS, p.ClientUS = pick(r, 0.1, 0.3), 0.02, 200_000, 4000
	p.MaxCommittedPerReady, p.Read = uint64(pick(r, 100, 1000)), 0.3
}

func (p Profile) String() string {
	return fmt.Sprintf(
		"%s voters=%d learners=%d production=%v prevote=%v checkquorum=%v loss=%.2f "+
			"dup=%.2f delay=%d/%dus crash=%.3f sync=%dus apply=%dus confchange=%.2f transfer=%.3f "+
			"slow-apply=%.1f/%dus compact=%.2f read=%.1f rates=%.2f-%.2f lease=%v wipe=%.1f",
		p.Name, p.Voters, p.Learners, p.Production,
		p.PreVote, p.CheckQuorum, p.Loss, p.Dup, p.DelayUS, p.TailUS, p.CrashPerReady, p.SyncUS,
		p.ApplyUS, p.ConfChange, p.Transfer, p.SlowApply, p.SlowApplyUS, p.Compact, p.Read,
		p.RateLo, p.RateHi, p.Lease, p.Wipe)
}
