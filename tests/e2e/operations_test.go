package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/engines"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/pkg/freeport"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// manual is docs/operations.md as a list of commands, each of which a test runs as it is written.
//
// Invariant: a command of the page that nobody has asked for by its exact text is in commands and
// not in performed.
type manual struct {
	text      string
	commands  []string
	performed map[string]bool
}

var (
	manualCommand = regexp.MustCompile(
		"(?m)^(?: {4})?((?:tinyctl|tinykv-server|tinyscheduler) .*)$|`((?:tinyctl|tinykv-server|tinyscheduler) [^`]+)`")
	manualPath = regexp.MustCompile("`(?:GET )?(/[a-z][a-z0-9/]*(?:\\?region=N)?)`")
	// example is what a reader of the page has to replace.
	example = regexp.MustCompile(`^[A-Z]{2,}$|\bh[1-9]:|\.pem$|^0\.0\.0\.0:`)
)

func readManual(t *testing.T) *manual {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	m := &manual{text: string(text), performed: map[string]bool{}}
	for _, found := range manualCommand.FindAllStringSubmatch(m.text, -1) {
		if cmd := found[1] + found[2]; !slices.Contains(m.commands, cmd) {
			m.commands = append(m.commands, cmd)
		}
	}
	require.Greater(t, len(m.commands), 20)
	return m
}

// args returns the words of a command of the page, with each example replaced. It fails if the page
// has no such command, or if an example is left over.
func (m *manual) args(
	t *testing.T, command string, replace map[string]string,
) (bin string, args []string) {
	t.Helper()
	require.Contains(t, m.commands, command, "docs/operations.md has no such command")
	m.performed[command] = true
	words := strings.Fields(command)
	for i, w := range words {
		if with, ok := replace[w]; ok {
			words[i] = with
			continue
		}
		require.False(t, example.MatchString(w), "%s: nothing replaces %s", command, w)
	}
	return filepath.Join(binDir, words[0]), words[1:]
}

// try runs a command of the page and returns its exit code and what it printed. more are arguments
// that the page leaves out.
func (m *manual) try(
	t *testing.T, command string, replace map[string]string, more ...string,
) (code int, printed string) {
	t.Helper()
	bin, args := m.args(t, command, replace)
	out, err := exec.CommandContext(t.Context(), bin, append(args, more...)...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(out)
	}
	require.NoError(t, err)
	return 0, string(out)
}

// site is a cluster that the commands of the page are run against.
type site struct {
	*testing.T
	m  *manual
	c  *localcluster.Cluster
	k  console
	in map[string]string // for all commands
}

func (m *manual) at(t *testing.T, c *localcluster.Cluster) *site {
	return &site{T: t, m: m, c: c, k: console{t, c}, in: map[string]string{}}
}

func (s *site) endpoints() string { return strings.Join(s.c.Endpoints(), ",") }

// run runs a command of the page and sees that it ends with the code and prints each of want.
func (s *site) run(code int, command string, want ...string) string {
	s.Helper()
	got, out := s.m.try(s.T, command, s.in, "-s", s.endpoints())
	require.Equal(s, code, got, "%s: %s", command, out)
	for _, w := range want {
		require.Contains(s, out, w, command)
	}
	return out
}

// eventually runs a command of the page until it succeeds and prints each of want.
func (s *site) eventually(command string, want ...string) {
	s.Helper()
	eventually(s.T, 90*time.Second, func() error {
		code, out := s.m.try(s.T, command, s.in, "-s", s.endpoints())
		for _, w := range want {
			if !strings.Contains(out, w) {
				return fmt.Errorf("%s: %q is not in: %s", command, w, out)
			}
		}
		if code != 0 {
			return fmt.Errorf("%s: exit code %d: %s", command, code, out)
		}
		return nil
	})
}

const (
	startStore       = "tinykv-server --insecure --data-dir DIR --addr 0.0.0.0:20160 --advertise-addr h5:20160 --scheduler h1:2379,h2:2379,h3:2379"
	startSecureStore = "tinykv-server --data-dir DIR --addr h5:20160 --scheduler https://h1:2379,https://h2:2379 --ca ca.pem --cert store.pem --key store.key"
)

