package main

import (
	"context"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

func (b *bench) etcd(ctx context.Context) error {
	s, err := rig.NewEtcd(b.o.bins)
	if err != nil {
		return err
	}
	defer s.Stop()
	if err := b.begin(ctx, s, rig.Mode{}); err != nil {
		return err
	}
	if err := b.cells(ctx, s, "etcd", "", rig.Mode{Keys: b.o.keys}, matrix); err != nil {
		return err
	}
	if err := b.memory("etcd", s.PIDs()); err != nil {
		return err
	}
	return b.cells(ctx, s, "etcd-txn", txnPrefix, rig.Mode{Txn: true}, etcdTxnCells)
}

// begin starts a system, looks at it idle, and loads it.
func (b *bench) begin(ctx context.Context, s rig.System, m rig.Mode) error {
	if err := b.start(ctx, s, m); err != nil {
		return err
	}
	if err := b.idle(ctx, s); err != nil {
		return err
	}
	return b.load(ctx, s)
}

// memory notes what the servers hold resident, in MiB.
func (b *bench) memory(series string, pids []int) error {
	_, rss, err := loadgen.ProcessUsage(pids...)
	if err != nil {
		return err
	}
	b.figures.add(b.round, float64(rss)/(1<<20), series, extraRSS, "mib")
	return nil
}

func (b *bench) tinykv(ctx context.Context) error {
	s, err := rig.NewTinyKV(b.o.bins, 3, "")
	if err != nil {
		return err
	}
	defer s.Stop()
	unary := rig.Mode{Unary: true}
	if err := b.begin(ctx, s, unary); err != nil {
		return err
	}
	if err := b.cells(ctx, s, "tinykv", "", unary, matrix); err != nil {
		return err
	}
	if err := b.memory("tinykv", s.StorePIDs()); err != nil {
		return err
	}
	if err := b.memory("tinykv+scheduler", s.PIDs()); err != nil {
		return err
	}
	if err := b.cells(ctx, s, "stream", streamPrefix, rig.Mode{}, streamCells); err != nil {
		return err
	}
	if err := b.clientgo(ctx, s); err != nil {
		return err
	}
	return b.regions(ctx, s)
}

// txn measures transactions in a cluster of their own: a cluster has one mode.
func (b *bench) txn(ctx context.Context) error {
	s, err := rig.NewTinyKVTxn(b.o.bins, 3)
	if err != nil {
		return err
	}
	defer s.Stop()
	b.value = txnValue
	defer func() { b.value = usualValue }()
	if err := b.start(ctx, s, rig.Mode{Unary: true}); err != nil {
		return err
	}
	if err := b.load(ctx, s); err != nil {
		return err
	}
	if err := b.cells(ctx, s, "txn", txnPrefix, rig.Mode{Unary: true}, txnCells); err != nil {
		return err
	}
	b.value = usualValue
	if err := b.load(ctx, s); err != nil {
		return err
	}
	return b.cells(ctx, s, "txn-long", longPrefix, rig.Mode{Unary: true}, txnLongCells)
}

// After a split leaders move to other stores: until nothing has moved for settleQuiet, at most for
// settleLimit.
const (
	settleQuiet = 1500 * time.Millisecond
	settleLimit = 8 * time.Second
)

// etcdFailover and tinykvFailover have clusters of their own.
func (b *bench) etcdFailover(ctx context.Context) error {
	s, err := rig.NewEtcd(b.o.bins)
	if err != nil {
		return err
	}
	return b.failover(ctx, s)
}

func (b *bench) tinykvFailover(ctx context.Context) error {
	s, err := rig.NewTinyKV(b.o.bins, 3, "")
	if err != nil {
		return err
	}
	return b.failover(ctx, s)
}

// regions compares one region with 32 in the same cluster.
func (b *bench) regions(ctx context.Context, s *rig.TinyKV) error {
	if !b.o.wants(extraRegions) {
		return nil
	}
	c, unary := cell{"put", 128}, rig.Mode{Unary: true}
	if err := b.cell(ctx, s, "1region", unary, c); err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.Split(sctx, loadgen.SplitKeys(32, 16)); err != nil {
		return err
	}
	if err := s.WaitSettled(sctx, settleQuiet, settleLimit); err != nil {
		return err
	}
	return b.cell(ctx, s, "32regions", unary, c)
}

func (b *bench) ideal(ctx context.Context) error { return b.yardstick(ctx, "ideal") }
func (b *bench) echo(ctx context.Context) error  { return b.yardstick(ctx, "echo") }

func (b *bench) yardstick(ctx context.Context, name string) error {
	s, err := rig.NewIdeal(b.o.bins, name == "echo")
	if err != nil {
		return err
	}
	defer s.Stop()
	if err := b.start(ctx, s, rig.Mode{}); err != nil {
		return err
	}
	if name == "echo" {
		return b.cells(ctx, s, name, "", rig.Mode{}, echoCells)
	}
	if err := b.load(ctx, s); err != nil {
		return err
	}
	return b.cells(ctx, s, name, "", rig.Mode{}, idealCells)
}
