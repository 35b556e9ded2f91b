package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/ctl"
	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// goldens runs each command of tinyctl with -o json, and compares what it prints with a file.
//
// Invariant: a command that was run without a mistake in its arguments is in done.
type goldens struct {
	cluster  *localcluster.Cluster
	endpoint string // of another cluster
	dir      string
	done     map[string]bool
	// deep is how deep documents are compared: below it a list is one element at most, and its
	// members are names only. 0 is all of it.
	deep int
}

// at is where the placement service is.
func (g *goldens) at() string { return cmp.Or(g.endpoint, g.cluster.Endpoints()[0]) }

// run runs a command, whose words are up to the first that is no word of a command, and compares.
func (g *goldens) run(t *testing.T, code int, words ...string) []byte {
	t.Helper()
	name := ""
	for i := range words {
		if at := strings.Join(words[:i+1], " "); slices.Contains(ctl.Commands(), at) {
			name = at
		}
	}
	require.NotEmpty(t, name, "no command: %v", words)
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"),
		append([]string{"-o", "json", "-s", g.at()}, words...)...)
	cmd.Dir = g.dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	require.Equal(t, code, cmd.ProcessState.ExitCode(), "%v: %s", words, errs.String())
	if g.done[name] = true; code != 0 {
		name += fmt.Sprint(" ", code)
	}
	g.compare(t, name, out.Bytes())
	return out.Bytes()
}

// compare checks the form of a document, and what is in it once what changes has been replaced.
func (g *goldens) compare(t *testing.T, name string, doc []byte) {
	t.Helper()
	var got bytes.Buffer
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	for dec.More() {
		var v any
		require.NoError(t, dec.Decode(&v), "%s prints something else than JSON: %s", name, doc)
		checkForm(t, name, "", v)
		enc := json.NewEncoder(&got)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		require.NoError(t, enc.Encode(g.steady("", v, 1)))
	}
	path := filepath.Join("testdata", "json", strings.ReplaceAll(name, " ", "-")+".json")
	if *updateDocs {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, got.Bytes(), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "go test ./tests/e2e -run GoldenJSON -args -update writes it")
	require.Equal(t, string(want), got.String(), "%s: %s", name, doc)
}

var (
	idName  = regexp.MustCompile(`^(id|ts|store|region|vote|leader_store)$|_(id|ts|safe_point)$`)
	timely  = regexp.MustCompile(`^(time|at|since|until|started|finished|begun|timestamp|start_time|last_heartbeat|not_after|txn_at|gc_at)$`)
	bytesIn = []string{"key", "value", "previous", "primary", "start_key", "end_key", "start", "end"}
	mayNull = []string{"last_heartbeat", "start_time", "eta_seconds"}
)

// checkForm holds a document to the form of JSON that docs/tinyctl.md has.
func checkForm(t *testing.T, command, name string, v any) {
	t.Helper()
	where := command + ": " + name
	require.NotRegexp(t, `_(mib|kib|ns|unix_ms)$`, name, where)
	switch v := v.(type) {
	case nil:
		require.Contains(t, mayNull, name, where)
	case json.Number:
		require.NotRegexp(t, idName, name, "%s is a number", where)
	case string:
		if timely.MatchString(name) {
			_, err := time.Parse(time.RFC3339Nano, v)
			require.NoError(t, err, where)
		}
	case []any:
		for _, e := range v {
			checkForm(t, command, name+"[]", e)
		}
	case map[string]any:
		for _, key := range bytesIn {
			if _, ok := v[key].(string); ok && !strings.HasPrefix(command, "cert ") &&
				command != "playground" {
				require.Contains(t, v, key+"_hex", where)
			}
		}
		for key, e := range v {
			if stem, ok := strings.CutSuffix(key, "_hex"); ok {
				b, err := hex.DecodeString(e.(string))
				require.NoError(t, err, "%s.%s", where, key)
				if text, ok := v[stem]; ok || utf8.Valid(b) {
					require.Equal(t, string(b), text, "%s.%s", where, key)
				}
			}
			checkForm(t, command, key, e)
		}
	}
}

