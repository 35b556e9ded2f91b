package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// Bins are where the programs are.
type Bins struct {
	TinyKV string // directory of tinykv-server and tinyscheduler
	Etcd   string // the program
	Ideal  string // the program
}

// DefaultBins are the places that the Makefile builds to, under dir.
func DefaultBins(dir string) Bins {
	return Bins{
		TinyKV: dir, Etcd: filepath.Join(dir, "bench", "etcd"),
		Ideal: filepath.Join(dir, "bench", "ideal"),
	}
}

// Check tells which programs are missing.
func (b Bins) Check() error {
	var errs []error
	for _, p := range []string{
		filepath.Join(b.TinyKV, "tinykv-server"), filepath.Join(b.TinyKV, "tinyscheduler"), b.Etcd,
		b.Ideal,
	} {
		if _, err := os.Stat(p); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: use make", p))
		}
	}
	return errors.Join(errs...)
}

// Mode says how a driver talks to a system.
type Mode struct {
	Unary bool // TinyKV: one RPC a request; the others know nothing else
	Conns int  // connections per server; 0: the usual number
	Keys  int  // size of the key space, for loadgen.EtcdOptions
	Txn   bool // etcd: puts are transactions
	// Failover makes the driver find another leader soon: requests go to all members, attempts are
	// short, and an unknown outcome is an error at once.
	Failover bool
}

// System is a running cluster of one kind. Not safe for concurrent use, but its drivers are.
type System interface {
	Name() string
	// Start starts the processes and returns when they accept connections.
	Start(ctx context.Context) error
	Open(ctx context.Context, m Mode) (loadgen.Driver, error)
	// PIDs are the processes that run.
	PIDs() []int
	// Leader is the process that leads the data's only group.
	Leader(ctx context.Context) (*localcluster.Process, error)
	// Stop ends the processes and removes the data.
	Stop()
}

// base is what all systems share.
type base struct {
	dir   string
	procs []*localcluster.Process
}

func newBase(kind string) (base, error) {
	dir, err := os.MkdirTemp("", "tinykv-bench-"+kind+"-")
	return base{dir: dir}, err
}

func (b *base) Start(ctx context.Context) error {
	for _, p := range b.procs {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range b.procs {
		if err := p.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *base) PIDs() []int { return pids(b.procs) }

func pids(procs []*localcluster.Process) []int {
	var out []int
	for _, p := range procs {
		if pid := p.PID(); pid != 0 {
			out = append(out, pid)
		}
	}
	return out
}

// Stop kills: the data is thrown away, so that an orderly end would only take time.
func (b *base) Stop() {
	for _, p := range b.procs {
		p.Kill()
	}
	_ = os.RemoveAll(b.dir) // a temporary directory
}

func byAddr(procs []*localcluster.Process, addr string) (*localcluster.Process, error) {
	for _, p := range procs {
		if p.Addr == addr {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no process serves %s", addr)
}

// poll repeats f until it succeeds or ctx ends; then the last error is returned. If f takes long,
// it is asked less often, so that looking does not become a load of its own.
func poll(ctx context.Context, every time.Duration, f func() error) error {
	for {
		began := time.Now()
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(max(every, 5*time.Since(began))):
		}
	}
}

// FirstPut tries one put until it succeeds, at any member.
func FirstPut(ctx context.Context, s System, m Mode) error {
	m.Failover = true
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return poll(ctx, time.Millisecond, func() error {
		d, err := s.Open(ctx, m)
		if err != nil {
			return err
		}
		defer d.Close()
		return poll(ctx, time.Millisecond, func() error {
			pctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			return d.Put(pctx, loadgen.Key(0, 16), []byte("first"))
		})
	})
}
