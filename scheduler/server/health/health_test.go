package health_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/health"
)

// world is a cluster that the lines of a transcript change.
type world struct {
	t     *testing.T
	view  health.View
	lines []string
	seen  map[health.Code]bool
}

// newWorld is prepared, has so many stores that report, and one member.
func newWorld(t *testing.T, stores int, seen map[health.Code]bool) *world {
	schedule := config.DefaultSchedule()
	w := &world{t: t, seen: seen, view: health.View{
		Now: time.Unix(1_700_000_000, 0), Leading: time.Hour, Bootstrapped: true, Prepared: true,
		Schedule: &schedule, Replication: &config.Replication{MaxReplicas: 3},
		Members: []health.Member{{Name: "m1"}},
	}}
	for i := range stores {
		w.do(fmt.Sprintf("store %d", i+1))
	}
	return w
}

func (w *world) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	require.NoError(w.t, err)
	return d
}

// number reads the rest of a word after its prefix.
func number(word, prefix string) (n uint64, ok bool) {
	_, err := fmt.Sscanf(word, prefix+"=%d", &n)
	return n, err == nil
}

// do carries out one line.
func (w *world) do(line string) {
	words := strings.Fields(line)
	cmd, rest := words[0], words[1:]
	switch cmd {
	case "store":
		w.store(rest)
	case "region":
		w.view.Regions = append(w.view.Regions, w.region(rest))
	case "member":
		m := health.Member{Name: rest[0]}
		for _, f := range rest[1:] {
			name, value, _ := strings.Cut(f, "=")
			switch name {
			case "dead":
				m.Silent, m.Why = w.view.Now.Add(-w.duration(value)), "connection refused"
			case "version":
				m.Version = value
			case "skew":
				m.Skew = core.Skew{Low: w.duration(value), High: w.duration(value), Known: true}
			}
		}
		w.view.Members = append(w.view.Members, m)
	case "alarm":
		w.view.Alarms = append(w.view.Alarms, health.EtcdAlarm{Member: rest[0], Kind: rest[1]})
	case "replicas":
		w.view.Replication = &config.Replication{MaxReplicas: len(rest[0])}
	case "labels":
		w.view.Replication = &config.Replication{MaxReplicas: 3, LocationLabels: rest}
	case "fresh":
		w.view.Prepared, w.view.Leading, w.view.Before = false, w.duration(rest[0]), nil
	case "empty":
		w.view.Bootstrapped = false
	case "wait":
		w.view.Now = w.view.Now.Add(w.duration(rest[0]))
		for i, s := range w.view.Stores {
			if s.DownTime(w.view.Now) <= w.duration(rest[0]) {
				w.view.Stores[i] = s.Clone(core.WithLastHeartbeat(w.view.Now))
			}
		}
	case "assess":
		w.assess()
	default:
		w.t.Fatalf("unknown line %q", line)
	}
}

func (w *world) assess() {
	v := w.view
	r := health.Assess(&v)
	w.view.Before = r
	w.lines = append(w.lines, fmt.Sprintf("%s: %s", r.Health, r.Text()))
	for _, c := range r.Conditions {
		w.seen[c.Code] = true
		w.lines = append(w.lines, fmt.Sprintf("%s [for %.0fs]", c, c.Seconds))
	}
}

