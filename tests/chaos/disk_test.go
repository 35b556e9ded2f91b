package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// diskFile says how the disk of a store behaves; see TINYKV_CHAOS_DISK in package node.
func diskFile(p *localcluster.Process) string { return p.DataDir + ".disk" }

// undoDir keeps what it takes to lose what a store has not synced.
func undoDir(p *localcluster.Process) string { return p.DataDir + ".undo" }

func ballast(p *localcluster.Process) string { return filepath.Join(p.DataDir, "ballast") }

func (h *history) healDisk(p *localcluster.Process) {
	_ = os.Remove(diskFile(p)) // usually there is none
	_ = os.Remove(ballast(p))
}

// diskFull takes all the space that a store may use, for a few seconds.
func (h *history) diskFull(rng *rand.Rand) error {
	p := h.anyStore(rng)
	f, err := os.Create(ballast(p))
	if err != nil {
		return err // just being wiped
	}
	defer h.healDisk(p)
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 512<<20); err != nil {
		return err
	}
	var status struct {
		DiskFull bool `json:"disk_full"`
	}
	end := time.Now().Add(5 * time.Second)
	for time.Now().Before(end) && !status.DiskFull {
		_ = fetch("http://"+p.Status+"/status", &status) // may be down
		time.Sleep(50 * time.Millisecond)                // polls
	}
	if !status.DiskFull {
		return fmt.Errorf("%s does not say that its disk is full", p.Name)
	}
	time.Sleep(between(rng, 500, 4000))
	return nil
}

func (h *history) diskSlow(rng *rand.Rand) error {
	p := h.anyStore(rng)
	defer h.healDisk(p)
	if err := os.WriteFile(diskFile(p), []byte(between(rng, 100, 700).String()),
		0o600); err != nil {
		return err
	}
	time.Sleep(between(rng, 1000, 4000))
	return nil
}

// diskFail lets syncs of the raft log fail: the store must end rather than go on with what may be
// lost.
func (h *history) diskFail(rng *rand.Rand) error {
	p := h.anyStore(rng)
	h.busy.Lock()
	defer h.busy.Unlock()
	if !p.Running() {
		return errors.New("down already")
	}
	h.broken.Store(p.Name, true)
	if err := os.WriteFile(diskFile(p), []byte("fail"), 0o600); err != nil {
		return err
	}
	end := time.Now().Add(10 * time.Second)
	for time.Now().Before(end) && p.Running() {
		time.Sleep(20 * time.Millisecond) // polls
	}
	bitten := !p.Running()
	h.healDisk(p)
	h.broken.Delete(p.Name)
	h.start(p)
	if !bitten {
		return fmt.Errorf("%s goes on although its disk fails", p.Name)
	}
	return nil
}
