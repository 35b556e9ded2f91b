package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	placement "github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

// trouble is something that happens to a cluster until ctx ends; run tells what came of it.
type trouble struct {
	name string
	run  func(ctx context.Context, s *rig.TinyKV) (what string, err error)
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// snapshots takes a follower away from one region after another; the placement service puts a new
// one in its place, which gets a snapshot.
func snapshots(ctx context.Context, s *rig.TinyKV) (string, error) {
	removed := 0
	for n := 0; ; n++ {
		regions, err := s.Regions(ctx)
		if ctx.Err() != nil {
			return fmt.Sprintf("%d replicas replaced", removed),
				nil //nolint:nilerr // the time is over
		}
		if err != nil {
			return "", err
		}
		r := regions[n%len(regions)]
		if store := follower(r); store != 0 && r.Voters() == 3 && len(r.PendingPeers) == 0 {
			// Refused while the region has another plan.
			if s.Post(ctx, fmt.Sprintf("/regions/%d/remove-peer", r.Meta.Id),
				map[string]uint64{"from": store}) == nil {
				removed++
			}
		}
		pause(ctx, 500*time.Millisecond)
	}
}

// follower is a store that holds the region and does not lead it, 0 if there is none or no leader.
func follower(r *placement.Region) uint64 {
	for _, p := range r.Meta.Peers {
		if r.Leader.GetId() != 0 && p.Id != r.Leader.Id {
			return p.StoreId
		}
	}
	return 0
}

// transfers asks for 20 changes of leaders a second, over all regions in turn.
func transfers(ctx context.Context, s *rig.TinyKV) (string, error) {
	tick := time.NewTicker(time.Second / 20)
	defer tick.Stop()
	planned, refused, moved := 0, 0, 0
	leaders := map[uint64]uint64{}
	began := time.Now()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return fmt.Sprintf("%d planned, %d refused, %d seen done in %.1f s", planned, refused,
				moved, time.Since(began).Seconds()), nil
		case <-tick.C:
		}
		regions, err := s.Regions(ctx)
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			return "", err
		}
		for _, r := range regions {
			if old := leaders[r.Meta.Id]; old != 0 && old != r.Leader.GetId() {
				moved++
			}
			leaders[r.Meta.Id] = r.Leader.GetId()
		}
		r := regions[n%len(regions)]
		if s.TransferLeader(ctx, r.Meta.Id, follower(r)) == nil {
			planned++
		} else if ctx.Err() == nil {
			refused++
		}
	}
}

const rest = 500 * time.Millisecond // before something happens to a store

// restart stops a store in order and starts it again.
func restart(ctx context.Context, s *rig.TinyKV) (string, error) {
	if !pause(ctx, rest) {
		return "", errors.New("the load ended before the restart")
	}
	p, err := s.Leader(ctx) // of one of the regions at least
	if err != nil {
		return "", err
	}
	began := time.Now()
	p.Stop(10 * time.Second)
	stopped := time.Since(began)
	if err := p.Start(); err != nil {
		return "", err
	}
	if err := p.WaitReady(context.WithoutCancel(ctx)); err != nil {
		return "", err
	}
	return fmt.Sprintf("stopped in %.1f s, back after %.1f s", stopped.Seconds(),
		time.Since(began).Seconds()), nil
}

// kill ends a store without warning and starts it again after a while.
func kill(ctx context.Context, s *rig.TinyKV) (string, error) {
	if !pause(ctx, rest) {
		return "", errors.New("the load ended before the kill")
	}
	p, err := s.Leader(ctx) // of one of the regions at least
	if err != nil {
		return "", err
	}
	began := time.Now()
	p.Kill()
	pause(ctx, 2*time.Second)
	if err := p.Start(); err != nil {
		return "", err
	}
	if err := p.WaitReady(context.WithoutCancel(ctx)); err != nil {
		return "", err
	}
	return fmt.Sprintf("back after %.1f s", time.Since(began).Seconds()), nil
}

// compactions looks on: the cluster's configuration makes them. It counts the tables that appear.
func compactions(ctx context.Context, s *rig.TinyKV) (string, error) {
	seen := map[string]bool{}
	first := -1
	for {
		for _, p := range s.Stores {
			if err := tables(filepath.Join(p.DataDir, "kv"), seen); err != nil {
				return "", err
			}
		}
		if first < 0 {
			first = len(seen)
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Sprintf("%d tables written", len(seen)-first), nil
		}
	}
}

// tables adds the table files under a directory to seen; they come and go meanwhile.
func tables(dir string, seen map[string]bool) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if strings.HasSuffix(path, ".sst") {
			seen[path] = true
		}
		return err
	})
}