// store makes a process of a command of the page that starts a store, and of its own status port
// and fast reports.
func (s *site) store(command, name string, replace map[string]string) *localcluster.Process {
	s.Helper()
	ports, err := freeport.Find(2)
	require.NoError(s, err)
	dir := s.TempDir()
	conf := filepath.Join(dir, "fast.toml")
	require.NoError(s, os.WriteFile(conf, []byte(fastStores), 0o600))
	addr, status := fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	all := map[string]string{
		"DIR": filepath.Join(dir, "data"), "0.0.0.0:20160": fmt.Sprintf("0.0.0.0:%d", ports[0]),
		"h5:20160":                addr,
		"h1:2379,h2:2379,h3:2379": s.endpoints(),
	}
	for from, to := range replace {
		all[from] = to
	}
	bin, args := s.m.args(s.T, command, all)
	p := localcluster.Command(dir, name, bin, addr,
		append(args, "--config", conf, "--status-addr", status)...)
	p.Status, p.DataDir = status, all["DIR"]
	s.Cleanup(func() { p.Stop(15 * time.Second) })
	return p
}

func (s *site) start(ps ...*localcluster.Process) {
	s.Helper()
	for _, p := range ps {
		require.NoError(s, p.Start())
		require.NoError(s, p.WaitReady(s.Context()), p.LastWords())
	}
}

// id is the store's, once it has joined.
func (s *site) id(p *localcluster.Process) string {
	s.Helper()
	id := ""
	eventually(s.T, 30*time.Second, func() error {
		var stores []struct {
			ID      uint64 `json:"id,string"`
			Address string `json:"address"`
		}
		s.k.json("store list", &stores)
		for _, st := range stores {
			if st.Address == p.Addr {
				id = fmt.Sprint(st.ID)
				return nil
			}
		}
		return fmt.Errorf("no store at %s: %v", p.Addr, stores)
	})
	return id
}

// region is the first region, once it has a leader.
func (s *site) region() (r regionView) {
	s.Helper()
	eventually(s.T, 30*time.Second, func() error {
		var all []regionView
		s.k.json("region list", &all)
		if len(all) > 0 {
			s.k.json(fmt.Sprintf("region show %d", all[0].ID), &r)
		}
		if r.Leader == 0 {
			return fmt.Errorf("no leader: %v", all)
		}
		return nil
	})
	s.in["REGION"] = fmt.Sprint(r.ID)
	return r
}

// TestOperationsPage runs every command of docs/operations.md as it is written, against clusters in
// the conditions that the page speaks of.
func TestOperationsPage(t *testing.T) {
	m := readManual(t)
	ran := 0
	for _, part := range []struct {
		name string
		run  func(t *testing.T, m *manual)
	}{
		{"samples and modes", manualStarts}, {"stores that are lost and added", manualStores},
		{"members", manualMembers},
		{"locations", manualLocations}, {"diverged replicas", manualDiverged}, {"TLS", manualTLS},
	} {
		t.Run(part.name, func(t *testing.T) {
			ran++
			part.run(t, m)
		})
	}
	if ran == 6 && !t.Failed() { // -run may have chosen some
		for _, cmd := range m.commands {
			require.True(t, m.performed[cmd], "docs/operations.md: nobody runs %s", cmd)
		}
	}
}

