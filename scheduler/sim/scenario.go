package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Scenario interprets the commands of scenario files, one line each:
//
//	cluster stores=6 regions=3000 size=uniform(48,144) [replicas=3] [seed=1] [capacity=1024]
//	        [zones=3] [loss=0.1] [delay=30s] [duplicates=0.1] [heartbeat=60s] [moves-in-flight=8]
//	        [merge=1] [merge-limit=8] [interval=1h] [patrol=1s]   stores merge regions
//	        [audit=each]         check all invariants after every event instead of once a minute
//	add-stores n=1 [capacity=1024] [zone=1]
//	run for=10m                  let time pass
//	measure                      start counting moves against the lower bound
//	kill|restart|cut|heal|offline|up|evict store=1
//	disk store=1 sync=200ms      what syncs of the raft log take at the store from now on; it reports at once and 2 s later
//	stall|unstall store=4        raft snapshots to the store do not arrive
//	weight store=2 leaders=0.25  the store's share of leaders
//	label store=4 zone=2         the store gets a label; cluster labels=zone has the service look at it
//	damage|mute store=4 n=10     so many replicas of the store take no part; it says so, or they are just silent
//	flap store=1 down=25s up=35s times=10
//	failover                     a new placement leader that knows nothing
//	load rate=20 [zipf=1.2] [split=144] [drop=0.1]
//	                             clients write so many MiB/s; regions beyond a size are split; a share of the writes
//	                             empties the region instead
//	hold from=1 to=9 for=24h     the regions from one id to another one are not to be merged
//	giant region=5 size=10240    make one region big
//	expect NAME<=VALUE ...       together (regions in fewer zones than they could be), better (moves for that),
//	                             ratio, max-min, leaders, ping-pong, twice, quiet (>=), missing, extra,
//	                             running, settled, transfers, moves, splits, audits,
//	                             regions, merges, refused, orders, split-again, biggest-joined, held, frozen
//	report                       print the result (for people; not stable)
type Scenario struct {
	Sim *Sim
	// Log gets the results that expect looked at.
	Log func(format string, args ...any)
}

// Do carries out one command and returns its output: "ok", or what an expectation found instead.
func (sc *Scenario) Do(line string) (string, error) {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return "", nil
	}
	cmd, args := fields[0], argsOf(fields[1:])
	if cmd == "cluster" {
		return "ok", sc.cluster(args)
	}
	if sc.Sim == nil {
		return "", fmt.Errorf("%s before cluster", cmd)
	}
	s := sc.Sim
	switch cmd {
	case "add-stores":
		for range args.num("n", 1) {
			s.AddStore(uint64(args.num("capacity", 1<<20)), zone(args.num("zone", 0))...)
		}
	case "run":
		s.Run(args.dur("for", time.Minute))
	case "measure":
		s.BeginMeasure()
	case "kill", "restart", "cut", "heal":
		change := map[string]func(uint64){
			"kill": s.Kill, "restart": s.Restart, "cut": s.Cut, "heal": s.Heal,
		}
		change[cmd](uint64(args.num("store", 0)))
	case "label":
		s.Label(uint64(args.num("store", 0)), zone(args.num("zone", 0))...)
	case "damage", "mute":
		s.Sicken(uint64(args.num("store", 0)), args.num("n", 1), cmd == "damage")
	case "disk":
		s.Disk(uint64(args.num("store", 0)), args.dur("sync", 2*time.Millisecond))
	case "stall", "unstall":
		s.stores[uint64(args.num("store", 0))].stalled = cmd == "stall"
	case "offline":
		s.cluster.Core().UpdateStore(uint64(args.num("store", 0)),
			core.WithState(metapb.StoreState_Offline))
	case "up":
		s.cluster.Core().UpdateStore(uint64(args.num("store", 0)), core.WithState(metapb.StoreState_Up))
	case "weight":
		s.cluster.Core().UpdateStore(uint64(args.num("store", 0)), core.WithLeaderWeight(args.float("leaders", 0)))
	case "evict":
		s.cluster.Core().UpdateStore(uint64(args.num("store", 0)), core.WithEvictLeaders(true))
	case "flap":
		for range args.num("times", 1) {
			s.Kill(uint64(args.num("store", 0)))
			s.Run(args.dur("down", 25*time.Second))
			s.Restart(uint64(args.num("store", 0)))
			s.Run(args.dur("up", 35*time.Second))
		}
	case "failover":
		s.Failover()
	case "giant":
		r := s.byID[uint64(args.num("region", 1))]
		r.size = int64(args.num("size", 10240))
		s.changed(r)
	case "load":
		s.SetLoad(args.load())
	case "hold":
		return "ok", s.Hold(uint64(args.num("from", 1)), uint64(args.num("to", 1)), args.dur("for", 24*time.Hour))
	case "report":
		sc.report()
	case "expect":
		return sc.expect(fields[1:])
	default:
		return "", fmt.Errorf("unknown command %q", cmd)
	}
	return "ok", nil
}

