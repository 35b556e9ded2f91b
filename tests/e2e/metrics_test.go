package e2e

import (
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

var updateDocs = flag.Bool("update", false, "write what is missing into docs/metrics.md")

// metric is a row of docs/metrics.md.
type metric struct{ kind, help string }

const metricsPage = "../../docs/metrics.md"

var metricRow = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([a-z]+) \\| (.*) \\|$")

// scrape reads the metrics of a server, without those of Go's runtime, the process and etcd.
func scrape(t *testing.T, addr string) (map[string]metric, []byte) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	var text strings.Builder
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(teeReader{resp.Body, &text})
	require.NoError(t, err)
	out := map[string]metric{}
	for name, f := range families {
		own := strings.HasPrefix(name, "tikv_") || strings.HasPrefix(name, "tinykv_") ||
			strings.HasPrefix(name, "pd_")
		if own {
			out[name] = metric{strings.ToLower(f.GetType().String()), f.GetHelp()}
		}
	}
	return out, []byte(text.String())
}

type teeReader struct {
	r interface{ Read([]byte) (int, error) }
	w *strings.Builder
}

func (t teeReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.w.Write(p[:n])
	return n, err
}

// TestMetricsAreDocumented: what both servers expose has a row of docs/metrics.md with its type and
// its words, and what is used by the rules and dashboards exists.
func TestMetricsAreDocumented(t *testing.T) {
	c := start(t, 3)
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	_, _, err := cl.Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	found := map[string]metric{}
	var texts [][]byte
	for _, p := range c.Stores {
		own, text := scrape(t, p.Status)
		maps.Copy(found, own)
		texts = append(texts, text)
	}
	own, text := scrape(t, c.Schedulers[0].Addr)
	maps.Copy(found, own)
	texts = append(texts, text)

	page, err := os.ReadFile(metricsPage)
	require.NoError(t, err)
	documented := map[string]metric{}
	for _, row := range metricRow.FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = metric{row[2], row[3]}
	}
	if *updateDocs {
		maps.Copy(documented, found)
		writeMetrics(t, string(page), documented)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		require.NotEmpty(t, found[name].help, name)
		require.Equal(t, found[name], documented[name],
			"%s: run go test ./tests/e2e -run TestMetricsAreDocumented -args -update", name)
	}
	all := string(slices.Concat(texts...))
	for _, kind := range []string{"raw_put", "raw_get"} { // requests on streams count
		require.Regexp(t,
			`tikv_grpc_msg_duration_seconds_count\{service="tinykv",type="`+kind+`"\} [1-9]`, all)
	}
	checkNames(t, texts)
}

// writeMetrics replaces the rows of the page.
func writeMetrics(t *testing.T, page string, rows map[string]metric) {
	t.Helper()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, rows[name].kind, rows[name].help)
	}
	const head = "| --- | --- | --- |\n"
	i := strings.Index(page, head)
	require.Positive(t, i)
	rest := page[i+len(head):]
	for strings.HasPrefix(rest, "|") {
		_, rest, _ = strings.Cut(rest, "\n")
	}
	require.NoError(t, os.WriteFile(metricsPage, []byte(page[:i+len(head)]+b.String()+rest), 0o644))
}

// keptNames are names of TiKV and PD that Prometheus' linter dislikes: existing boards ask for
// them.
var keptNames = []string{"tikv_raftstore_region_count", "pd_schedule_operators_count",
	"pd_hbstream_region_message", "pd_scheduler_region_heartbeat",
	"pd_scheduler_store_heartbeat", "pd_tso_handled"}

// checkNames has Prometheus' own linter look at the metrics, where it is installed.
func checkNames(t *testing.T, texts [][]byte) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not installed: names are not checked")
		return
	}
	for _, text := range texts {
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(string(text))
		out, _ := cmd.CombinedOutput()
		for line := range strings.Lines(string(out)) {
			name, _, _ := strings.Cut(line, " ")
			require.True(t, strings.HasPrefix(name, "etcd_") || slices.Contains(keptNames, name),
				line)
		}
	}
}
