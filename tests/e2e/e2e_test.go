// Package e2e runs the real binaries as processes.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

var binDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tinykv-e2e-")
	if err != nil {
		panic(err)
	}
	out, err := exec.Command("go", "build", "-o", dir+string(filepath.Separator),
		"../../cmd/...").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
	} else {
		binDir = dir
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const fastBeats = `
[raftstore]
region-heartbeat-interval = "500ms"
store-heartbeat-interval = "500ms"
`

// fastStores are small too.
const fastStores = fastBeats + `[storage]
cache-size = "8MiB"
memtable-size = "4MiB"
`

func start(t *testing.T, stores int) *localcluster.Cluster {
	t.Helper()
	return startWith(t, stores, 1)
}

func startWith(t *testing.T, stores, schedulers int) *localcluster.Cluster {
	t.Helper()
	return startConfigured(t, stores, schedulers, fastStores)
}

func startConfigured(t *testing.T, stores, schedulers int, config string) *localcluster.Cluster {
	t.Helper()
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: stores, Schedulers: schedulers,
		StoreConfig: config,
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	return c
}

func open(t *testing.T, c *localcluster.Cluster) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cl, err := client.Open(ctx, c.Endpoints(), client.Options{Timeout: 20 * time.Second})
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	return cl
}

func eventually(t *testing.T, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(t, err)
		}
		time.Sleep(30 * time.Millisecond) // polls a condition
	}
}

// peers asks every running store for its peers.
func peers(c *localcluster.Cluster) (map[string][]raftstore.PeerInfo, error) {
	out := map[string][]raftstore.PeerInfo{}
	for _, p := range c.Stores {
		if !p.Running() {
			continue
		}
		resp, err := http.Get("http://" + p.Status + "/regions")
		if err != nil {
			return nil, err
		}
		var infos []raftstore.PeerInfo
		err = json.NewDecoder(resp.Body).Decode(&infos)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		out[p.Name] = infos
	}
	return out, nil
}

func waitReplicas(t *testing.T, c *localcluster.Cluster, n int) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		all, err := peers(c)
		if err != nil {
			return err
		}
		have := 0
		for _, infos := range all {
			for _, info := range infos {
				learner := func(p *metapb.Peer) bool {
					return p.GetRole() == metapb.PeerRole_Learner
				}
				if peers := info.Region.GetPeers(); len(peers) >= n &&
					!slices.ContainsFunc(peers, learner) && !info.Installing {
					have++
				}
			}
		}
		if have < n {
			return fmt.Errorf("%d replicas", have)
		}
		return nil
	})
}

func leaderStore(c *localcluster.Cluster) (*localcluster.Process, error) {
	all, err := peers(c)
	if err != nil {
		return nil, err
	}
	for _, p := range c.Stores {
		for _, info := range all[p.Name] {
			if info.IsLeader {
				return p, nil
			}
		}
	}
	return nil, fmt.Errorf("no leader")
}

// TestKillLeaderStore writes, kills the leader's store with SIGKILL, reads everything back within
// seconds, restarts the store, and compares the replicas.
func TestKillLeaderStore(t *testing.T) {
	c := start(t, 3)
	cl := open(t, c)
	waitReplicas(t, c, 3)
	ctx := t.Context()
	for i := range 200 {
		require.NoError(t, cl.Put(ctx, fmt.Appendf(nil, "k%03d", i), fmt.Appendf(nil, "v%d", i)))
	}
	victim, err := leaderStore(c)
	require.NoError(t, err)
	victim.Kill()
	killed := time.Now()
	value, found, err := cl.Get(ctx, []byte("k000"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "v0", string(value))
	took := time.Since(killed)
	t.Logf("first read after the kill: %s", took)
	require.Less(t, took, 5*time.Second)
	for i := range 200 {
		value, found, err := cl.Get(ctx, fmt.Appendf(nil, "k%03d", i))
		require.NoError(t, err)
		require.True(t, found, i)
		require.Equal(t, fmt.Sprintf("v%d", i), string(value))
	}
	require.NoError(t, cl.Put(ctx, []byte("after"), []byte("kill")))
	require.NoError(t, victim.Start())
	checkReplicas(t, c)
}

// checkReplicas waits until all replicas of every region have applied the same entries, and
// compares their data by what each store's own engine holds.
func checkReplicas(t *testing.T, c *localcluster.Cluster) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		all, err := peers(c)
		if err != nil {
			return err
		}
		type state struct{ applied, commit uint64 }
		seen := map[uint64]map[string]state{}
		for store, infos := range all {
			for _, info := range infos {
				if seen[info.Region.Id] == nil {
					seen[info.Region.Id] = map[string]state{}
				}
				seen[info.Region.Id][store] = state{info.AppliedIndex, info.CommitIndex}
			}
		}
		for id, stores := range seen {
			var first *state
			for _, st := range stores {
				if first != nil && st != *first {
					return fmt.Errorf("region %d: replicas differ: %v", id, stores)
				}
				first = &st
			}
			if len(stores) != 3 {
				return fmt.Errorf("region %d: %d replicas", id, len(stores))
			}
			if err := sameHash(c, id); err != nil {
				return err
			}
		}
		return nil
	})
}