var (
	volatile = regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)
	// meant are members whose values the commands of this test determine.
	meant = []string{
		"found", "swapped", "existed", "value_bytes", "ttl_seconds", "pairs", "counted", "entries",
		"expired", "cf", "type", "name", "state", "kind", "verdict", "evict_leaders", "what",
	}
)

// fickle are members that are there at times, or whose lists differ.
var fickle = []string{
	"not_target", "not_source", "slow", "drain", "steps", "step_seconds", "finished", "reason", "why",
	"pending_peers", "learner", "seconds",
}

// steady replaces what differs from run to run.
func (g *goldens) steady(name string, v any, depth int) any {
	if _, text := v.(string); text && slices.Contains(bytesIn, name) ||
		g.deep == 0 && slices.Contains(meant, name) || strings.HasSuffix(name, "_hex") {
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		if g.deep > 0 && depth > g.deep {
			return "{...}"
		}
		out := map[string]any{}
		for key, e := range v {
			if !slices.Contains(fickle, key) {
				out[key] = g.steady(key, e, depth+1)
			}
		}
		return out
	case []any:
		if g.deep > 0 && depth > g.deep {
			return "[...]"
		}
		return g.steadyList(name, v, depth)
	case json.Number:
		return 0
	case string:
		if g.deep > 0 {
			return "text"
		}
		if name == "version" || name == "status" || name == "directory" {
			return "text"
		}
		return volatile.ReplaceAllString(v, "0")
	case bool:
		return false
	}
	return v
}

// steadyList leaves one of each kind of element.
func (g *goldens) steadyList(name string, v []any, depth int) []any {
	var texts []string
	byText := map[string]any{}
	for _, e := range v {
		s := g.steady(name+"[]", e, depth+1)
		data, err := json.Marshal(s)
		if err != nil {
			panic(err) // it was decoded from JSON
		}
		texts = append(texts, string(data))
		byText[string(data)] = s
	}
	slices.SortFunc(texts, cmp.Compare)
	out := []any{}
	for _, text := range slices.Compact(texts) {
		out = append(out, byText[text])
	}
	return out
}

// loose compares the names at the top only, while f runs.
func (g *goldens) loose(f func()) {
	before := g.deep
	g.deep = 1
	f()
	g.deep = before
}

// try runs a command again until it ends with code 0: operators of the placement service may be in
// its way for a moment. The last run is compared.
func (g *goldens) try(t *testing.T, choose func() []string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		words := choose()
		cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"),
			append([]string{"-o", "json", "-s", g.at()}, words...)...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%v: %w: %s", words, err, errs.String())
		}
		name := strings.Join(words[:min(2, len(words))], " ")
		g.done[name] = true
		g.compare(t, name, out)
		return nil
	})
}

// TestGoldenJSON: each command has a file with its JSON, which has the form of docs/tinyctl.md. A new
// command without one fails.
func TestGoldenJSON(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 4,
		StoreConfig: strings.Replace(fastStores, "[raftstore]",
			"[raftstore]\nregion-merge = true", 1),
		SchedulerConfig: "[schedule]\nmerge-schedule-limit = 0\n",
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	waitReplicas(t, c, 3)
	g := &goldens{cluster: c, dir: t.TempDir(), done: map[string]bool{}}
	for _, name := range []string{"balance-leader", "balance-region"} {
		tinyctl(t, "-s", g.at(), "scheduler", "pause", name)
	}
	g.keys(t)
	g.files(t)
	g.settings(t)
	g.regions(t)
	g.playground(t)
	g.stores(t)
	var missing []string
	for _, name := range ctl.Commands() {
		if !g.done[name] {
			missing = append(missing, name)
		}
	}
	require.Empty(t, missing, "commands without a golden document: run them in this test")
}

