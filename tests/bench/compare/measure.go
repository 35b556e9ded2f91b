package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

// bench gathers the figures of all rounds.
type bench struct {
	o        options
	progress io.Writer
	json     io.Writer // may be nil
	round    int
	value    int // bytes of a value
	figures  figures
	other    []float64 // cores that other processes used, per cell
}

// oneRound measures each system once; every other round goes the other way about, so that a machine
// that gets slower does not favour one.
func (b *bench) oneRound(ctx context.Context) error {
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"etcd", b.etcd}, {"tinykv", b.tinykv}, {"txn", b.txn}, {"ideal", b.ideal},
		{"echo", b.echo},
		{"etcd", b.etcdFailover}, {"tinykv", b.tinykvFailover},
	}
	if b.round%2 == 1 {
		steps[0], steps[1] = steps[1], steps[0]
	}
	const lastLoad = 4 // failovers follow
	for i, s := range steps {
		if !b.o.measures(s.name) || i > lastLoad && !b.o.wants(extraFailover) ||
			i <= lastLoad && b.o.only(extraFailover) {
			continue
		}
		fmt.Fprintf(b.progress, "round %d of %d: %s\n", b.round+1, b.o.rounds, s.name)
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// startLimit bounds a start, a split and the like.
const startLimit = time.Minute

// start starts a system and measures how soon it takes a write; also waits for its replicas.
func (b *bench) start(ctx context.Context, s rig.System, m rig.Mode) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	began := time.Now()
	if err := s.Start(ctx); err != nil {
		return err
	}
	if err := rig.FirstPut(ctx, s, m); err != nil {
		return err
	}
	b.figures.add(b.round, time.Since(began).Seconds(), s.Name(), extraStart, "first-put")
	if t, ok := s.(*rig.TinyKV); ok {
		if err := t.WaitReplicas(ctx, 3); err != nil {
			return err
		}
		b.figures.add(b.round, time.Since(began).Seconds(), s.Name(), extraStart, "replicas")
	}
	return nil
}

// idle measures the CPU share of a system that nobody uses.
func (b *bench) idle(ctx context.Context, s rig.System) error {
	if !b.o.wants(extraIdle) {
		return nil
	}
	if !pause(ctx, time.Second) { // what the start has left to do
		return ctx.Err()
	}
	share, err := cpuShare(ctx, s.PIDs(), b.o.idle)
	if err != nil {
		return err
	}
	b.figures.add(b.round, share*100, s.Name(), extraIdle, "percent")
	return nil
}

