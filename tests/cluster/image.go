package cluster

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
)

// Image is what a crash leaves on a store's disks. Use it once.
type Image struct {
	FS     *faultfs.MemFS
	Engine *memengine.Engine
	// Snapshots are the files of raft snapshots by name.
	Snapshots map[string][]byte
}

// Again is a copy, to be used in the image's place.
func (im Image) Again() Image {
	return Image{
		im.FS.Crash(faultfs.KeepAll, nil, nil), im.Engine.Crash(faultfs.KeepAll, nil), im.Snapshots,
	}
}

// Replace puts an image in the place of the disks of a store that is down.
func (n *Node) Replace(im Image) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running {
		n.c.t.Fatalf("store %d is running", n.ID)
	}
	n.engine, n.fs = im.Engine, im.FS
}

// Loss is what a crash does to what was not synced, for the raft log and the engine each for
// itself.
type Loss struct{ Log, Engine faultfs.Loss }

// Images takes the store's disks as a crash at this moment would leave them, once for each loss.
// The store goes on. It may be called by the store's own goroutines in mid-operation.
func (n *Node) Images(losses []Loss, rng *rand.Rand) ([]Image, error) {
	n.mu.Lock()
	fs, eng := n.fs, n.engine
	n.mu.Unlock()
	// Files may come and go meanwhile: those from before and from after are taken, so that whatever
	// the engine's image says is there.
	files := map[string][]byte{}
	if err := n.readSnapshots(files); err != nil {
		return nil, err
	}
	var out []Image
	for _, l := range losses {
		// The raft log first, see Crash.
		im := Image{FS: fs.Crash(l.Log, rng, nil)}
		im.Engine = eng.Crash(l.Engine, rng)
		im.Snapshots = files
		out = append(out, im)
	}
	return out, n.readSnapshots(files)
}

func (n *Node) readSnapshots(files map[string][]byte) error {
	names, err := filepath.Glob(filepath.Join(n.dir, "rev_*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) || strings.HasSuffix(name, ".tmp") {
			continue
		}
		if err != nil {
			return err
		}
		files[filepath.Base(name)] = data
	}
	return nil
}

func (im Image) writeSnapshots(dir string) error {
	if len(im.Snapshots) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, data := range im.Snapshots {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Fault looks once for what CheckConsistency waits to be gone; "" means that there is none.
func (c *Cluster) Fault() string { return c.findFault() }

// LastID is the last id that the placement service gave out.
func (p *Placement) LastID() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nextID
}