// manualStarts: the sample configurations, a cluster of transactions, and the paths of the status
// port.
func manualStarts(t *testing.T, m *manual) {
	for _, cmd := range []string{
		"tinykv-server --print-sample-config", "tinyscheduler --print-sample-config",
	} {
		code, out := m.try(t, cmd, nil)
		require.Zero(t, code, out)
		require.Contains(t, out, "[")
	}
	ports, err := freeport.Find(2)
	require.NoError(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	bin, args := m.args(t, "tinyscheduler --mode txn", nil)
	dir := t.TempDir()
	sched := localcluster.Command(dir, "txn", bin, addr,
		append(args, "--data-dir", filepath.Join(dir, "data"), "--client-urls", "http://"+addr,
			"--peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[1]))...)
	t.Cleanup(func() { sched.Stop(15 * time.Second) })
	s := m.at(t, &localcluster.Cluster{Schedulers: []*localcluster.Process{sched}})
	s.start(sched)
	kv := s.store(startStore, "store", nil)
	s.start(kv)
	s.id(kv)
	_, out := m.try(t, "tinyctl status", s.in, "-s", s.endpoints()) // one store is too few
	require.Contains(t, out, ", mode txn:")

	_, section, _ := strings.Cut(m.text, "\n## Status port\n")
	section, _, _ = strings.Cut(section, "\n## ")
	paths := manualPath.FindAllStringSubmatch(section, -1)
	require.Greater(t, len(paths), 5)
	for _, p := range paths {
		path := strings.Replace(p[1], "=N", fmt.Sprint("=", s.region().ID), 1)
		eventually(t, 20*time.Second, func() error { return serves("http://" + kv.Status + path) })
	}
	s.in["URL"] = "http://" + kv.Status + "/health"
	s.run(0, "tinyctl check serving URL")
	s.in["URL"] = "http://" + kv.Status + "/nothing"
	s.run(1, "tinyctl check serving URL", "answers 404")
	for _, p := range manualPath.FindAllStringSubmatch(m.text, -1) {
		if strings.HasPrefix(p[1], "/api/") || p[1] == "/ui/" {
			require.NoError(t, serves("http://"+addr+p[1]))
		}
	}
}

func serves(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK ||
		len(bytes.TrimSpace(body)) == 0 {
		return fmt.Errorf("%s: %s, %d bytes, %v", url, resp.Status, len(body), err)
	}
	return nil
}

// manualStores goes through the rows about stores: too few, one that nobody reaches, one and all
// that are silent, one that is lost for good, a damaged one, one that leaves.
func manualStores(t *testing.T, m *manual) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 2, Schedulers: 1, StoreConfig: fastStores,
		SchedulerConfig: "[schedule]\nstore-disconnect = \"3s\"\nmax-store-down-time = \"8s\"\n",
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	require.NoError(t, c.Start(t.Context()))
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	s := m.at(t, c)

	region := fmt.Sprint(s.region().ID)
	s.k.until(1, "few-replicas: regions: 1 of 1")
	s.eventually("tinyctl region check miss-peer", region)
	s.run(0, "tinyctl operator list", "STATUS")
	s.in["KEY"], s.in["VALUE"] = "k", "v"
	for _, stage := range []string{"queue", "wait", "append-log", "commit", "apply-wait", "apply"} {
		s.run(0, "tinyctl trace put KEY VALUE", "RawPut", stage)
	}
	code, out := m.try(t, "tinyctl top", s.in, "-s", s.endpoints(), "--once")
	require.Zero(t, code, out)
	require.Contains(t, out, "WRITES/S")

	s.in["STORE"] = s.id(c.Stores[0])
	s.run(0, "tinyctl store config get STORE", "raftstore.region-max-size", "needs a restart")
	s.run(0, "tinyctl store config get --all region-max-size", "144MiB")
	s.run(0, "tinyctl store config set STORE slow-log-threshold 200ms", "200ms")
	s.run(0, "tinyctl store config set --all raftstore.compare-max-bytes-per-sec 4MiB", "4MiB")
	s.run(0, "tinyctl store loglevel debug STORE", "debug")
	s.run(0, "tinyctl store loglevel info", "info")
	s.run(0, "tinyctl config get", "schedule")
	s.in["LEVEL"] = "info"
	s.run(0, "tinyctl member loglevel LEVEL", "log level info")

	closed, err := freeport.Find(1)
	require.NoError(t, err)
	nowhere := fmt.Sprintf("127.0.0.1:%d", closed[0])
	third := s.store(startStore, "third", map[string]string{"h5:20160": nowhere})
	s.start(third)
	s.k.until(1, "store-unreached: store", nowhere)
	s.in["STORE"] = s.id(&localcluster.Process{Addr: nowhere})
	s.run(0, "tinyctl store show STORE", nowhere)
	_, err = third.End(syscall.SIGTERM, 20*time.Second)
	require.NoError(t, err)
	third = s.store(startStore, "third", map[string]string{"DIR": third.DataDir})
	s.start(third)
	s.k.until(0, "All 1 regions have 3 replicas and a leader.", "3 of 3 stores up")

	stores := []*localcluster.Process{c.Stores[0], c.Stores[1], third}
	for _, p := range stores {
		p.Kill()
	}
	s.k.until(1, "critical no-quorum: regions: 1 of 1", "critical leader-lost: regions: 1 of 1",
		"store-silent: store")
	s.run(0, "tinyctl region list", region)
	s.run(0, "tinyctl store list", third.Addr)
	s.start(stores...)
	s.k.until(0)

	store := s.id(third)
	damaged := s.region().voterOn(store)
	require.NotZero(t, damaged)
	_, err = third.End(syscall.SIGTERM, 20*time.Second) // its raft log is lost
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Join(third.DataDir, "raft")))
	s.start(third)
	// `status` says "quarantined" until the replica is replaced, which may be between two looks.
	eventually(t, 60*time.Second, func() error {
		code, out := s.k.try("events")
		r := s.region()
		if v := r.voterOn(store); code != 0 || !strings.Contains(out, "reports 1 damaged replicas") ||
			v == 0 || v == damaged || len(r.Peers) != 3 {
			return fmt.Errorf("the replica %d is not replaced: %v, %s", damaged, r, out)
		}
		return nil
	})
	s.k.until(0)
	s.run(0, "tinyctl doctor")

	s.leaves(third)
}

