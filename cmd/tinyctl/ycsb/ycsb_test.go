package ycsb

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func props(t *testing.T, assignments ...string) Properties {
	t.Helper()
	p := Properties{}
	for _, a := range assignments {
		require.NoError(t, p.Set(a))
	}
	return p
}

func configure(t *testing.T, assignments ...string) Config {
	t.Helper()
	c, err := props(t, assignments...).Config()
	require.NoError(t, err)
	return c
}

func TestReadFile(t *testing.T) {
	p := Properties{}
	require.NoError(t,
		p.ReadFile(
			strings.NewReader(
				"# a comment\n! another\n\nrecordcount = 77\nworkload=core\n  fieldlength=5  \nx=a=b\n")))
	require.Equal(t,
		Properties{"recordcount": "77", "workload": "core", "fieldlength": "5", "x": "a=b"}, p)
	err := p.ReadFile(strings.NewReader("a=1\nnonsense\n"))
	require.ErrorContains(t, err, "line 2")
	require.Error(t, p.Set("=1"))
}

// TestPrecedence: what is given is above the workload's own, which is above the defaults.
func TestPrecedence(t *testing.T) {
	c := configure(t)
	require.Equal(t, []float64{0.95, 0.05, 0, 0, 0}, c.proportions)
	require.EqualValues(t, 1000, c.Records)
	c = configure(t, "workload=a", "updateproportion=0.7", "recordcount=5")
	require.Equal(t, []float64{0.5, 0.7, 0, 0, 0}, c.proportions)
	require.Equal(t, "zipfian", c.Distribution)
	require.EqualValues(t, 5, c.Records)
	require.Equal(t, 100, configure(t, "workload=workloade").MaxScan)
	require.Contains(t,
		configure(t, "workload=site.ycsb.workloads.CoreWorkload", "unknown=1").String(),
		`"unknown"="1"`)
}

func TestPresets(t *testing.T) {
	require.Len(t, presets, 6)
	for letter := range presets {
		sum := 0.0
		for _, p := range configure(t, "workload="+letter).proportions {
			sum += p
		}
		require.InDelta(t, 1, sum, 1e-9, letter)
	}
}

func TestBadProperties(t *testing.T) {
	for _, bad := range []string{
		"workload=z", "recordcount=0", "recordcount=1e3", "operationcount=-1", "threadcount=0",
		"readproportion=-1", "readproportion=x",
		"requestdistribution=normal", "insertorder=up", "scanlengthdistribution=x",
		"writeallfields=perhaps", "insertstart=2000",
		"target=NaN", "fieldcount=0", "maxscanlength=0",
	} {
		_, err := props(t, bad).Config()
		require.Error(t, err, bad)
	}
	_, err := props(t, "workload=a", "readproportion=0", "updateproportion=0").Config()
	require.ErrorContains(t, err, "proportions")
}

// TestMix: operations come up in the workload's proportions.
func TestMix(t *testing.T) {
	for letter := range presets {
		w := newWorkload(configure(t, "workload="+letter))
		r := rand.New(rand.NewPCG(1, 2))
		var counts [kindCount]float64
		for range 20_000 {
			counts[w.next(r)] += 1.0 / 20_000
		}
		for k, p := range w.c.proportions {
			require.InDelta(t, p, counts[k], 0.01, "%s: %s", letter, kind(k))
		}
	}
}

func TestRecords(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, distribution := range []string{"uniform", "zipfian", "latest"} {
		w := newWorkload(configure(t, "requestdistribution="+distribution, "recordcount=100"))
		counts := make([]int, 100)
		for range 20_000 {
			counts[w.record(r)]++
		}
		most := slices.Index(counts, slices.Max(counts))
		switch distribution {
		case "uniform":
			require.Less(t, slices.Max(counts), 300)
			require.Greater(t, slices.Min(counts), 100)
		case "zipfian":
			require.Zero(t, most)
		case "latest":
			require.Equal(t, 99, most)
			w.seen.ack(w.seen.take())
			newest := 0
			for range 1000 {
				if w.record(r) == 100 {
					newest++
				}
			}
			require.Greater(t, newest, 100, "a new record is the most wanted one")
		}
	}
}

// TestSequence: a record is known once all before it are stored.
func TestSequence(t *testing.T) {
	s := newSequence(10)
	for want := int64(10); want < 14; want++ {
		require.Equal(t, want, s.take())
	}
	for _, step := range []struct{ ack, known int64 }{{12, 10}, {10, 11}, {11, 13}, {13, 14}} {
		s.ack(step.ack)
		require.Equal(t, step.known, s.acknowledged())
	}
}

func TestKeysInOrder(t *testing.T) {
	ordered, hashed := newWorkload(configure(t, "insertorder=ordered", "table=t")),
		newWorkload(configure(t))
	require.Equal(t, "t:user00000000000000000009", string(ordered.key(9)))
	var a, b []string
	for i := range int64(100) {
		a, b = append(a, string(ordered.key(i))), append(b, string(hashed.key(i)))
	}
	require.True(t, slices.IsSorted(a))
	require.False(t, slices.IsSorted(b))
	slices.Sort(b)
	require.Len(t, slices.Compact(b), 100)
}

