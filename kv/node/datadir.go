package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/pkg/feature"
)

// formatVersion is the newest version of the data directory's layout. A newer one is refused, an
// older one is marked as the one that is needed before anything is written.
//
//	1  the first
//	2  applied tables (kv/raftstore/meta): an older program would begin where the regions' own records stand
//	3  the marker names features: the raft log may hold entries that a program without them cannot apply
const formatVersion = 3

const (
	lockFile   = "LOCK"
	markerFile = "tinykv.toml"
)

// Marker says whose data a directory holds. It is written before any data.
type Marker struct {
	Format    int    `toml:"format"`
	Engine    string `toml:"engine"`
	Mode      string `toml:"mode"` // "raft" or "standalone"
	ClusterID uint64 `toml:"cluster-id"`
	StoreID   uint64 `toml:"store-id"`
	// Features are those that the store has announced, FeaturesOn those that it knows to be in
	// force (pkg/feature). They are names and not numbers: a flipped bit makes no other feature.
	Features   []string `toml:"features,omitempty"`
	FeaturesOn []string `toml:"features-on,omitempty"`
}

// format is the version that a directory with this marker needs.
func (m *Marker) format() int {
	if len(m.Features)+len(m.FeaturesOn) > 0 {
		return 3
	}
	return 2
}

// announced is what Features names; nothing for a new directory.
func (m *Marker) announced() feature.Set {
	if m == nil {
		return 0
	}
	s, _ := feature.Parse(m.Features)
	return s
}

// inForce is what FeaturesOn names.
func (m *Marker) inForce() feature.Set {
	s, _ := feature.Parse(m.FeaturesOn)
	return s
}

// DataDir is a locked data directory:
//
//	LOCK         held by the process that uses the directory
//	tinykv.toml  the marker
//	kv/ raft/ snap/
type DataDir struct {
	Path string
	lock *os.File
}

// OpenDataDir creates the directory durably if needed and locks it. A second process gets an error.
func OpenDataDir(path string) (*DataDir, error) {
	if err := durable.MkdirAll(durable.OS, path); err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil,
			fmt.Errorf(
				"data-dir %s is in use by another process; stop it or choose another directory",
				path)
	}
	return &DataDir{Path: path, lock: f}, nil
}

// Close unlocks the directory.
func (d *DataDir) Close() error { return d.lock.Close() }

// Sub is the path of a part of the directory.
func (d *DataDir) Sub(name string) string { return filepath.Join(d.Path, name) }

// ReadMarker returns nil if the directory is new. A directory that holds other things is refused.
func (d *DataDir) ReadMarker() (*Marker, error) {
	path := d.Sub(markerFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		entries, err := os.ReadDir(d.Path)
		if err != nil {
			return nil, fmt.Errorf("data-dir: %w", err)
		}
		for _, e := range entries {
			if e.Name() != lockFile && e.Name() != markerFile+".tmp" {
				return nil,
					fmt.Errorf(
						"data-dir %s holds %q but no %s: it is not a tinykv-server's; choose an empty directory",
						d.Path, e.Name(), markerFile)
			}
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	m := new(Marker)
	if _, err := toml.Decode(string(data), m); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if m.Format > formatVersion {
		return nil,
			fmt.Errorf(
				"data-dir %s has format %d, this version knows up to %d; use a newer tinykv-server",
				d.Path, m.Format, formatVersion)
	}
	if m.Format < 1 {
		return nil, fmt.Errorf("%s is damaged: format %d", path, m.Format)
	}
	return m, nil
}

// Upgrade marks a directory of an older format as one of this, and with the features that the store
// will announce, so that programs that do not know them refuse it from now on.
func (d *DataDir) Upgrade(m *Marker, announce feature.Set) error {
	next := *m
	next.Features = announce.Names()
	if m.Format == next.format() && slices.Equal(m.Features, next.Features) {
		return nil
	}
	if err := d.WriteMarker(next); err != nil {
		return fmt.Errorf("data-dir %s has format %d, and it was not possible to make it %d: %w",
			d.Path, m.Format, next.format(), err)
	}
	next.Format = next.format()
	*m = next
	return nil
}

// WriteMarker makes the marker durable.
func (d *DataDir) WriteMarker(m Marker) error {
	m.Format = m.format()
	var buf bytes.Buffer
	if err := toml.NewEncoder(&buf).Encode(m); err != nil {
		return err
	}
	return durable.WriteFile(d.Sub(markerFile), buf.Bytes())
}

// check refuses a directory that was made for something else.
func (m *Marker) check(path, engine, mode string) error {
	if m.Engine != engine {
		return fmt.Errorf(
			"data-dir %s was made with storage.engine = %q, not %q; set it back or choose another directory",
			path, m.Engine, engine)
	}
	if m.Mode != mode {
		return fmt.Errorf("data-dir %s was made in mode %q, not %q (storage.raft)", path, m.Mode,
			mode)
	}
	return nil
}

// CheckFeatures refuses a directory that may hold what a program that knows these features cannot
// apply.
func (m *Marker) CheckFeatures(path string, known feature.Set) error {
	set, unknown := feature.Parse(slices.Concat(m.Features, m.FeaturesOn))
	if missing := set &^ known; missing != 0 {
		unknown = append(unknown, missing.Names()...)
	}
	if len(unknown) > 0 {
		return fmt.Errorf(
			"data-dir %s may hold what needs %s, which this version does not know; use a newer tinykv-server",
			path, strings.Join(unknown, ", "))
	}
	return nil
}

// checkIdent refuses parts of another store's directory: the marker and the engine must tell the
// same.
func (m *Marker) checkIdent(path string, clusterID, storeID uint64) error {
	if m.ClusterID != clusterID || m.StoreID != storeID {
		return fmt.Errorf(
			"data-dir %s is marked as store %d of cluster %d, but holds the data of store %d of cluster %d; "+
				"put back what belongs together", path, m.StoreID, m.ClusterID, storeID, clusterID)
	}
	return nil
}