// leaves has one store of four lost for good, and another one emptied.
func (s *site) leaves(third *localcluster.Process) {
	fourth := s.store(startStore, "fourth", nil)
	s.start(fourth)
	s.id(fourth)
	lost := s.c.Stores[0]
	s.in["STORE"] = s.id(lost)
	lost.Kill()
	s.k.until(1, "store-silent: store "+s.in["STORE"])
	s.eventually("tinyctl store bury STORE") // once its replicas were made up elsewhere
	s.k.until(0, "3 of 3 stores up")

	fifth := s.store(startStore, "fifth", nil)
	s.start(fifth)
	s.id(fifth)
	s.k.until(0, "4 of 4 stores up")
	s.k.run(0, "config set schedule.replica-schedule-limit 0") // it is to be seen leaving
	s.in["STORE"] = s.id(third)
	bin, args := s.m.args(s.T, "tinyctl store offline STORE --wait", s.in)
	waits := exec.CommandContext(s.Context(), bin,
		append(args, "-s", s.endpoints(), "--timeout", "2m")...)
	out := new(output)
	waits.Stdout, waits.Stderr = out, out
	require.NoError(s, waits.Start())
	s.k.until(0, "store-leaving: store "+s.in["STORE"])
	s.run(0, "tinyctl store show STORE", "offline")
	s.run(0, "tinyctl store up STORE")
	var exit *exec.ExitError
	if err := waits.Wait(); err != nil {
		require.ErrorAs(s, err, &exit, out)
	}
	s.k.until(0, "4 of 4 stores up")
	require.NotContains(s, s.k.run(0, "status"), "store-leaving")
	s.k.run(0, "config set schedule.replica-schedule-limit 4")
	s.run(0, "tinyctl store offline STORE --wait")

	s.run(0, "tinyctl keyspace split --prefix user: --into 64 --like uuid", "64")
	s.eventually("tinyctl check consistency", "have equal replicas")
	s.region()
	s.eventually("tinyctl check consistency --region REGION", "1 of 1 regions have equal replicas")
	s.run(0, "tinyctl explain merge", "region-merge = true")
	s.run(0, "tinyctl explain merge REGION", "keys, on stores")
	s.run(0, "tinyctl region hold --prefix user: --for 24h", "user:")
	s.run(0, "tinyctl region holds", "keyspace split")
	s.run(0, "tinyctl region release --prefix user:")
	s.run(0, "tinyctl scheduler pause merge --for 2h", "merge")
	s.run(0, "tinyctl config set merge-schedule-limit 0")
	s.run(0, "tinyctl config set merge-schedule-limit 8")
}