// keys are the commands on keys.
func (g *goldens) keys(t *testing.T) {
	g.run(t, 0, "put", "k<1>", "v", "--ttl", "1h")
	g.loose(func() {
		g.run(t, 0, "trace", "put", "-e", "hex", "6bff", "00ff")
		g.run(t, 0, "trace", "scan", "k")
		g.run(t, 0, "trace", "get", "k<1>")
		g.run(t, 0, "trace", "cas", "--absent", "c", "1")
		g.run(t, 0, "trace", "delete", "c")
	})
	g.run(t, 0, "get", "k<1>")
	g.run(t, 4, "get", "none")
	g.run(t, 0, "scan", "k")
	g.run(t, 4, "ttl", "none")
	g.run(t, 0, "count")
	g.run(t, 0, "checksum")
	g.run(t, 0, "cas", "-e", "hex", "6bff", "00ff", "61")
	g.run(t, 1, "cas", "-e", "hex", "6bff", "00ff", "61")
	g.run(t, 0, "delete", "c", "d")
	tinyctl(t, "-s", g.at(), "put", "hello", "world")
	page, err := os.ReadFile("../../docs/tinyctl.md")
	require.NoError(t, err)
	_, example, found := strings.Cut(string(page), "$ tinyctl -o json get hello\n")
	require.True(t, found, "docs/tinyctl.md has no example")
	example, _, _ = strings.Cut(example, "```")
	require.Equal(t, example, tinyctl(t, "-s", g.at(), "-o", "json", "get", "hello"))
	tinyctl(t, "-s", g.at(), "delete", "hello")
	tinyctl(t, "-s", g.at(), "put", "forever", "v")
	g.run(t, 0, "ttl", "forever")
	g.run(t, 0, "shell", "--history", "")
	g.loose(func() {
		g.run(t, 0, "bench", "--phases", "put", "--duration", "50ms", "--warmup", "1ms", "--keys",
			"9", "--key-size", "8")
	})
	g.run(t, 2, "bench", "ycsb", "load", "a")
	g.run(t, 2, "demo")
	g.run(t, 2, "man")
}

