package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

const monitoring = "../../deploy/monitoring"

// panels are the queries of the boards, by board and title.
func panels(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(monitoring + "/grafana/*.json")
	require.NoError(t, err)
	require.Len(t, files, 3)
	out := map[string][]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		var board struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		require.NoError(t, json.Unmarshal(data, &board), file)
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				name := strings.TrimSuffix(filepath.Base(file), ".json") + ": " + p.Title
				out[name] = append(out[name], target.Expr)
			}
		}
	}
	return out
}

var (
	ownMetric = regexp.MustCompile(`\b(tikv|tinykv|pd)_[a-z0-9_]+\b`)
	quoted    = regexp.MustCompile(`"[^"]*"`)
)

// TestBoardsAskForWhatThereIs: each metric of rules and boards has a row of docs/metrics.md.
func TestBoardsAskForWhatThereIs(t *testing.T) {
	page, err := os.ReadFile(metricsPage)
	require.NoError(t, err)
	rules, err := os.ReadFile(monitoring + "/rules.yml")
	require.NoError(t, err)
	var exprs []string
	for _, line := range strings.Split(string(rules), "\n") {
		if _, expr, ok := strings.Cut(line, " expr: "); ok {
			exprs = append(exprs, expr)
		}
	}
	require.Greater(t, len(exprs), 10)
	for _, list := range panels(t) {
		exprs = append(exprs, list...)
	}
	for _, expr := range exprs {
		for _, name := range ownMetric.FindAllString(quoted.ReplaceAllString(expr, ""), -1) {
			for _, suffix := range []string{"_bucket", "_sum"} {
				name = strings.TrimSuffix(name, suffix)
			}
			// _count ends histograms, and TiKV's names
			if !strings.Contains(string(page), "`"+name+"`") {
				name = strings.TrimSuffix(name, "_count")
			}
			require.Contains(t, string(page), "`"+name+"`", expr)
		}
	}
}

// prometheus runs one over a cluster, by the files of the repository; times in them are shortened.
type prometheus struct{ addr string }

func startPrometheus(t *testing.T, c *localcluster.Cluster) *prometheus {
	t.Helper()
	bin, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("prometheus is not installed (Debian: apt-get install prometheus)")
	}
	dir := t.TempDir()
	rules, err := os.ReadFile(monitoring + "/rules.yml")
	require.NoError(t, err)
	waits := regexp.MustCompile(`(?m)^ +for: .*\n`)
	require.NoError(t,
		os.WriteFile(filepath.Join(dir, "rules.yml"), waits.ReplaceAll(rules, nil), 0o600))
	cfg, err := os.ReadFile(monitoring + "/prometheus.yml")
	require.NoError(t, err)
	var stores, schedulers []string
	for _, p := range c.Stores {
		stores = append(stores, fmt.Sprintf("%q", p.Status))
	}
	for _, p := range c.Schedulers {
		schedulers = append(schedulers, fmt.Sprintf("%q", p.Addr))
	}
	text := strings.NewReplacer("15s", "1s", `"127.0.0.1:20180"`, strings.Join(stores, ", "),
		`"127.0.0.1:2379"`, strings.Join(schedulers, ", ")).Replace(string(cfg))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(text), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &prometheus{addr: l.Addr().String()}
	require.NoError(t, l.Close())
	out, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = out.Close() })
	cmd := exec.Command(bin, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.addr)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(out.Name())
			t.Logf("prometheus: %s", log)
		}
	})
	return p
}

func (p *prometheus) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+"/api/v1/"+path,
		nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return json.NewDecoder(resp.Body).Decode(into)
}

// query tells what is wrong with a query, or that it has no result.
func (p *prometheus) query(ctx context.Context, expr string) error {
	var r struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := p.get(ctx, "query?query="+url.QueryEscape(expr), &r); err != nil {
		return err
	}
	if r.Status != "success" || len(r.Data.Result) == 0 {
		return fmt.Errorf("%s: %s %s, %d results", expr, r.Status, r.Error, len(r.Data.Result))
	}
	return nil
}

// firing are the names of the alerts that fire.
func (p *prometheus) firing(ctx context.Context) (map[string]bool, error) {
	var r struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels struct{ Alertname string }
			}
		}
	}
	if err := p.get(ctx, "alerts", &r); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, a := range r.Data.Alerts {
		if a.State == "firing" {
			out[a.Labels.Alertname] = true
		}
	}
	return out, nil
}

// TestMonitoring: with the files of deploy/monitoring, each panel of each board has data, a healthy
// cluster fires no alert, and one that loses a store says so.
func TestMonitoring(t *testing.T) {
	c := start(t, 3)
	p := startPrometheus(t, c)
	cl := open(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n := 0
	some := func() {
		n++
		require.NoError(t, cl.Put(ctx, fmt.Appendf(nil, "%d", n), make([]byte, 1000)))
		_, _, err := cl.Get(ctx, fmt.Appendf(nil, "%d", n))
		require.NoError(t, err)
	}
	for name, exprs := range panels(t) {
		for _, expr := range exprs {
			eventually(t, time.Minute, func() error {
				some()
				if err := p.query(ctx, expr); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				return nil
			})
		}
	}
	eventually(t, time.Minute, func() error { // healthy once all replicas are there
		some()
		alerts, err := p.firing(ctx)
		if err == nil && len(alerts) > 0 {
			err = fmt.Errorf("firing: %v", alerts)
		}
		return err
	})
	c.Stores[0].Kill()
	eventually(t, time.Minute, func() error {
		alerts, err := p.firing(ctx)
		if err == nil && (!alerts["TinyKVServerDown"] || !alerts["TinyKVStoreSilent"]) {
			err = fmt.Errorf("firing: %v", alerts)
		}
		return err
	})
}