// manualMembers: a member of the placement service that is dead is started again, and another time
// removed. Then a region is known that nobody leads.
func manualMembers(t *testing.T, m *manual) {
	c := startWith(t, 1, 3)
	s := m.at(t, c)
	dead := c.Schedulers[0]
	dead.Kill()
	s.k.until(1, "member-dead: member "+dead.Name)
	s.run(0, "tinyctl member list", dead.Name)
	require.NoError(t, dead.Start())
	eventually(t, 60*time.Second, func() error {
		if _, out := s.k.try("status"); strings.Contains(out, "member-dead") {
			return errors.New(out)
		}
		return nil
	})
	s.run(0, "tinyctl member reclaim")
	dead.Kill()
	s.in["NAME"] = dead.Name
	s.eventually("tinyctl member remove NAME")
	eventually(t, 60*time.Second, func() error {
		if _, out := s.k.try("status"); strings.Contains(out, "member-dead: member "+dead.Name) {
			return errors.New(out)
		}
		return nil
	})
	s.leaderless()
}

// leaderless has the placement service know a region from a split whose right half no leader ever
// reports.
func (s *site) leaderless() {
	s.Helper()
	p := open(s.T, s.c).Placement()
	r, err := p.GetRegion(s.Context(), []byte("m"))
	require.NoError(s, err)
	id, err := p.AllocID(s.Context())
	require.NoError(s, err)
	left, right := *r.Meta, *r.Meta
	left.EndKey, right.StartKey, right.Id = []byte("m"), []byte("m"), id
	left.RegionEpoch = &metapb.RegionEpoch{
		Version: r.Meta.RegionEpoch.Version + 1, ConfVer: r.Meta.RegionEpoch.ConfVer,
	}
	right.RegionEpoch = left.RegionEpoch
	require.NoError(s, p.ReportSplit(s.Context(), &left, &right))
	s.k.until(1, "critical no-leader: regions")
	s.in["REGION"] = fmt.Sprint(id)
	s.run(0, "tinyctl region show REGION", s.in["REGION"])
}

// manualLocations: two replicas share a location although there is another one.
func manualLocations(t *testing.T, m *manual) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 4, Schedulers: 1, StoreConfig: fastStores,
		SchedulerConfig: "[replication]\nlocation-labels = [\"zone\"]\n[schedule]\nreplica-schedule-limit = 0\n",
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	require.NoError(t, c.Start(t.Context()))
	waitReplicas(t, c, 1) // bootstrapped
	s := m.at(t, c)
	s.k.run(0, "config set schedule.replica-schedule-limit 4")
	eventually(t, 60*time.Second, func() error {
		if r := s.region(); len(r.Peers) != 3 {
			return fmt.Errorf("replicas: %v", r.Peers)
		}
		return nil
	})
	waitReplicas(t, c, 3)
	s.k.run(0, "config set schedule.replica-schedule-limit 0")
	zones := []string{"zone=a", "zone=a", "zone=b"}
	has := map[string]bool{}
	for i, p := range s.region().Peers {
		has[fmt.Sprint(p.Store)] = true
		s.k.run(0, fmt.Sprintf("store label %d %s", p.Store, zones[i]))
	}
	elsewhere := ""
	for _, p := range c.Stores {
		if id := s.id(p); !has[id] {
			elsewhere = id
			s.k.run(0, fmt.Sprintf("store label %s zone=c", id))
		}
	}
	s.k.until(1, "misplaced: regions: 1 of 1")
	s.run(0, "tinyctl store label", "zone=a", "zone=c")
	s.run(0, "tinyctl region show REGION", "leader")
	s.run(0, "tinyctl explain repair", "repair")
	s.k.run(0, "config set schedule.replica-schedule-limit 4")
	eventually(t, 60*time.Second, func() error {
		r := s.region()
		for _, p := range r.Peers {
			if fmt.Sprint(p.Store) == elsewhere && len(r.Peers) == 3 {
				return nil
			}
		}
		return fmt.Errorf("store %s has no replica: %v", elsewhere, r.Peers)
	})
	s.k.until(0)
}

