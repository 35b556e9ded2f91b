package loadgen

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a store in memory whose operations take a given time.
type fake struct {
	takes func(op Op, n int) (time.Duration, error) // n counts operations from 0
	mu    sync.Mutex
	data  map[string][]byte
	done  [opCount]int
	begun int
}

func newFake(takes time.Duration) *fake {
	return &fake{data: map[string][]byte{}, takes: func(Op, int) (time.Duration, error) {
		return takes, nil
	}}
}

func (f *fake) op(ctx context.Context, op Op) error {
	f.mu.Lock()
	took, err := f.takes(op, f.begun)
	f.begun++
	f.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.done[op]++
	}
	return err
}

func (f *fake) Name() string { return "fake" }
func (f *fake) Close()       {}
func (f *fake) Put(ctx context.Context, key, value []byte) error {
	f.mu.Lock()
	f.data[string(key)] = bytes.Clone(value)
	f.mu.Unlock()
	return f.op(ctx, OpPut)
}

func (f *fake) Read(ctx context.Context, key []byte) ([]byte, error) {
	f.mu.Lock()
	v := f.data[string(key)]
	f.mu.Unlock()
	return v, f.op(ctx, OpGet)
}
func (f *fake) Scan(ctx context.Context, _ []byte, limit int) (int, error) {
	return limit, f.op(ctx, OpScan)
}
func (f *fake) Delete(ctx context.Context, _ []byte) error { return f.op(ctx, OpDelete) }

func config(phase string) Config {
	return Config{
		Phase: phase, Workers: 4, Keys: 500, KeySize: 16, ValueSize: 64, ScanLimit: 10,
		Warmup: time.Second, Duration: 3 * time.Second,
	}
}

// TestLoadWritesEveryKeyOnce: with the sizes asked for, and values that do not compress.
func TestLoadWritesEveryKeyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(time.Millisecond)
		res, err := Run(t.Context(), f, config("load"))
		require.NoError(t, err)
		require.EqualValues(t, 500, res.Ops)
		require.Equal(t, 500, f.done[OpPut])
		require.Len(t, f.data, 500)
		require.InDelta(t, 0.125, res.Seconds, 0.001, "500 puts of 1 ms by 4 workers")
		var all []byte
		for k, v := range f.data {
			require.Len(t, k, 16)
			require.Len(t, v, 64)
			all = append(all, v...)
		}
		var packed bytes.Buffer
		w, err := flate.NewWriter(&packed, flate.BestCompression)
		require.NoError(t, err)
		_, err = w.Write(all)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		require.Greater(t, packed.Len(), len(all)*99/100)
	})
}

// TestLoadGivesUp: a load that cannot write a key ends there, and does not go on to try all the
// others.
func TestLoadGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(0)
		f.takes = func(_ Op, n int) (time.Duration, error) {
			if n >= 100 {
				return 20 * time.Second, errors.New("nobody answers")
			}
			return time.Millisecond, nil
		}
		begin := time.Now()
		res, err := Run(t.Context(), f, config("load"))
		require.ErrorContains(t, err, "load: nobody answers")
		require.EqualValues(t, 100, res.Ops)
		require.Less(t, time.Since(begin), 21*time.Second)
	})
}

// TestMeasuredTime: the warm-up counts for nothing, and what the end cuts off is no operation and
// no error.
func TestMeasuredTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(7 * time.Millisecond) // divides neither the warm-up nor the measured time
		measured := make(chan time.Time, 1)
		c := config("put")
		c.OnMeasure = func() { measured <- time.Now() }
		begin := time.Now()
		res, err := Run(t.Context(), f, c)
		require.NoError(t, err)
		require.Equal(t, 4*time.Second, time.Since(begin))
		require.Equal(t, time.Second, (<-measured).Sub(begin))
		require.InDelta(t, 4*3000/7, res.Ops, 4)
		require.InDelta(t, 4*4000/7, f.done[OpPut], 4)
		require.Zero(t, res.Errors)
		require.Equal(t, 3.0, res.Seconds)
		require.InDelta(t, 7000, res.P50Us, 10)
		require.InDelta(t, 7000, res.MeanUs, 10)
	})
}

func TestPercentiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(0)
		// every tenth takes 5 ms, every hundredth 50 ms
		f.takes = func(_ Op, n int) (time.Duration, error) {
			switch {
			case n%100 == 99:
				return 50 * time.Millisecond, nil
			case n%10 == 9:
				return 5 * time.Millisecond, nil
			}
			return time.Millisecond, nil
		}
		c := config("get")
		c.Workers = 1
		res, err := Run(t.Context(), f, c)
		require.NoError(t, err)
		require.InDelta(t, 1000, res.P50Us, 5)
		require.InDelta(t, 5000, res.P95Us, 10)
		require.InDelta(t, 50000, res.P999Us, 50)
		require.InDelta(t, 50000, res.MaxUs, 50)
	})
}

// TestPhases: what is done is what the phase says.
func TestPhases(t *testing.T) {
	for phase, ops := range map[string][]Op{
		"put": {OpPut}, "get": {OpGet}, "scan": {OpScan}, "delete": {OpDelete},
		"mixed": {OpPut, OpGet},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(time.Millisecond)
			_, err := Run(t.Context(), f, config(phase))
			require.NoError(t, err)
			total := 0
			for _, n := range f.done {
				total += n
			}
			for op := range opCount {
				want := 0.0
				if slices.Contains(ops, op) {
					want = 1 / float64(len(ops))
				}
				require.InDelta(t, want, float64(f.done[op])/float64(total), 0.03,
					"%s: share of %s", phase, op)
			}
		})
	}
}

