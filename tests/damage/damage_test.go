package damage

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/engine/enginetest"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/message"
)

var rounds = flag.Int("rounds", 20, "damages for each class of file")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// leader waits until one of the stores leads with all its log applied.
func (g *group) leader(t *testing.T) (*disks, raftstore.PeerInfo) {
	t.Helper()
	var d *disks
	var info raftstore.PeerInfo
	require.Eventually(t, func() bool {
		g.mu.Lock()
		on := []*disks{g.on[1], g.on[2]}
		g.mu.Unlock()
		for _, d = range on {
			if d == nil {
				continue
			}
			var err error
			info, err = d.store.Peer(context.Background(), regionID)
			if err == nil && info.IsLeader && info.AppliedIndex == info.LastIndex {
				return true
			}
		}
		return false
	}, 20*time.Second, time.Millisecond)
	return d, info
}

func (g *group) put(t *testing.T, key, value string) {
	t.Helper()
	require.Eventually(t, func() bool {
		d, info := g.leader(t)
		w := &message.Write{
			Header: message.Header{
				RegionID: regionID, Peer: info.Peer, Epoch: info.Region.RegionEpoch,
			},
			MinKey: []byte(key), MaxKey: []byte(key), Callback: message.NewCallback(),
			Payload: message.AppendPut(nil, "default", []byte(key), []byte(value)),
		}
		d.store.Write(w)
		res, err := w.Callback.Wait(context.Background())
		return err == nil && res.Err == nil
	}, 20*time.Second, time.Millisecond)
}

// caughtUp compares store 3 with the leader once both have applied the same. "" is for not yet.
func (g *group) caughtUp(t *testing.T, d *disks) string {
	l, info := g.leader(t)
	select {
	case err := <-d.store.Failed():
		return fmt.Sprintf("failed with %v", err)
	default:
	}
	if q := d.store.Quarantined(); q[regionID] != "" {
		return "quarantined"
	}
	mine, err := d.store.HashRegion(regionID)
	if err != nil {
		return "read error"
	}
	want, err := l.store.HashRegion(regionID)
	require.NoError(t, err)
	switch {
	case mine.Applied < info.LastIndex || mine.Applied != want.Applied:
		return ""
	case mine != want:
		return fmt.Sprintf("WRONG: %+v, leader %+v", mine, want)
	}
	return "works"
}

// movedOn: the group has written since the copy of store 3 was taken, which says nothing about
// damage.
const movedOn = "moved on"

// try starts store 3 on what its directory holds, and tells what came of it. Capital words are
// forbidden.
func (g *group) try(t *testing.T, promised raftlog.State) string {
	d, err := g.open(3, false)
	if err != nil {
		return refusal(g, err)
	}
	now, ok := d.log.State(regionID)
	damaged := d.log.Damaged(regionID) != nil
	if err := g.start(3, d); err != nil {
		d.close()
		return refusal(g, err)
	}
	defer g.stop(3)
	if len(d.store.Quarantined()) == 0 &&
		(!ok || damaged || now.Last < promised.Last ||
			now.HardState.Term < promised.HardState.Term) {
		return fmt.Sprintf("FORGOT: %+v of %+v, and goes on", now, promised)
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(
		time.Millisecond) {
		if outcome := g.caughtUp(t, d); outcome != "" {
			return strings.SplitN(outcome, " with", 2)[0]
		}
		if _, info := g.leader(t); info.LastIndex != promised.Last {
			return movedOn
		}
	}
	info, err := d.store.Peer(context.Background(), regionID)
	_, leader := g.leader(t)
	return fmt.Sprintf("STUCK: %+v, %v; the leader has %+v", info, err, leader)
}

// refusal requires an error that says where the damage is.
func refusal(g *group, err error) string {
	if !strings.Contains(err.Error(), g.path(3)) {
		return fmt.Sprintf("NAMELESS: %v", err)
	}
	return "refused"
}

// harm damages one file of store 3 that fits the pattern, where it is not empty anyway.
func harm(t *testing.T, rng *rand.Rand, pattern, kind string) string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, names, pattern)
	name := names[rng.IntN(len(names))]
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	used := len(bytes.TrimRight(data, "\x00"))
	if used == 0 {
		return name
	}
	at := rng.IntN(used)
	switch kind {
	case "flip":
		data[at] ^= 1 << rng.IntN(8)
	case "zero":
		from := at &^ 4095
		clear(data[from:min(from+4096, len(data))])
	case "cut":
		data = data[:at]
	}
	require.NoError(t, os.WriteFile(name, data, 0o600))
	return name
}