// manualDiverged: three replicas with three values, none of which has a majority. Who looks at the
// stopped stores finds the right one; the others are made up from it.
func manualDiverged(t *testing.T, m *manual) {
	c := start(t, 3)
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("right")))
	waitReplicas(t, c, 3)
	checkReplicas(t, c)
	s := m.at(t, c)
	s.region()
	right := c.Stores[1]
	stop := func() {
		for _, p := range c.Stores {
			_, err := p.End(syscall.SIGTERM, 20*time.Second)
			require.NoError(t, err)
		}
	}
	stop()
	change(t, c.Stores[0].DataDir, "k", "wrong")
	change(t, c.Stores[2].DataDir, "k", "bogus")
	s.start(c.Stores...)
	eventually(t, 60*time.Second, func() error {
		if code, out := m.try(t, "tinyctl check consistency", nil, "-s",
			s.endpoints()); code != 1 || !strings.Contains(out, "undecided") {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
	s.k.until(1, "critical diverged: store")
	stop()
	sums := map[string]bool{}
	for _, p := range c.Stores {
		code, out := m.try(t, "tinyctl debug keys --data-dir DIR",
			map[string]string{"DIR": p.DataDir})
		require.Zero(t, code, out)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 4 && f[1] == fmt.Sprintf("%x", "k") {
				sums[f[3]] = true
			}
		}
	}
	require.Len(t, sums, 3, "three values of one size have different sums")
	s.start(c.Stores...)
	rightID := s.id(right)
	if fmt.Sprint(s.region().Leader) != rightID {
		s.in["STORE"] = rightID
		s.eventually("tinyctl region transfer-leader REGION STORE --wait")
	} else {
		s.m.performed["tinyctl region transfer-leader REGION STORE --wait"] = true
	}
	for _, wrong := range []*localcluster.Process{c.Stores[0], c.Stores[2]} {
		s.in["STORE"] = s.id(wrong)
		s.eventually("tinyctl region remove-peer REGION STORE --wait")
		waitReplicas(t, c, 3)
	}
	s.eventually("tinyctl check consistency", "1 of 1 regions have equal replicas")
	value, _, err := cl.Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "right", string(value))
	s.k.until(0)
}

// change puts another value into the engine of a stopped store, behind all checksums.
func change(t *testing.T, path, key, value string) {
	t.Helper()
	dir, err := node.OpenDataDir(path)
	require.NoError(t, err)
	marker, err := dir.ReadMarker()
	require.NoError(t, err)
	e, err := engines.Open(marker.Engine, engine.Options{Dir: dir.Sub("kv"), Logger: zap.NewNop()})
	require.NoError(t, err)
	b := e.NewBatch()
	b.Put(engine.DataKey(engine.CFDefault, []byte(key)), []byte(value))
	require.NoError(t, e.Write(b, true))
	require.NoError(t, e.Close())
	require.NoError(t, dir.Close())
}

// manualTLS: the commands with certificates, against a secured cluster.
func manualTLS(t *testing.T, m *manual) {
	c, certs := startSecured(t, 1)
	s := m.at(t, c)
	url := "https://" + c.Schedulers[0].Addr
	file := func(name string) string { return filepath.Join(certs, name) }
	status := map[string]string{
		"https://h1:2379": url, "ca.pem": file("ca.crt"), "admin.pem": file("admin.crt"),
		"admin.key": file("admin.key"),
	}
	const command = "tinyctl -s https://h1:2379 --ca ca.pem --cert admin.pem --key admin.key status"
	stores := func(n int) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			code, out := m.try(t, command, status)
			if code != 0 || !strings.Contains(out, fmt.Sprintf("%d of %d stores up", n, n)) {
				return fmt.Errorf("exit code %d: %s", code, out)
			}
			return nil
		})
	}
	stores(3)
	p := s.store(startSecureStore, "secured", map[string]string{
		"https://h1:2379,https://h2:2379": url, "ca.pem": file("ca.crt"),
		"store.pem": file("node.crt"), "store.key": file("node.key"),
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, p.Start())
	require.NoError(t, p.WaitReady(ctx), p.LastWords())
	stores(4)
}