// files are the commands on files and certificates.
func (g *goldens) files(t *testing.T) {
	require.NoError(t, os.Mkdir(filepath.Join(g.dir, "in"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(g.dir, "in", "f"), []byte("text"), 0o600))
	g.run(t, 0, "import", "dir", "in", "--prefix", "t/")
	g.run(t, 0, "export", "dir", "out", "--prefix", "t/")
	g.run(t, 0, "export", "file", "pairs", "--prefix", "t/")
	g.run(t, 0, "import", "file", "pairs")
	g.run(t, 0, "cert", "create-ca")
	g.run(t, 0, "cert", "create-node", "localhost")
	g.run(t, 0, "cert", "create-client", "app")
	g.run(t, 0, "cert", "create-admin", "ops")
	g.run(t, 0, "cert", "show", "certs/ca.crt")
	g.run(t, 0, "cert", "check")
}

// settings are the commands on the placement service.
func (g *goldens) settings(t *testing.T) {
	g.run(t, 0, "config", "set", "leader-schedule-limit", "4")
	g.run(t, 0, "config", "get")
	g.run(t, 4, "config", "get", "none")
	g.run(t, 0, "scheduler", "list")
	g.run(t, 0, "scheduler", "resume", "balance-leader")
	g.run(t, 0, "scheduler", "pause", "balance-leader")
	g.run(t, 0, "member", "list")
	g.run(t, 0, "member", "reclaim")
	g.run(t, 0, "member", "loglevel", "info")
	g.run(t, 2, "member", "loglevel", "loud")
	store := fmt.Sprint(storeIDs(t, g.cluster)[g.cluster.Stores[0].Name])
	g.run(t, 0, "store", "config", "get", store, "raftstore.region-max-size")
	g.run(t, 4, "store", "config", "get", store, "none")
	g.run(t, 0, "store", "config", "set", "--all", "slow-log-threshold", "2s")
	g.run(t, 4, "store", "config", "set", "99999", "log.level", "info")
	g.run(t, 0, "store", "loglevel", "info", store)
	g.run(t, 2, "store", "loglevel", "loud")
	g.run(t, 4, "member", "remove", "none")
	g.run(t, 4, "member", "promote", "none")
	g.run(t, 4, "member", "transfer", "none")
	g.run(t, 0, "check", "serving", "http://"+g.cluster.Stores[0].Status+"/health")
	g.loose(func() {
		// the placement service may not know yet that all is well
		for _, line := range []string{"check consistency", "doctor", "status"} {
			g.try(t, func() []string { return strings.Fields(line) })
		}
		g.run(t, 0, "events")
		g.run(t, 0, "explain")
		g.run(t, 0, "top", "--once")
	})
}

// goldenRegion is what the test needs of a region.
type goldenRegion struct {
	ID     string `json:"id"`
	Leader string `json:"leader_store_id"`
	Peers  []struct {
		Store string `json:"store_id"`
	} `json:"peers"`
}

// region is the region of the key k, a store with a follower, and a store without a replica; "" if
// there is none.
func (g *goldens) region(t *testing.T) (r goldenRegion, follower, free string) {
	t.Helper()
	g.loose(func() {
		require.NoError(t, json.Unmarshal(g.run(t, 0, "region", "key", "k"), &r))
	})
	has := map[string]bool{}
	for _, p := range r.Peers {
		if has[p.Store] = true; p.Store != r.Leader {
			follower = p.Store
		}
	}
	for _, p := range g.cluster.Stores {
		if id := fmt.Sprint(storeIDs(t, g.cluster)[p.Name]); !has[id] {
			free = id
		}
	}
	return r, follower, free
}

// regions are the commands on regions and operators.
func (g *goldens) regions(t *testing.T) {
	r, _, free := g.region(t)
	for _, p := range g.cluster.Stores {
		if fmt.Sprint(storeIDs(t, g.cluster)[p.Name]) != free {
			continue
		}
		require.NoError(t, p.Signal(syscall.SIGSTOP))
		g.run(t, 0, "region", "add-peer", r.ID, free)
		g.run(t, 0, "operator", "show", r.ID)
		g.loose(func() { g.run(t, 0, "operator", "list") })
		g.run(t, 0, "operator", "cancel", r.ID)
		require.NoError(t, p.Signal(syscall.SIGCONT))
		break
	}
	g.try(t, func() []string {
		r, follower, _ := g.region(t)
		return []string{"region", "transfer-leader", r.ID, follower, "--wait"}
	})
	g.try(t, func() []string {
		r, _, free := g.region(t)
		return []string{"region", "move-peer", r.ID, r.Leader, cmp.Or(free, "99999")}
	})
	g.try(t, func() []string {
		r, follower, _ := g.region(t)
		return []string{"region", "remove-peer", r.ID, follower}
	})
	g.try(t, func() []string { return []string{"region", "split", r.ID, "m", "--wait"} })
	g.try(t, func() []string { return []string{"region", "scatter", r.ID, "--wait"} })
	g.loose(func() {
		g.run(t, 0, "operator", "history")
		g.run(t, 0, "keyspace", "split", "--prefix", "u", "--into", "2")
		g.run(t, 0, "region", "list")
		g.run(t, 0, "region", "show", r.ID)
	})
	g.run(t, 4, "region", "show", "99999")
	g.run(t, 0, "region", "check", "no-leader")
	g.run(t, 0, "region", "hold", "--prefix", "x", "--for", "1h")
	g.run(t, 0, "region", "holds")
	g.run(t, 0, "region", "release", "--prefix", "x")
	g.run(t, 1, "region", "merge", r.ID, r.ID)
}

// playground is one, which has the cluster for the commands on transactions.
func (g *goldens) playground(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "-o", "json",
		"playground", "--tmp", "--kv", "1", "--mode", "txn", "--base-port", fmt.Sprint(freeBase(t)))
	out, errs := new(output), new(output)
	cmd.Stdout, cmd.Stderr = out, errs
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var ready struct {
		Schedulers []struct {
			Address string `json:"address"`
		} `json:"schedulers"`
	}
	eventually(t, time.Minute, func() error { return json.Unmarshal([]byte(out.String()), &ready) })
	txns := &goldens{
		endpoint: ready.Schedulers[0].Address, dir: g.dir, done: g.done, cluster: g.cluster,
	}
	txns.run(t, 0, "txn", "put", "a", "1", "b", "2")
	txns.run(t, 0, "txn", "get", "a")
	txns.run(t, 4, "txn", "get", "none")
	txns.run(t, 0, "txn", "scan")
	txns.run(t, 0, "txn", "delete", "b")
	eventually(t, time.Minute, func() error { // locks go behind the answer of a commit
		out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "-s",
			txns.at(), "-o", "json", "lock", "list").Output()
		if err == nil && string(out) != "[]\n" {
			err = fmt.Errorf("locks: %s", out)
		}
		return err
	})
	txns.run(t, 0, "mvcc", "b")
	txns.run(t, 4, "mvcc", "none")
	txns.run(t, 0, "lock", "list")
	txns.run(t, 0, "gc", "status")
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	require.NoError(t, <-ended, errs.String())
	g.done["playground"] = true
	g.compare(t, "playground", []byte(out.String()))
}