func sameHash(c *localcluster.Cluster, region uint64) error {
	hashes := map[string]string{}
	for _, p := range c.Stores {
		resp, err := http.Get(fmt.Sprintf("http://%s/hash?region=%d", p.Status, region))
		if err != nil {
			return err
		}
		var h struct {
			Applied uint64 `json:"applied_index"`
			Keys    uint64 `json:"keys"`
			Hash    string `json:"hash"`
		}
		err = json.NewDecoder(resp.Body).Decode(&h)
		resp.Body.Close()
		if err != nil {
			return err
		}
		hashes[fmt.Sprintf("%d/%d/%s", h.Applied, h.Keys, h.Hash)] = p.Name
	}
	if len(hashes) != 1 {
		return fmt.Errorf("region %d: index/keys/hash differ between stores: %v", region, hashes)
	}
	return nil
}

// TestKillAllStores kills everything at once; nothing that was acknowledged may be lost.
func TestKillAllStores(t *testing.T) {
	c := start(t, 3)
	cl := open(t, c)
	waitReplicas(t, c, 3)
	for i := range 100 {
		require.NoError(t,
			cl.Put(t.Context(), fmt.Appendf(nil, "k%03d", i), fmt.Appendf(nil, "v%d", i)))
	}
	for _, p := range c.Processes() {
		p.Kill()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	for i := range 100 {
		value, found, err := cl.Get(ctx, fmt.Appendf(nil, "k%03d", i))
		require.NoError(t, err)
		require.True(t, found, i)
		require.Equal(t, fmt.Sprintf("v%d", i), string(value))
	}
	checkReplicas(t, c)
}

// TestStoreWaitsForScheduler starts a store before its scheduler.
func TestStoreWaitsForScheduler(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 1, StoreConfig: fastStores,
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	require.NoError(t, c.Stores[0].Start())
	eventually(t, 10*time.Second, func() error {
		data, err := os.ReadFile(c.Stores[0].LogFile)
		if err == nil && !strings.Contains(string(data), "waiting for the scheduler") {
			err = fmt.Errorf("the log does not say that it waits: %s", data)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	cl := open(t, c)
	require.NoError(t, cl.Put(ctx, []byte("k"), []byte("v")))
}

// TestSignalEndsCleanly: SIGTERM and SIGINT both end every process with exit code 0.
func TestSignalEndsCleanly(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c := start(t, 1)
		for _, p := range []*localcluster.Process{c.Stores[0], c.Schedulers[0]} {
			code, err := p.End(sig, 15*time.Second)
			require.NoError(t, err)
			require.Zero(t, code, "%s after %s: %s", p.Name, sig, p.LastWords())
		}
	}
}

// TestBadStarts: each wrong start is one line that names the fault, and a code that is not 0.
func TestBadStarts(t *testing.T) {
	c := start(t, 1)
	dir := t.TempDir()
	conf := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	foreign := filepath.Join(dir, "foreign")
	require.NoError(t, os.MkdirAll(foreign, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(foreign, "photo.jpg"), nil, 0o600))
	other := start(t, 1)
	waitReplicas(t, other, 1)
	other.Stores[0].Stop(10 * time.Second)
	sched := c.Schedulers[0].Addr
	for _, tc := range []struct {
		name string
		bin  string
		args []string
		code int
		want []string
	}{
		{
			"unknown flag", "tinykv-server", []string{"--data-dri", dir}, 2,
			[]string{"data-dri", "--data-dir"},
		},
		{"positional", "tinykv-server", []string{"extra"}, 2, []string{"extra"}},
		{
			"unknown key", "tinykv-server",
			[]string{"--config", conf("a.toml", "[raftstore]\ntick-intervall = \"1s\"\n")}, 2,
			[]string{"tick-intervall", "tick-interval"},
		},
		{
			"ill-typed key", "tinykv-server",
			[]string{"--config", conf("b.toml", "[raftstore]\nelection-ticks = \"ten\"\n")}, 2,
			[]string{"line 2"},
		},
		{
			"bad value", "tinykv-server",
			[]string{"--config", conf("c.toml", "[raftstore]\nelection-ticks = 1\n")}, 2,
			[]string{"election-ticks"},
		},
		{
			"bad address", "tinykv-server", []string{"--addr", "nonsense"}, 2,
			[]string{"addr", "nonsense"},
		},
		{
			"address in use", "tinykv-server",
			[]string{
				"--addr", c.Stores[0].Addr, "--status-addr", "127.0.0.1:0", "--data-dir",
				filepath.Join(dir, "x"), "--scheduler", sched,
			}, 1, []string{c.Stores[0].Addr, "in use"},
		},
		{
			"directory in use", "tinykv-server",
			[]string{
				"--addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0", "--data-dir",
				c.Stores[0].DataDir, "--scheduler", sched,
			}, 1, []string{c.Stores[0].DataDir, "in use"},
		},
		{
			"directory of something else", "tinykv-server",
			[]string{
				"--addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0", "--data-dir", foreign,
				"--scheduler", sched,
			}, 1, []string{foreign, "photo.jpg"},
		},
		{
			"directory of another cluster", "tinykv-server",
			[]string{
				"--addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0", "--data-dir",
				other.Stores[0].DataDir, "--scheduler", sched,
			}, 1, []string{"cluster"},
		},
		{
			"no such cluster", "tinyctl", []string{"--scheduler", "127.0.0.1:1", "get", "k"}, 1,
			[]string{"127.0.0.1:1"},
		},
		{"unknown command", "tinyctl", []string{"gett", "k"}, 2, []string{"gett"}},
		{"wrong arguments", "tinyctl", []string{"put", "k"}, 2, []string{"put KEY VALUE"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(binDir, tc.bin), tc.args...)
			out, _ := cmd.CombinedOutput()
			require.Equal(t, tc.code, cmd.ProcessState.ExitCode(), "%s", out)
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			last := lines[len(lines)-1]
			for _, want := range tc.want {
				require.Contains(t, last, want)
			}
		})
	}
}

// commandLineOfTTLs leaves no key behind.
func commandLineOfTTLs(
	t *testing.T, run func(...string) (string, int), must func(string, ...string),
) {
	t.Helper()
	must("", "put", "t", "v", "--ttl", "1h")
	out, code := run("ttl", "t")
	require.Zero(t, code)
	require.Regexp(t, `^3[56]\d\d\n$`, out)
	must("", "cas", "t", "v", "w", "--ttl", "1s")
	require.Eventually(t, func() bool {
		_, code := run("get", "t")
		return code == 4
	}, 20*time.Second, 50*time.Millisecond)
	out, code = run("ttl", "t", "-o", "json")
	require.Equal(t, 4, code)
	require.JSONEq(t, `{"key": "t", "key_hex": "74", "found": false, "ttl_seconds": 0}`, out)
	must("", "put", "t", "v")
	must("0ffe5ab00f8ef44e, 1 pairs, 2 bytes\n", "checksum", "t", "u")
	must("never\n", "ttl", "t")
	must("", "delete", "t")
}

// TestCommandLine goes through tinyctl's key commands and its exit codes. commandLineOfTraces: a
// traced command does what it does without, with the same exit code, and says what took how long.
func commandLineOfTraces(t *testing.T, run func(args ...string) (string, int)) {
	t.Helper()
	out, code := run("trace", "put", "traced", "v")
	require.Zero(t, code)
	for _, stage := range []string{
		"route", "RawPut", "wait", "append-log", "commit", "apply-wait", "apply",
	} {
		require.Regexp(t, `\d+\.\d{3} ms +\d+\.\d{3} ms +`+stage+` `, out)
	}
	out, code = run("trace", "get", "traced")
	require.Zero(t, code)
	require.Regexp(t, `(?s)^v\nSTART .*RawGet.*request`, out)
	out, code = run("trace", "delete", "traced", "-o", "json")
	require.Zero(t, code)
	var got struct {
		Steps []struct {
			Name   string
			Stage  bool
			TookUS float64 `json:"took_us"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Equal(t, "route", got.Steps[0].Name)
	require.True(t, got.Steps[len(got.Steps)-1].Stage)
	require.Positive(t, got.Steps[1].TookUS)
	out, code = run("trace", "get", "traced")
	require.Equal(t, 4, code, "there is none")
	require.Contains(t, out, "RawGet")
	_, code = run("trace", "nothing")
	require.Equal(t, 2, code)
}

// commandLineOfMortalPairs: times at which keys expire go through a file; what has expired by the
// import is left out.
func commandLineOfMortalPairs(
	t *testing.T, run func(...string) (string, int), must func(string, ...string),
) {
	t.Helper()
	pairs := filepath.Join(t.TempDir(), "exported.jsonl")
	must("", "put", "x/ever", "v")
	must("", "put", "x/hour", "v", "--ttl", "1h")
	must("", "put", "782f00ff", "00", "-e", "hex", "--ttl", "2540400h")
	must("", "export", "file", pairs, "--prefix", "x/")
	must("", "put", "x/hour", "later")
	got, err := os.ReadFile(pairs)
	require.NoError(t, err)
	require.Equal(t, 3, strings.Count(string(got), "\n"), "%s", got)
	require.Equal(t, 2, strings.Count(string(got), "expires"), "%s", got)
	got = append(got, `{"key":"x/gone","value":"v","expires":"2020-01-01T00:00:00Z"}`...)
	require.NoError(t, os.WriteFile(pairs, got, 0o600))
	must("", "delete", "x/ever")
	must("", "import", "file", pairs)
	must("never\n", "ttl", "x/ever")
	out, code := run("ttl", "x/hour")
	require.Zero(t, code)
	require.Regexp(t, `^3[56]\d\d\n$`, out)
	_, code = run("ttl", "x/gone")
	require.Equal(t, 4, code)
	must("782f00ff\t00\n", "scan", "782f00", "782f01", "-e", "hex")
}

func TestCommandLine(t *testing.T) {
	c := start(t, 1)
	run := func(args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"),
			append([]string{"--scheduler", c.Endpoints()[0]}, args...)...)
		out, err := cmd.Output()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	must := func(want string, args ...string) {
		t.Helper()
		out, code := run(args...)
		require.Zero(t, code, "%v", args)
		require.Equal(t, want, out, "%v", args)
	}
	must("", "put", "hello", "world")
	must("world\n", "get", "hello")
	must("", "put", "empty", "")
	must("\n", "get", "empty")
	must("", "put", "-e", "hex", "00ff", "21")
	must("!\n", "get", "-e", "escaped", `\x00\xff`)
	must("empty\t\nhello\tworld\n", "scan", "e", "z")
	_, code := run("get", "absent")
	require.Equal(t, 4, code)
	must("", "delete", "hello", "absent")
	_, code = run("get", "hello")
	require.Equal(t, 4, code)
	must("", "cas", "--absent", "c", "1")
	must("", "cas", "c", "1", "2")
	out, code := run("cas", "c", "1", "3", "-o", "json")
	require.Equal(t, 1, code)
	require.JSONEq(t,
		`{"swapped": false, "existed": true, "previous": "2", "previous_hex": "32"}`, out)
	must("2\n", "get", "c")
	must("", "cas", "--delete", "c", "2")
	_, code = run("cas", "c", "2", "3")
	require.Equal(t, 1, code)
	commandLineOfTraces(t, run)
	script := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "shell",
		"--history", "", "--scheduler", c.Endpoints()[0])
	script.Stdin = strings.NewReader("put 'in a shell' v\nget 'in a shell'\nget none\ncount\n")
	said, err := script.Output()
	require.Error(t, err, "get none fails")
	require.Equal(t, 4, script.ProcessState.ExitCode())
	require.Equal(t, "v\n", string(said))
	must("", "delete", "in a shell")
	for _, key := range []string{"r1", "r2", "r3", "s1"} {
		must("", "put", key, "v")
	}
	must("s1\tv\nr3\tv\n", "scan", "r", "--reverse", "-n", "2")
	must("3\n", "count", "--prefix", "r")
	must("4\n", "count", "r")
	must("[\n  {\"key\":\"s1\",\"key_hex\":\"7331\",\"value\":\"v\",\"value_hex\":\"76\"}\n]\n",
		"scan", "s", "-o", "json")
	must("[]\n", "scan", "z", "-o", "json")
	out, code = run("get", "empty", "-o", "json")
	require.Zero(t, code)
	require.JSONEq(t,
		`{"key": "empty", "key_hex": "656d707479", "value": "", "value_hex": "", "found": true}`,
		out)
	out, code = run("top", "--once")
	require.Zero(t, code)
	require.Contains(t, out, "WRITES/S")
	must("r3\nr2\nr1\n", "scan", "--prefix", "r", "--reverse", "--keys-only")
	commandLineOfTTLs(t, run, must)
	out, code = run("delete", "--prefix", "r") // standard input is empty
	require.Equal(t, 1, code)
	require.Equal(t, `There are 3 keys from "r" to "s". Remove them all? Type yes: `, out)
	must("removed the range; it had 1 keys\n", "delete", "--range", "r2", "r3", "--yes")
	must("removed the range; it had 2 keys\n", "delete", "--prefix", "r", "--yes")
	must("s1\tv\n", "scan", "r")
	must("removed the range; it had 1 keys\n", "delete", "--range", "s", "--yes")
	for _, wrong := range [][]string{
		{"delete"}, {"delete", "--range"}, {"delete", "--prefix", "a", "b"},
		{"delete", "--prefix", ""}, {"cas", "k", "v"},
		{"put", "k", "v", "--ttl", "100ms"}, {"put", "k", "v", "--ttl", "-1s"},
		{"cas", "--delete", "k", "v", "--ttl", "1s"},
		{"delete", "--range", "--prefix", "a"}, {"cas", "--absent", "--delete", "k", "v"},
		{"delete", "--range", "a", "-o", "json"},
		{"scan", "-n", "-1"}, {"count", "a", "--prefix", "b"}, {"top", "--interval", "1ms"},
	} {
		_, code = run(wrong...)
		require.Equal(t, 2, code, "%v", wrong)
	}
	out, code = run("region", "key", "anything", "-o", "json")
	require.Zero(t, code)
	require.Contains(t, out, `"leader_store_id"`)
	_, code = run("get", "k", "-o", "yaml")
	require.Equal(t, 2, code)

	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	require.NoError(t, os.MkdirAll(filepath.Join(src, "a/b"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(src, "a/b/empty"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(src, "a/file"), []byte("content"), 0o600))
	must("", "import", "dir", src, "--prefix", "t/", "-q")
	must("", "export", "dir", dst, "--prefix", "t/", "-q")
	got, err := os.ReadFile(filepath.Join(dst, "a/file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(got))
	got, err = os.ReadFile(filepath.Join(dst, "a/b/empty"))
	require.NoError(t, err)
	require.Empty(t, got)

	jsonl, tsv := filepath.Join(t.TempDir(), "pairs.jsonl"), filepath.Join(t.TempDir(), "pairs.tsv")
	require.NoError(t,
		os.WriteFile(jsonl, []byte("{\"key\":\"j1\",\"value\":\"a\"}\n\n{\"key\":\"j2\"}\n"),
			0o600))
	require.NoError(t, os.WriteFile(tsv, []byte("t1\tx\ty\nt2\t\n"), 0o600))
	must("", "import", "file", jsonl)
	must("", "import", "file", tsv)
	must("j1\ta\nj2\t\n", "scan", "--prefix", "j")
	must("t1\tx\\ty\nt2\t\n", "scan", "t1", "t3", "-e", "text")
	require.NoError(t, os.WriteFile(jsonl, []byte("{\"key\":\"ok\"}\n{\"kee\":1}\n"), 0o600))
	_, code = run("import", "file", jsonl)
	require.Equal(t, 1, code, "a line without a key")
	commandLineOfMortalPairs(t, run, must)
}
