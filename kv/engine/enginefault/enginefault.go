// Package enginefault makes an engine fail on purpose, for tests. Wrap counts the operations of any
// engine through a faultfs.Controller and lets it answer with errors; the in-memory engine
// (memengine) additionally knows what was synced, so that Crash gives back what a crash leaves.
//
// A crash-enumeration test over raft log and engine:
//
//	ctl := &faultfs.Controller{}
//	files, mem := faultfs.NewMemFS(ctl), memengine.New()
//	... open the store on raftlog.Options{FS: files, Manual: true} and enginefault.Wrap(mem, ctl),
//	    run the scenario, remember ctl.Count(); then for each k: ctl.Set(faultfs.CrashAt(k)), run,
//	    and open again on files.Crash(loss, rng, nil) and mem.Crash(loss, rng) ...
package enginefault

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/faultfs"
)

type faulty struct {
	engine.Engine
	ctl *faultfs.Controller
}

// Wrap passes each Write ("commit", or "commit-sync") and Sync ("sync") of e through ctl, as layer
// "engine". An operation that is refused has no effect. With SetReads, reads pass through ctl as
// well: each Get ("get"), each positioning of an iterator ("seek") and each move ("next").
func Wrap(e engine.Engine, ctl *faultfs.Controller) engine.Engine {
	return &faulty{e, ctl}
}

func (f *faulty) NativeRangeDelete() bool {
	d, ok := f.Engine.(engine.RangeDeleter)
	return ok && d.NativeRangeDelete()
}

func (f *faulty) Write(b engine.Batch, sync bool) error {
	kind := "commit"
	if sync {
		kind = "commit-sync"
	}
	if err := f.ctl.Step("engine", kind, ""); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return f.Engine.Write(b, sync)
}

func (f *faulty) Sync() error {
	if err := f.ctl.Step("engine", "sync", ""); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return f.Engine.Sync()
}
