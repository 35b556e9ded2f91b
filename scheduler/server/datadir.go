package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/tinykv/tinykv/pkg/durable"
)

const (
	markerName    = "TINYSCHEDULER"
	lockName      = "LOCK"
	formatVersion = 1
)

// marker says whose the directory is. Part of the on-disk format; fields are only ever added.
type marker struct {
	Format    int    `json:"format"`
	Name      string `json:"name"`
	ClusterID uint64 `json:"cluster-id,omitempty"`
	// Joins is set before a cluster is asked for membership, for ever. Such a member never begins a
	// cluster of its own.
	Joins bool `json:"joins,omitempty"`
}

// dataDir is a member's directory, locked against a second process.
type dataDir struct {
	path string
	lock *os.File
	mark marker
}

// openDataDir makes or opens the directory. A foreign, newer, or already used one is refused with
// the reason.
func openDataDir(path, name string) (*dataDir, error) {
	if err := durable.MkdirAll(durable.OS, path); err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	d := &dataDir{path: path, lock: lock}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.close()
		return nil, fmt.Errorf("data-dir: %s is in use by another process", path)
	}
	if err := d.readMarker(name); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *dataDir) readMarker(name string) error {
	data, err := os.ReadFile(filepath.Join(d.path, markerName))
	if errors.Is(err, os.ErrNotExist) {
		if err := d.refuseForeign(); err != nil {
			return err
		}
		d.mark = marker{Format: formatVersion, Name: name}
		return d.writeMarker()
	}
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	if err := json.Unmarshal(data, &d.mark); err != nil {
		return fmt.Errorf("data-dir: %s is damaged: %w", filepath.Join(d.path, markerName), err)
	}
	if d.mark.Format > formatVersion {
		return fmt.Errorf("data-dir: %s has format %d, this program knows up to %d", d.path,
			d.mark.Format, formatVersion)
	}
	if d.mark.Name != name {
		return fmt.Errorf("data-dir: %s belongs to member %q, not to %q", d.path, d.mark.Name, name)
	}
	return nil
}

// refuseForeign: a directory without a marker must be empty, or it is somebody else's.
func (d *dataDir) refuseForeign() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	for _, e := range entries {
		if e.Name() != lockName {
			return fmt.Errorf(
				"data-dir: %s is not empty and not a data directory of tinyscheduler (found %s)",
				d.path, e.Name())
		}
	}
	return nil
}

func (d *dataDir) writeMarker() error {
	data, err := json.Marshal(d.mark)
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	path := filepath.Join(d.path, markerName)
	if err := durable.WriteFile(path, append(data, '\n')); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	return nil
}

// claim binds the directory to a cluster.
func (d *dataDir) claim(clusterID uint64) error {
	if d.mark.ClusterID == clusterID {
		return nil
	}
	if d.mark.ClusterID != 0 {
		return fmt.Errorf("data-dir: %s belongs to cluster %d, this cluster is %d", d.path,
			d.mark.ClusterID, clusterID)
	}
	d.mark.ClusterID = clusterID
	return d.writeMarker()
}

// joins marks the directory for ever as that of a member that joins a cluster.
func (d *dataDir) joins() error {
	if d.mark.Joins {
		return nil
	}
	d.mark.Joins = true
	return d.writeMarker()
}

// hasMember tells whether etcd has something in the directory to go on from. Without a log etcd
// begins anew, whatever else a start that failed has left there.
func (d *dataDir) hasMember() bool { return wal.Exist(filepath.Join(d.path, "member", "wal")) }

func (d *dataDir) close() { _ = d.lock.Close() }
