package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
)

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-rounds", "", "-quick", "", "-cells", "", "-systems", ""},
		io.Discard)
	require.NoError(t, err, "a Makefile passes empty variables")
	require.Equal(t, 3, o.rounds)
	require.True(t, o.wants("put@128") && o.wants(extraIdle) && o.measures("echo"))

	o, err = parseOptions([]string{
		"-rounds", "5", "-quick", "1", "-cells", "put@128,failover", "-systems", "tinykv",
	}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, 5, o.rounds)
	require.True(t, o.wants("put@128") && o.wants(extraFailover) && o.measures("tinykv"))
	require.False(t, o.wants("put@32") || o.wants(extraIdle) || o.measures("etcd"))
	require.False(t, o.only(extraFailover))

	for _, bad := range [][]string{
		{"-rounds", "0"}, {"-rounds", "x"}, {"-cells", "put@2"}, {"-systems", "redis"}, {"-what"},
	} {
		_, err := parseOptions(bad, io.Discard)
		require.Error(t, err, bad)
	}
}

// TestRatios: numbers are compared within a round, whatever is missing elsewhere.
func TestRatios(t *testing.T) {
	f := figures{}
	f.add(0, 10, "etcd", "put@1", "ops")
	f.add(1, 20, "etcd", "put@1", "ops")
	f.add(2, 0, "etcd", "put@1", "ops")
	f.add(1, 50, "tinykv", "put@1", "ops")
	f.add(0, 20, "tinykv", "put@1", "ops")
	f.add(2, 9, "tinykv", "put@1", "ops")
	f.add(3, 9, "tinykv", "put@1", "ops")
	require.ElementsMatch(t, []float64{2, 2.5}, f.ratios("tinykv/put@1/ops", "etcd/put@1/ops"))
	require.Empty(t, f.ratios("tinykv/put@1/ops", "echo/put@1/ops"))
	require.Equal(t, 2.25, median([]float64{2.5, 2}))
	require.Equal(t, 3.0, median([]float64{9, 3, 1}))
}

func TestVerdict(t *testing.T) {
	up := goal{goal: 1.5, stretch: 1.8}
	down := goal{goal: 0.55, stretch: 0.45, lower: true}
	for v, want := range map[float64]string{1.8: "stretch met", 1.7: "goal met", 1.4: "MISSED"} {
		require.Equal(t, want, up.verdict(v))
	}
	for v, want := range map[float64]string{0.45: "stretch met", 0.5: "goal met", 0.6: "MISSED"} {
		require.Equal(t, want, down.verdict(v))
	}
	require.Equal(t, "goal met", goal{goal: 1.3, lower: true}.verdict(0.1),
		"without a stretch goal")
	require.Empty(t, goal{}.verdict(1))
}

// TestGoalsNameFigures: every figure in the table of goals is one that is measured.
func TestGoalsNameFigures(t *testing.T) {
	measured := map[string]bool{}
	for _, series := range []string{
		"etcd", "etcd-txn", "tinykv", "txn", "txn-long", "stream", besideName, clientgoName,
		"1region", "32regions", "ideal", "echo",
	} {
		cells := matrix
		switch series {
		case "stream":
			cells = streamCells
		case clientgoName, besideName:
			cells = clientgoCells
		case "etcd-txn":
			cells = etcdTxnCells
		case "txn":
			cells = txnCells
		case "txn-long":
			cells = txnLongCells
		case "1region", "32regions":
			cells = []cell{{"put", 128}}
		case "ideal":
			cells = idealCells
		case "echo":
			cells = echoCells
		}
		for _, c := range cells {
			for _, what := range []string{"ops", "p50", "p99", "p99/p50", "cpu"} {
				measured[series+"/"+c.String()+"/"+what] = true
			}
		}
	}
	for _, s := range []string{"etcd", "tinykv"} {
		measured[s+"/idle/percent"], measured[s+"/start/first-put"], measured[s+
			"/failover/seconds"], measured[s+"/rss/mib"] = true, true, true, true
	}
	measured["tinykv/start/replicas"], measured["tinykv+scheduler/rss/mib"] = true, true
	for _, g := range goals {
		require.True(t, measured[g.key], g.key)
		require.True(t, g.by == "" || measured[g.by], g.by)
	}
}

func TestReport(t *testing.T) {
	cpu := 0.05
	b := &bench{o: options{rounds: 2, keys: 10}, figures: figures{}}
	for round, ops := range []float64{1000, 3000} {
		b.round = round
		b.note("etcd", cell{"put", 128},
			loadgen.Result{OpsPerS: 500, P50Us: 1000, P99Us: 2000, OtherCPU: &cpu})
		b.note("tinykv", cell{"put", 128},
			loadgen.Result{
				OpsPerS: ops, P50Us: 1000, P99Us: 2000, ServerCPUPerKop: &cpu, Errors: 1,
			})
	}
	var out strings.Builder
	require.NoError(t, b.report(&out))
	text := strings.Join(strings.Fields(out.String()), " ")
	require.Contains(t, text, "put @128 / etcd 4.00x [2.00..6.00] >= 1.50x >= 1.80x stretch met")
	require.Contains(t, text, "put @128 p99 / p50 2.00 [2.00..2.00] <= 3.00 <= 2.50 stretch met")
	require.Contains(t, text, "tinykv put@128 2000 [1000..3000] 1.00 2.00 50.0 2")
	require.Contains(t, text, "etcd put@128 500 [500..500] 1.00 2.00 n/a 0")
	require.NotContains(t, text, "get @1")
}

// TestClientgoProgram: the end of the warm-up and the result are read from the program's output;
// what goes wrong is an error.
func TestClientgoProgram(t *testing.T) {
	script := func(text string) string {
		file := filepath.Join(t.TempDir(), "clientgo")
		require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
		return file
	}
	measured := make(chan struct{}, 2)
	res, err := runClientgo(t.Context(),
		script(
			`test "$1" = -x && echo measuring && echo '{"phase":"get","ops_per_s":5,"p99_us":7}'`),
		[]string{"-x"}, func() { measured <- struct{}{} })
	require.NoError(t, err)
	require.Equal(t, loadgen.Result{Phase: "get", OpsPerS: 5, P99Us: 7}, res)
	<-measured
	require.Empty(t, measured)
	for _, bad := range []string{
		"exit 0", "echo measuring", "echo no json", `echo '{"ops":1}'; exit 1`,
	} {
		_, err := runClientgo(t.Context(), script(bad), nil, nil)
		require.Error(t, err, bad)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = runClientgo(ctx, script("exec sleep 60"), nil, nil)
	require.Error(t, err)
}