// prepare writes to a group, and copies store 3 when it has everything and rests.
func prepare(t *testing.T) (g *group, base string, promised raftlog.State) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tinykv-damage-")
	require.NoError(t, err)
	t.Cleanup(func() {
		require.Eventually(t, func() bool {
			return os.RemoveAll(dir) == nil
		}, 20*time.Second, 10*time.Millisecond)
	})
	g = newGroup(dir)
	base = filepath.Join(g.dir, "base")
	for id := uint64(1); id <= 3; id++ {
		d, err := g.open(id, true)
		require.NoError(t, err)
		require.NoError(t, g.start(id, d))
	}
	t.Cleanup(g.close)
	for half := range 2 { // the second half lies in the engine's log, the first in its tables
		for i := range 60 {
			g.put(t, fmt.Sprintf("%d-%03d", half, i), strings.Repeat(fmt.Sprint(i%10), 1000))
		}
		require.Eventually(t, func() bool {
			return g.caughtUp(t, g.on[3]) == "works"
		}, 20*time.Second, time.Millisecond)
		g.stop(3)
		d, err := g.open(3, false)
		require.NoError(t, err)
		require.NoError(t, g.start(3, d))
	}
	require.Eventually(t, func() bool {
		return g.caughtUp(t, g.on[3]) == "works"
	}, 20*time.Second, time.Millisecond)
	g.stop(3)
	d, err := g.open(3, false)
	require.NoError(t, err)
	promised, _ = d.log.State(regionID)
	d.close()
	copyTree(t, g.path(3), base)
	return g, base, promised
}

// TestDamagedStore harms each class of file of a stopped store, again and again, and starts it
// beside two whole ones: it works with the right data, refuses to start and says where, gives the
// replica up or gives a read error. It never serves other data, and never votes with a log that is
// shorter than what it promised.
func TestDamagedStore(t *testing.T) {
	g, base, promised := prepare(t)
	attempt := func(damage func()) string {
		for range 10 {
			g.tries++
			copyTree(t, base, g.path(3))
			damage()
			outcome := g.try(t, promised)
			if outcome != movedOn {
				return outcome
			}
			// A slow machine: the others elected a leader. The copy is older than what store 3
			// promised since.
			g.close()
			g, base, promised = prepare(t)
		}
		t.Fatal("the group moved on in ten tries: this damage makes it, or the machine is too slow")
		return ""
	}
	require.Equal(t, "works", attempt(func() {}), "undamaged")
	kinds := []string{"flip", "flip", "zero", "cut"}
	for _, class := range []string{
		"kv/*.sst", "kv/*.log", "kv/MANIFEST*", "kv/*", "raft/*.rlog", "raft/MARK", "raft/*",
	} {
		counts := map[string]int{}
		for i := range *rounds {
			kind, name := kinds[i%len(kinds)], ""
			outcome := attempt(func() {
				name = harm(t, rand.New(rand.NewPCG(uint64(i), 9)), filepath.Join(g.path(3), class),
					kind)
			})
			if word, text, forbidden := strings.Cut(outcome, ":"); forbidden {
				t.Fatalf("%s of %s, round %d: %s:%s", kind, filepath.Base(name), i, word, text)
			}
			counts[outcome]++
		}
		t.Logf("%s: %d damages: %v", class, *rounds, counts)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	for _, sub := range []string{"kv", "raft", "snap"} {
		require.NoError(t, enginetest.CopyDir(filepath.Join(from, sub), filepath.Join(to, sub)))
	}
}