// cpuShare is how many cores processes use over a time.
func cpuShare(ctx context.Context, pids []int, took time.Duration) (float64, error) {
	began := time.Now()
	from, _, err := loadgen.ProcessUsage(pids...)
	if err != nil {
		return 0, err
	}
	if !pause(ctx, took) {
		return 0, ctx.Err()
	}
	to, _, err := loadgen.ProcessUsage(pids...)
	return (to - from) / time.Since(began).Seconds(), err
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// load writes all keys, with many workers as it is not measured.
func (b *bench) load(ctx context.Context, s rig.System) error {
	d, err := s.Open(ctx, rig.Mode{})
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = loadgen.Run(ctx, d, b.config(s, cell{"load", 128}))
	return err
}

func (b *bench) config(s rig.System, c cell) loadgen.Config {
	return loadgen.Config{
		Phase: c.phase, Workers: c.workers, Keys: b.o.keys, KeySize: 16, ValueSize: b.value,
		ScanLimit: 100,
		Warmup:    b.o.warmup, Duration: b.o.duration, PIDs: s.PIDs(),
	}
}

// cells runs loads one after another; series names them in the figures.
func (b *bench) cells(
	ctx context.Context, s rig.System, series, prefix string, m rig.Mode, cells []cell,
) error {
	for _, c := range cells {
		if !b.o.wants(prefix + c.String()) {
			continue
		}
		if err := b.cell(ctx, s, series, m, c); err != nil {
			return fmt.Errorf("%s %s: %w", series, c, err)
		}
	}
	return nil
}

func (b *bench) cell(ctx context.Context, s rig.System, series string, m rig.Mode, c cell) error {
	d, err := s.Open(ctx, m)
	if err != nil {
		return err
	}
	defer d.Close()
	conf := b.config(s, c)
	profiled := func() error { return nil }
	if t, ok := s.(*rig.TinyKV); ok && b.o.profile != "" {
		if conf.OnMeasure, profiled, err = b.profile(ctx, t, series, c); err != nil {
			return err
		}
	}
	res, err := loadgen.Run(ctx, d, conf)
	if err != nil {
		return err
	}
	if err := profiled(); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	b.note(series, c, res)
	return nil
}

// note takes a result into the figures.
func (b *bench) note(series string, c cell, res loadgen.Result) {
	add := func(v float64, what string) { b.figures.add(b.round, v, series, c.String(), what) }
	add(res.OpsPerS, "ops")
	add(float64(res.P50Us)/1000, "p50")
	add(float64(res.P99Us)/1000, "p99")
	add(float64(res.P99Us)/float64(max(1, res.P50Us)), "p99/p50")
	add(float64(res.Errors), "errors")
	if res.ServerCPUPerKop != nil {
		// seconds per thousand are milliseconds per one: to microseconds
		add(*res.ServerCPUPerKop*1000, "cpu")
	}
	if res.OtherCPU != nil {
		b.other = append(b.other, *res.OtherCPU)
	}
	if b.json != nil {
		line := struct {
			Series string `json:"series"`
			Round  int    `json:"round"`
			loadgen.Result
		}{series, b.round + 1, res}
		_ = json.NewEncoder(b.json).Encode(line) // the report does not depend on it
	}
}

// profile makes the hook that begins a profile of the leader, and the wait for it.
func (b *bench) profile(
	ctx context.Context, t *rig.TinyKV, series string, c cell,
) (hook func(), wait func() error, err error) {
	store, err := t.Leader(ctx)
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(b.o.profile, fmt.Sprintf("%s-%s-round%d.pprof", series, c, b.round+1))
	done := make(chan error, 1)
	return func() { done <- rig.Profile(ctx, store, b.o.duration, file) }, func() error {
		return <-done
	}, nil
}

// failover starts a system without data, kills the leader's process under four writers, and
// measures how soon a write succeeds that began after it.
func (b *bench) failover(ctx context.Context, s rig.System) error {
	defer s.Stop()
	sctx, cancelStart := context.WithTimeout(ctx, startLimit)
	defer cancelStart()
	if err := s.Start(sctx); err != nil {
		return err
	}
	if err := rig.FirstPut(sctx, s, rig.Mode{}); err != nil {
		return err
	}
	if t, ok := s.(*rig.TinyKV); ok {
		if err := t.WaitReplicas(sctx, 3); err != nil {
			return err
		}
	}
	d, err := s.Open(ctx, rig.Mode{Failover: true})
	if err != nil {
		return err
	}
	defer d.Close()
	leader, err := s.Leader(ctx)
	if err != nil {
		return err
	}
	took, err := killLeader(sctx, d, leader)
	if err == nil {
		b.figures.add(b.round, took.Seconds(), s.Name(), extraFailover, "seconds")
	}
	return err
}

// killLeader measures under four writers the time from the kill to the first success.
func killLeader(
	ctx context.Context, d loadgen.Driver, leader *localcluster.Process,
) (time.Duration, error) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var killed atomic.Int64 // nanoseconds since began; 0: not yet
	began := time.Now()
	warm, first := make(chan struct{}), make(chan time.Duration, 1)
	var warmed sync.Once
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		// Ends with wctx.
		go func() {
			defer wg.Done()
			for n := uint64(0); wctx.Err() == nil; n++ {
				at := time.Since(began)
				pctx, cancel := context.WithTimeout(wctx, 300*time.Millisecond)
				err := d.Put(pctx, loadgen.Key(uint64(w)<<32+n%1000, 16), []byte("failover"))
				cancel()
				k := time.Duration(killed.Load())
				switch {
				case err != nil:
				case k > 0 && at > k:
					select {
					case first <- time.Since(began) - k:
					default: // another was first
					}
				case n > 100:
					warmed.Do(func() { close(warm) })
				}
			}
		}()
	}
	defer wg.Wait()
	defer cancel()
	select {
	case <-warm:
	case <-wctx.Done():
		return 0, fmt.Errorf("writes before the kill: %w", wctx.Err())
	}
	if !pause(wctx, rand.N(100*time.Millisecond)) { // not always at the same point of a heartbeat
		return 0, wctx.Err()
	}
	killed.Store(int64(time.Since(began)))
	leader.Kill()
	select {
	case took := <-first:
		return took, nil
	case <-wctx.Done():
		return 0, fmt.Errorf("no write after the kill: %w", wctx.Err())
	}
}
