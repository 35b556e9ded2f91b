package recovery

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tinykv/tinykv/pkg/clustermode"
)

const (
	// idMargin is left above the largest id that a store knows: what the lost placement service
	// gave out last may be known only to stores that did not report. It gives ids out in batches
	// that are much smaller.
	idMargin = 1_000_000
	// timestampMargin is left above the latest clock: the lost placement service's may have been
	// ahead.
	timestampMargin = 10 * time.Minute
)

// StoreReport is what one store says of itself.
type StoreReport struct {
	ClusterID     uint64            `json:"cluster_id"`
	StoreID       uint64            `json:"store_id"`
	Address       string            `json:"addr"`
	StatusAddress string            `json:"status_addr"`
	Labels        map[string]string `json:"labels,omitempty"`
	Version       string            `json:"version"`
	// TLS and AllowPlain say how the store is reached.
	TLS        bool `json:"tls,omitempty"`
	AllowPlain bool `json:"allow_plain,omitempty"`
	// Mode is the cluster's mode; empty from stores of older versions.
	Mode string `json:"mode"`
	// MaxID is the largest region, peer or store id that the store knows.
	MaxID uint64 `json:"max_id"`
	// UnixMS is the store's wall clock.
	UnixMS int64 `json:"unix_ms"`
	// Features are those that the store knows to be in force.
	Features []string  `json:"features,omitempty"`
	Replicas []Replica `json:"-"`
}

// Store is an entry of the new placement service's list.
type Store struct {
	ID            uint64            `json:"id,string"`
	Address       string            `json:"address"`
	StatusAddress string            `json:"status_address"`
	Labels        map[string]string `json:"labels,omitempty"`
	Version       string            `json:"version,omitempty"`
	TLS           bool              `json:"tls,omitempty"`
	AllowPlain    bool              `json:"allow_plain,omitempty"`
}

// Scheduler is what a placement service begins with instead of a new cluster.
type Scheduler struct {
	ClusterID uint64 `json:"cluster_id,string"`
	// AllocID: all ids up to this may be in use.
	AllocID uint64 `json:"alloc_id,string"`
	// TimestampMS: all timestamps up to this physical part, in Unix milliseconds, may have been
	// given out.
	TimestampMS int64   `json:"timestamp_unix_ms"`
	Stores      []Store `json:"stores"`
	// Features are in force by the word of at least one store.
	Features []string `json:"features,omitempty"`
	// Mode is the cluster's mode; empty if no store has told it.
	Mode string `json:"mode,omitempty"`
	// Missing are stores that have peers by the others' word and did not report.
	Missing []uint64 `json:"missing_stores,omitempty"`
}

// PlanScheduler makes the beginning of a new placement service for the cluster of the stores that
// report. now is the caller's clock.
func PlanScheduler(reports []StoreReport, now time.Time) (*Scheduler, error) {
	if len(reports) == 0 {
		return nil, errors.New("no store has reported")
	}
	s := &Scheduler{ClusterID: reports[0].ClusterID, TimestampMS: now.UnixMilli()}
	have := map[uint64]bool{}
	for _, r := range reports {
		switch {
		case r.StoreID == 0 || r.ClusterID == 0:
			return nil, fmt.Errorf("the store at %s has not joined a cluster yet", r.StatusAddress)
		case r.ClusterID != s.ClusterID:
			return nil,
				fmt.Errorf("store %d at %s belongs to cluster %d, store %d at %s to cluster %d",
					reports[0].StoreID,
					reports[0].StatusAddress, s.ClusterID, r.StoreID, r.StatusAddress, r.ClusterID)
		case have[r.StoreID]:
			return nil,
				fmt.Errorf("store %d reports twice, also at %s: one of the two is a copy",
					r.StoreID, r.StatusAddress)
		}
		if have[r.StoreID] = true; s.Mode == "" {
			s.Mode = r.Mode
		} else if r.Mode != "" && r.Mode != s.Mode {
			return nil,
				fmt.Errorf("store %d holds data of mode %s, others of mode %s", r.StoreID, r.Mode,
					s.Mode)
		}
		s.AllocID = max(s.AllocID, r.MaxID, r.StoreID)
		s.TimestampMS = max(s.TimestampMS, r.UnixMS)
		for _, f := range r.Features {
			if !slices.Contains(s.Features, f) {
				s.Features = append(s.Features, f)
			}
		}
		s.Stores = append(s.Stores, Store{
			ID: r.StoreID, Address: r.Address, StatusAddress: r.StatusAddress, Labels: r.Labels,
			Version: r.Version,
			TLS:     r.TLS, AllowPlain: r.AllowPlain,
		})
	}
	for _, r := range reports {
		for _, rep := range r.Replicas {
			for _, p := range rep.Region.Peers {
				if !have[p.StoreID] && !slices.Contains(s.Missing, p.StoreID) {
					s.Missing = append(s.Missing, p.StoreID)
				}
			}
		}
	}
	slices.Sort(s.Missing)
	slices.Sort(s.Features)
	slices.SortFunc(s.Stores, func(a, b Store) int { return int(a.ID) - int(b.ID) })
	s.AllocID += idMargin
	s.TimestampMS += timestampMargin.Milliseconds()
	return s, nil
}

// Validate refuses what no placement service can begin with.
func (s *Scheduler) Validate() error {
	switch {
	case s.ClusterID == 0:
		return errors.New("recovery file: cluster_id is missing")
	case s.AllocID == 0:
		return errors.New("recovery file: alloc_id is missing")
	case s.TimestampMS <= 0:
		return errors.New("recovery file: timestamp_unix_ms is missing")
	case len(s.Stores) == 0:
		return errors.New("recovery file: no store is listed")
	}
	if _, err := clustermode.Parse(s.Mode); err != nil {
		return fmt.Errorf("recovery file: %w", err)
	}
	for _, st := range s.Stores {
		if st.ID == 0 || st.Address == "" || st.ID > s.AllocID {
			return fmt.Errorf("recovery file: store %d at %q is not valid", st.ID, st.Address)
		}
	}
	return nil
}