// store reads "3 silent=30s tombstone offline free=5 full slow version=2 zone=a damaged=33
// diverged=1 starving=12 reads=2 skew=3s unreached": a store with 100 GiB, of which 90 are free. It
// replaces one of the same id.
func (w *world) store(words []string) {
	m := &metapb.Store{Address: "host" + words[0] + ":1", Version: "1"}
	_, err := fmt.Sscan(words[0], &m.Id)
	require.NoError(w.t, err)
	stats := &schedulerpb.StoreStats{
		StoreId: m.Id, RegionCount: 1, Capacity: 100 << 30, Available: 90 << 30,
	}
	silent, skew, unproven := time.Duration(0), time.Duration(0), ""
	for _, f := range words[1:] {
		name, value, _ := strings.Cut(f, "=")
		n, _ := number(f, name)
		switch name {
		case "silent":
			silent = w.duration(value)
		case "tombstone":
			m.State = metapb.StoreState_Tombstone
		case "offline":
			m.State = metapb.StoreState_Offline
		case "free":
			stats.Available = n << 30
		case "full":
			stats.Available, stats.IsDiskFull = 0, true
		case "slow":
			stats.IsSlow = true
		case "version":
			m.Version = value
		case "damaged":
			stats.DamagedPeerIds = append(stats.DamagedPeerIds, n)
			stats.QuarantinedRegionIds = append(stats.QuarantinedRegionIds, n/10)
		case "diverged":
			stats.DivergedRegionIds = append(stats.DivergedRegionIds, n)
		case "starving":
			stats.StarvingPeerIds = append(stats.StarvingPeerIds, n)
		case "reads":
			stats.ReadErrors = n
		case "skew":
			skew = w.duration(value)
		case "unreached":
			unproven = "nobody answers"
		default:
			m.Labels = append(m.Labels, &metapb.StoreLabel{Key: name, Value: value})
		}
	}
	stats.Clock, stats.RoundTrip = w.view.Now.Add(skew).UnixNano(), uint64(time.Millisecond)
	beat := core.WithStats(stats, w.view.Now)
	s := core.NewStore(m, w.view.Now).Clone(beat, beat, core.WithUnproven(unproven),
		core.WithCounts(core.StoreCounts{RegionCount: 1}),
		core.WithLastHeartbeat(w.view.Now.Add(-silent)))
	for i, old := range w.view.Stores {
		if old.ID() == m.Id {
			w.view.Stores[i] = s
			return
		}
	}
	w.view.Stores = append(w.view.Stores, s)
}

// region reads "7 1* 2~ 3L 4! copy file": region 7 with peers 71, 72, ... on stores 1, 2, ...; the
// star leads, the tilde is pending, L is a learner, ! does not answer its leader; copy: no leader
// has reported; file: it was read from the file.
func (w *world) region(words []string) *core.RegionInfo {
	m := &metapb.Region{RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1}}
	_, err := fmt.Sscan(words[0], &m.Id)
	require.NoError(w.t, err)
	var leader uint64
	var pending []uint64
	var down []core.DownPeer
	source := core.SourceHeartbeat
	for _, f := range words[1:] {
		switch f {
		case "copy":
			source = core.SourceSync
			continue
		case "file":
			source = core.SourceFile
			continue
		}
		p := &metapb.Peer{}
		_, err := fmt.Sscan(strings.TrimRight(f, "*~L!"), &p.StoreId)
		require.NoError(w.t, err, f)
		p.Id = 10*m.Id + p.StoreId
		if strings.Contains(f, "*") {
			leader = p.StoreId
		}
		if strings.Contains(f, "~") {
			pending = append(pending, p.Id)
		}
		if strings.Contains(f, "L") {
			p.Role = metapb.PeerRole_Learner
		}
		if strings.Contains(f, "!") {
			down = append(down, core.DownPeer{PeerID: p.Id, Seconds: 400})
		}
		m.Peers = append(m.Peers, p)
	}
	return core.NewRegion(m, nil, core.WithLeaderStore(leader), core.WithPending(pending...),
		core.WithDown(down...), core.WithSource(source))
}

// TestTranscripts has a case for each condition, and one for each state.
func TestTranscripts(t *testing.T) {
	seen := map[health.Code]bool{}
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			stores := 3
			d.MaybeScanArgs(t, "stores", &stores)
			w := newWorld(t, stores, seen)
			for line := range strings.SplitSeq(d.Input, "\n") {
				w.do(line)
			}
			return strings.Join(w.lines, "\n")
		})
	})
	for _, k := range health.Table {
		require.True(t, seen[k.Code], "no transcript shows %s", k.Code)
	}
}

// TestTableIsDocumented: docs/operations.md has a row for each condition, with its severity.
func TestTableIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/operations.md")
	require.NoError(t, err)
	for _, k := range health.Table {
		require.Contains(t, string(text), fmt.Sprintf("| `%s` | %s |", k.Code, k.Severity))
	}
}