// report logs the result of the run, and what the policies have decided last.
func (sc *Scenario) report() {
	sc.logf("%v", sc.Sim.Result())
	sc.logf("operators: %v", sc.Sim.cluster.Controller().Ended())
	for _, d := range sc.Sim.cluster.Planner().Decisions() {
		sc.logf("%s: %s %v %v", d.Scheduler, d.Result, d.Refusals, d.Lines)
	}
}

func (a args) load() Load {
	return Load{
		RateMiB: a.float("rate", 0), Zipf: a.float("zipf", 0), SplitMiB: int64(a.num("split", 144)),
		Drop: a.float("drop", 0),
	}
}

func (sc *Scenario) logf(format string, args ...any) {
	if sc.Log != nil {
		sc.Log(format, args...)
	}
}

func (sc *Scenario) cluster(a args) error {
	opts := DefaultOptions()
	opts.Seed = uint64(a.num("seed", 1))
	opts.Replicas = a.num("replicas", 3)
	opts.Loss = a.float("loss", 0)
	opts.MaxDelay = a.dur("delay", 0)
	opts.Duplicates = a.float("duplicates", 0)
	opts.AuditEach = a["audit"] == "each"
	opts.HeartbeatTime = a.dur("heartbeat", opts.HeartbeatTime)
	opts.Schedule.StoreMovesInFlight = a.num("moves-in-flight", opts.Schedule.StoreMovesInFlight)
	opts.Schedule.StoreBytesInFlightMiB = 1 << 30
	opts.Merge = a["merge"] != ""
	opts.Schedule.MergeScheduleLimit = a.num("merge-limit", opts.Schedule.MergeScheduleLimit)
	opts.Schedule.SplitMergeInterval = config.Duration(a.dur("interval",
		opts.Schedule.SplitMergeInterval.D()))
	opts.Schedule.PatrolRegionInterval = config.Duration(a.dur("patrol",
		opts.Schedule.PatrolRegionInterval.D()))
	opts.Schedule.MaxStoreDownTime = config.Duration(a.dur("max-down", 30*time.Minute))
	zones := a.num("zones", 0)
	if zones > 0 || a["labels"] != "" {
		opts.Labels = []string{"zone"}
	}
	s := New(opts)
	for i := range a.num("stores", 3) {
		z := 0
		if zones > 0 {
			z = i%zones + 1
		}
		s.AddStore(uint64(a.num("capacity", 1<<20)), zone(z)...)
	}
	size, err := sizes(a["size"])
	if err != nil {
		return err
	}
	s.AddRegions(a.num("regions", 0), size)
	sc.Sim = s
	return nil
}

func zone(n int) []*metapb.StoreLabel {
	if n == 0 {
		return nil
	}
	return []*metapb.StoreLabel{{Key: "zone", Value: strconv.Itoa(n)}}
}