// memory is a store.
type memory struct {
	mu    sync.Mutex
	data  map[string][]byte
	scans []int
	fail  error
}

func (m *memory) Put(_ context.Context, key, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		m.data[string(key)] = bytes.Clone(value)
	}
	return m.fail
}

func (m *memory) Read(_ context.Context, key []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.data[string(key)]), m.fail
}

func (m *memory) Scan(_ context.Context, _ []byte, limit int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.scans = append(m.scans, limit)
	return limit, m.fail
}

// counts reads the report: operations by kind, from the lines after the end.
func counts(t *testing.T, out string) map[string]int {
	t.Helper()
	_, final, ok := strings.Cut(out, "Run finished, takes ")
	require.True(t, ok, out)
	got := map[string]int{}
	line := regexp.MustCompile(
		`(?m)^([A-Z_]+) *- Takes\(s\): \d+\.\d, Count: (\d+), OPS: [\d.]+, Avg\(us\): \d+, Min\(us\): \d+, Max\(us\): \d+, ` +
			`50th\(us\): \d+, 90th\(us\): \d+, 95th\(us\): \d+, 99th\(us\): \d+, 99.9th\(us\): \d+, 99.99th\(us\): \d+$`)
	for _, m := range line.FindAllStringSubmatch(final, -1) {
		n, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		got[m[1]] = n
	}
	return got
}

func TestLoadAndRun(t *testing.T) {
	for letter := range presets {
		m := &memory{data: map[string][]byte{}}
		c := configure(t, "workload="+letter, "recordcount=300", "operationcount=2000",
			"threadcount=4", "fieldcount=3", "fieldlength=7")
		var out strings.Builder
		require.NoError(t, Load(t.Context(), m, c, &out))
		require.Len(t, m.data, 300)
		require.Equal(t, map[string]int{"INSERT": 300, "TOTAL": 300}, counts(t, out.String()))
		out.Reset()
		require.NoError(t, Run(t.Context(), m, c, &out))
		got := counts(t, out.String())
		require.Equal(t, 2000, got["TOTAL"], letter)
		for k, p := range c.proportions {
			require.InDelta(t, 2000*p, got[kind(k).String()], 130, "%s: %s", letter, kind(k))
		}
		require.Len(t, m.data, 300+got["INSERT"])
		require.Len(t, m.scans, got["SCAN"])
		for _, v := range m.data {
			require.Len(t, v, 21)
		}
		for _, n := range m.scans {
			require.True(t, n >= 1 && n <= 100, n)
		}
	}
}

// TestUpdateChangesOneField, and all of them with writeallfields.
func TestUpdateChangesOneField(t *testing.T) {
	for _, all := range []bool{false, true} {
		m := &memory{data: map[string][]byte{}}
		c := configure(t, "recordcount=1", "operationcount=1", "threadcount=1", "readproportion=0",
			"updateproportion=1",
			"fieldcount=4", "fieldlength=16", "writeallfields="+strconv.FormatBool(all))
		require.NoError(t, Load(t.Context(), m, c, &strings.Builder{}))
		key := newWorkload(c).key(0)
		before := m.data[string(key)]
		require.NoError(t, Run(t.Context(), m, c, &strings.Builder{}))
		changed := 0
		for at := 0; at < 64; at += 16 {
			if !bytes.Equal(before[at:at+16], m.data[string(key)][at:at+16]) {
				changed++
			}
		}
		require.Equal(t, map[bool]int{false: 1, true: 4}[all], changed)
	}
}

func TestFailures(t *testing.T) {
	m := &memory{data: map[string][]byte{}, fail: errors.New("no store")}
	var out strings.Builder
	err := Run(t.Context(), m, configure(t, "operationcount=10", "threadcount=2", "workload=c"),
		&out)
	require.ErrorIs(t, err, m.fail)
	require.Equal(t, map[string]int{"READ_ERROR": 10}, counts(t, out.String()))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Run(ctx, &memory{}, configure(t), &out), context.Canceled)
}

// TestInsertRange: a load may be one of several that share the records.
func TestInsertRange(t *testing.T) {
	m := &memory{data: map[string][]byte{}}
	c := configure(t, "recordcount=100", "insertstart=90", "threadcount=3")
	require.NoError(t, Load(t.Context(), m, c, &strings.Builder{}))
	require.Len(t, m.data, 10)
	c = configure(t, "recordcount=100", "insertstart=20", "insertcount=30", "threadcount=3")
	require.NoError(t, Load(t.Context(), m, c, &strings.Builder{}))
	require.Len(t, m.data, 40)
	require.Contains(t, m.data, string(newWorkload(c).key(49)))
	require.NotContains(t, m.data, string(newWorkload(c).key(50)))
}