// stores are the commands on stores and, as they need some that do not run, those on directories.
func (g *goldens) stores(t *testing.T) {
	ids := storeIDs(t, g.cluster)
	first := g.cluster.Stores[0]
	one, four := fmt.Sprint(ids[first.Name]), fmt.Sprint(ids[g.cluster.Stores[3].Name])
	g.loose(func() {
		g.run(t, 0, "store", "list")
		g.run(t, 0, "store", "limit")
	})
	g.run(t, 4, "store", "show", "99999")
	g.run(t, 4, "store", "bury", "99999")
	for _, words := range [][]string{
		{"show"}, {"evict"}, {"unevict"}, {"weight", "2"}, {"label", "disk=ssd"}, {"up"},
	} {
		if words[0] == "up" {
			tinyctl(t, "-s", g.at(), "store", "offline", one)
		}
		g.try(t, func() []string { return append([]string{"store", words[0], one}, words[1:]...) })
	}
	g.run(t, 0, "store", "offline", four, "--wait")
	g.run(t, 0, "store", "remove", four)
	var status []string
	for _, p := range g.cluster.Stores[:3] {
		status = append(status, p.Status)
	}
	g.loose(func() {
		g.run(t, 0, "recover", "scheduler", "--stores", strings.Join(status, ","))
		g.run(t, 0, "recover", "regions", "--lost-stores", four, "--stores",
			strings.Join(status, ","), "--fill-holes")
	})
	_, err := first.End(syscall.SIGTERM, 20*time.Second)
	require.NoError(t, err)
	dir := []string{"--data-dir", first.DataDir}
	g.loose(func() {
		var replicas []struct {
			Region struct {
				ID string `json:"id"`
			} `json:"region"`
		}
		list := g.run(t, 0, append([]string{"debug", "regions"}, dir...)...)
		require.NoError(t, json.Unmarshal(list, &replicas))
		g.run(t, 0, append([]string{"debug", "entries", replicas[0].Region.ID}, dir...)...)
		g.run(t, 0, append([]string{"debug", "keys"}, dir...)...)
		g.run(t, 0, append([]string{"debug", "verify"}, dir...)...)
	})
	g.run(t, 1, append([]string{"recover", "apply"}, dir...)...)
	g.run(t, 0, "member", "resign")
}