// sizes parses uniform(a,b), lognormal(median,sigma), sparse(share,size) or a number, in MiB.
func sizes(spec string) (func(*rand.Rand) int64, error) {
	if spec == "" {
		spec = "96"
	}
	name, rest, ok := strings.Cut(spec, "(")
	if !ok {
		n, err := strconv.ParseInt(spec, 10, 64)
		return func(*rand.Rand) int64 { return n }, err
	}
	a, b, _ := strings.Cut(strings.TrimSuffix(rest, ")"), ",")
	x, err1 := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("size: %q", spec)
	}
	switch name {
	case "uniform":
		return func(r *rand.Rand) int64 { return int64(x + r.Float64()*(y-x)) }, nil
	case "lognormal":
		return func(r *rand.Rand) int64 { return max(1, int64(x*math.Exp(y*r.NormFloat64()))) }, nil
	case "sparse":
		return func(r *rand.Rand) int64 {
			if r.Float64() < x {
				return int64(y)
			}
			return 1
		}, nil
	}
	return nil, fmt.Errorf("size: %q", spec)
}

func (sc *Scenario) expect(conds []string) (string, error) {
	res := sc.Sim.Result()
	sc.logf("%v", res)
	values := map[string]float64{
		"ratio": res.Ratio, "max-min": res.MaxMin, "leaders": res.LeaderMax,
		"ping-pong": float64(res.PingPong),
		"twice":     float64(res.Twice), "quiet": res.Quiet.Seconds(),
		"missing": float64(res.Missing),
		"extra":   float64(res.Extra), "running": float64(res.Running),
		"settled":   res.Settled.Seconds(),
		"transfers": float64(sc.Sim.Stats.Transfers - sc.Sim.Stats.transfersAt),
		"moves":     float64(res.Moves),
		"together":  float64(sc.Sim.Together()), "better": float64(sc.Sim.BetterLocations()),
		"splits": float64(sc.Sim.Stats.Splits), "audits": float64(sc.Sim.Stats.Audits),
		"regions": float64(len(sc.Sim.regions)), "merges": float64(sc.Sim.Stats.Merges),
		"orders":         float64(sc.Sim.Stats.MergeOrders),
		"refused":        float64(sc.Sim.Stats.MergeRefusals),
		"split-again":    float64(sc.Sim.Stats.SplitAgain),
		"biggest-joined": float64(sc.Sim.Stats.BiggestJoined),
		"held":           float64(held(sc.Sim)), "frozen": float64(frozen(sc.Sim)),
	}
	for id, st := range sc.Sim.stores {
		info := sc.Sim.cluster.Core().Store(id)
		values[fmt.Sprintf("regions.%d", id)] = float64(len(st.regions))
		values[fmt.Sprintf("leaders.%d", id)] = float64(info.LeaderCount())
		values[fmt.Sprintf("state.%d", id)] = float64(info.State())
	}
	var bad []string
	for _, c := range conds {
		for _, op := range []string{"<=", ">=", "="} {
			name, text, ok := strings.Cut(c, op)
			if !ok {
				continue
			}
			want, err := strconv.ParseFloat(text, 64)
			if d, derr := time.ParseDuration(text); err != nil && derr == nil {
				want, err = d.Seconds(), nil
			}
			got, known := values[name]
			if err != nil || !known {
				return "", fmt.Errorf("cannot check %q", c)
			}
			if op == "<=" && got > want || op == ">=" && got < want || op == "=" && got != want {
				bad = append(bad, fmt.Sprintf("%s is %.3f", c, got))
			}
			break
		}
	}
	bad = append(bad, sc.Sim.Faults...)
	if len(bad) == 0 {
		return "ok", nil
	}
	return strings.Join(bad, "\n"), nil
}

type args map[string]string

func argsOf(fields []string) args {
	a := args{}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		a[k] = v
	}
	return a
}

func (a args) num(key string, def int) int {
	if v, err := strconv.Atoi(a[key]); err == nil {
		return v
	}
	return def
}

func (a args) float(key string, def float64) float64 {
	if v, err := strconv.ParseFloat(a[key], 64); err == nil {
		return v
	}
	return def
}

func (a args) dur(key string, def time.Duration) time.Duration {
	if v, err := time.ParseDuration(a[key]); err == nil {
		return v
	}
	return def
}