// TestRate: the limit holds for all workers together, and after a stall the latency of what was due
// meanwhile counts from when it was due.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(time.Millisecond)
		c := config("put")
		c.Rate = 100
		res, err := Run(t.Context(), f, c)
		require.NoError(t, err)
		require.InDelta(t, 300, res.Ops, 1)
		require.InDelta(t, 1000, res.MaxUs, 5)

		f = newFake(0)
		f.takes = func(_ Op, n int) (time.Duration, error) {
			if n == 150 { // at 1.5 s
				return time.Second, nil
			}
			return time.Millisecond, nil
		}
		c.Workers = 1
		res, err = Run(t.Context(), f, c)
		require.NoError(t, err)
		require.InDelta(t, 300, res.Ops, 2)
		require.Greater(t, res.P95Us, int64(700_000),
			"a third of the puts were due during the stall")
	})
}

func TestErrors(t *testing.T) {
	broken := errors.New("broken")
	synctest.Test(t, func(t *testing.T) {
		f := newFake(0)
		f.takes = func(_ Op, n int) (time.Duration, error) {
			if n%4 == 0 {
				return time.Millisecond, broken
			}
			return time.Millisecond, nil
		}
		res, err := Run(t.Context(), f, config("put"))
		require.NoError(t, err)
		require.InDelta(t, res.Ops/3, res.Errors, 5)
		require.Equal(t, "broken", res.FirstError)

		f.takes = func(Op, int) (time.Duration, error) { return time.Millisecond, broken }
		_, err = Run(t.Context(), f, config("put"))
		require.ErrorIs(t, err, broken)

		f.takes = func(Op, int) (time.Duration, error) { return time.Hour, nil }
		_, err = Run(t.Context(), f, config("put"))
		require.ErrorIs(t, err, ErrNothingDone)

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		res, err = Run(ctx, newFake(time.Millisecond), config("put"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.InDelta(t, 2-config("put").Warmup.Seconds(), res.Seconds, 0.1,
			"what was measured until then")
		require.InDelta(t, 1000*float64(config("put").Workers), res.OpsPerS, 50)
	})
}

func TestValidate(t *testing.T) {
	good := config("put")
	require.NoError(t, good.Validate())
	for name, spoil := range map[string]func(*Config){
		"phase": func(c *Config) { c.Phase = "pet" }, "workers": func(c *Config) { c.Workers = 0 },
		"keys":       func(c *Config) { c.Keys = 0 },
		"key size":   func(c *Config) { c.KeySize = 7 },
		"value size": func(c *Config) { c.ValueSize = -1 },
		"duration":   func(c *Config) { c.Duration = 0 },
		"warm-up":    func(c *Config) { c.Warmup = -1 }, "zipf": func(c *Config) { c.Zipf = 1 },
		"limit": func(c *Config) { c.ScanLimit = 0 }, "rate": func(c *Config) { c.Rate = -1 },
	} {
		c := good
		spoil(&c)
		require.Error(t, c.Validate(), name)
	}
}

// TestResultSchema: the names of the JSON form are what other programs read.
func TestResultSchema(t *testing.T) {
	cpu, rss := 0.5, int64(1<<20)
	full := Result{Driver: "x", Phase: "put", Zipf: 0.9, ServerCPUPerKop: &cpu, ServerRSS: &rss,
		ServerWritten:   &Written{Total: 5},
		ClientCPUPerKop: &cpu, OtherCPU: &cpu, FirstError: "e"}
	names := func(r Result) []string {
		data, err := json.Marshal(r)
		require.NoError(t, err)
		var m map[string]any
		require.NoError(t, json.Unmarshal(data, &m))
		return slices.Sorted(maps.Keys(m))
	}
	always := []string{
		"driver", "errors", "key_size", "keys", "max_us", "mean_us", "ops", "ops_per_s", "p50_us",
		"p95_us", "p999_us", "p99_us",
		"phase", "seconds", "value_size", "workers",
	}
	require.Equal(t, always, names(Result{}))
	sometimes := []string{"client_cpu_s_per_kop", "first_error", "other_cpu_cores",
		"server_cpu_s_per_kop", "server_rss_bytes",
		"server_written_bytes_per_op", "zipf"}
	require.Equal(t, slices.Sorted(slices.Values(append(sometimes, always...))), names(full))
}

func TestTable(t *testing.T) {
	cpu, rss, written := 0.1234, int64(100<<20), Written{Total: 812.3}
	var b strings.Builder
	table := NewTable(&b)
	require.NoError(t, table.Add(Result{Phase: "put", OpsPerS: 1234.4, P99Us: 1500}))
	require.Equal(t, 2, strings.Count(b.String(), "\n"), "a row is printed at once")
	require.NoError(t,
		table.Add(Result{
			Phase: "get", ServerCPUPerKop: &cpu, ServerRSS: &rss, ServerWritten: &written,
		}))
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	require.Len(t, lines, 3)
	require.Equal(t, len(tableHead), len(strings.Fields(lines[1])))
	require.Contains(t, lines[1], "1234")
	require.Contains(t, lines[1], "1.50")
	require.Equal(t, 4, strings.Count(lines[1], "n/a"))
	require.Equal(t, []string{"0.1234", "100", "812", "n/a"}, strings.Fields(lines[2])[11:])
	require.Equal(t, strings.Index(lines[0], "P99"), strings.Index(lines[1], "1.50"),
		"columns are aligned")
}
