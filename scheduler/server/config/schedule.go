package config

import (
	"errors"
	"fmt"
	"time"

	"github.com/tinykv/tinykv/pkg/cli"
)

// Schedule is how and how fast the cluster is repaired and balanced.
type Schedule struct {
	PatrolRegionInterval Duration `toml:"patrol-region-interval" json:"patrol-region-interval"`
	// StoreDisconnect is the silence after which a store is no target and leads nothing new.
	StoreDisconnect Duration `toml:"store-disconnect" json:"store-disconnect"`
	// MaxStoreDownTime is the silence after which the replicas of a store are rebuilt elsewhere.
	MaxStoreDownTime Duration `toml:"max-store-down-time" json:"max-store-down-time"`
	// MaxPeerDownTime is for how long a peer may be silent although its store reports, before it is
	// replaced on another store; at most MaxStoreDownTime. Stores report a peer as down after their
	// own peer-down-after.
	MaxPeerDownTime Duration `toml:"max-peer-down-time" json:"max-peer-down-time"`

	LeaderScheduleLimit  int `toml:"leader-schedule-limit" json:"leader-schedule-limit"`
	RegionScheduleLimit  int `toml:"region-schedule-limit" json:"region-schedule-limit"`
	ReplicaScheduleLimit int `toml:"replica-schedule-limit" json:"replica-schedule-limit"`

	// MergeScheduleLimit is how many merges of small regions may be under way; 0 switches them off.
	MergeScheduleLimit int `toml:"merge-schedule-limit" json:"merge-schedule-limit"`
	// MaxMergeRegionSize, in MiB, and MaxMergeRegionKeys are what a region has at most that goes
	// into its neighbour.
	MaxMergeRegionSize int64 `toml:"max-merge-region-size" json:"max-merge-region-size"`
	MaxMergeRegionKeys int64 `toml:"max-merge-region-keys" json:"max-merge-region-keys"`
	// SplitMergeInterval is for how long a region is not merged after its split, and none after a
	// change of the placement leader.
	SplitMergeInterval Duration `toml:"split-merge-interval" json:"split-merge-interval"`

	// StoreBytesInFlightMiB and StoreMovesInFlight bound what one store sends and receives at
	// once, each way; repair may use twice that.
	StoreBytesInFlightMiB int64 `toml:"store-bytes-in-flight-mib" json:"store-bytes-in-flight-mib"`
	StoreMovesInFlight    int   `toml:"store-moves-in-flight" json:"store-moves-in-flight"`

	// LowSpaceRatio is the free share of the disk below which a store gets no more replicas.
	LowSpaceRatio float64 `toml:"low-space-ratio" json:"low-space-ratio"`
	// LeaderTolerance is how many leaders more than a target a source must have.
	LeaderTolerance int `toml:"leader-tolerance" json:"leader-tolerance"`
	// LeaderCooldown is the least time between two leader moves of one region by balancing.
	LeaderCooldown Duration `toml:"leader-cooldown" json:"leader-cooldown"`
	// LearnerFirst adds replicas as learners when every store says that it can promote them.
	LearnerFirst bool `toml:"learner-first" json:"learner-first"`
	// WeightByCapacity gives a store a share of the data in proportion to its disk.
	WeightByCapacity bool `toml:"weight-by-capacity" json:"weight-by-capacity"`

	LeaderStepTimeout Duration `toml:"leader-step-timeout" json:"leader-step-timeout"`
	PeerStepTimeout   Duration `toml:"peer-step-timeout" json:"peer-step-timeout"`
	// SnapshotRateMiB is the rate in MiB/s assumed when a step's deadline is set.
	SnapshotRateMiB int64 `toml:"snapshot-rate-mib" json:"snapshot-rate-mib"`

	// PrepareTimeout is how long a new leader waits for heartbeats before it balances anyway.
	PrepareTimeout Duration `toml:"prepare-timeout" json:"prepare-timeout"`

	Schedulers []SchedulerConfig `toml:"schedulers" json:"schedulers"`
}

// SchedulerConfig switches a balancing algorithm on or off.
type SchedulerConfig struct {
	Type        string   `toml:"type" json:"type"`
	Args        []string `toml:"args" json:"args,omitempty"`
	Disable     bool     `toml:"disable" json:"disable"`
	ArgsPayload string   `toml:"args-payload" json:"args-payload,omitempty"`
}

// DefaultSchedule returns values for clusters of any size.
func DefaultSchedule() Schedule {
	return Schedule{
		PatrolRegionInterval:  Duration(100 * time.Millisecond),
		StoreDisconnect:       Duration(20 * time.Second),
		MaxStoreDownTime:      Duration(30 * time.Minute),
		MaxPeerDownTime:       Duration(5 * time.Minute),
		LeaderScheduleLimit:   16,
		RegionScheduleLimit:   2048,
		ReplicaScheduleLimit:  512,
		MergeScheduleLimit:    8,
		MaxMergeRegionSize:    20,
		MaxMergeRegionKeys:    200_000,
		SplitMergeInterval:    Duration(time.Hour),
		StoreBytesInFlightMiB: 512,
		StoreMovesInFlight:    8,
		LowSpaceRatio:         0.1,
		LeaderTolerance:       2,
		LeaderCooldown:        Duration(30 * time.Second),
		LearnerFirst:          true,
		WeightByCapacity:      true,
		LeaderStepTimeout:     Duration(10 * time.Second),
		PeerStepTimeout:       Duration(60 * time.Second),
		SnapshotRateMiB:       2,
		PrepareTimeout:        Duration(5 * time.Minute),
		Schedulers: []SchedulerConfig{
			{Type: "balance-region"}, {Type: "balance-leader"},
		},
	}
}

// SchedulerTypes are the balancing algorithms that can be named in the configuration.
var SchedulerTypes = []string{"balance-region", "balance-leader", "evict-slow-store", "merge"}

// Validate reports every fault at once.
func (s *Schedule) Validate() error {
	var errs []error
	positive := func(key string, ok bool) {
		if !ok {
			errs = append(errs, fmt.Errorf("schedule.%s: must be greater than 0", key))
		}
	}
	positive("patrol-region-interval", s.PatrolRegionInterval > 0)
	positive("store-disconnect", s.StoreDisconnect > 0)
	positive("max-store-down-time", s.MaxStoreDownTime > 0)
	positive("max-peer-down-time", s.MaxPeerDownTime > 0)
	positive("leader-step-timeout", s.LeaderStepTimeout > 0)
	positive("peer-step-timeout", s.PeerStepTimeout > 0)
	positive("snapshot-rate-mib", s.SnapshotRateMiB > 0)
	positive("store-bytes-in-flight-mib", s.StoreBytesInFlightMiB > 0)
	positive("store-moves-in-flight", s.StoreMovesInFlight > 0)
	positive("max-merge-region-size", s.MaxMergeRegionSize > 0)
	positive("max-merge-region-keys", s.MaxMergeRegionKeys > 0)
	positive("split-merge-interval", s.SplitMergeInterval > 0)
	if s.LeaderScheduleLimit < 0 || s.RegionScheduleLimit < 0 || s.ReplicaScheduleLimit < 0 ||
		s.MergeScheduleLimit < 0 {
		errs = append(errs, errors.New("schedule: limits must not be negative"))
	}
	if s.LowSpaceRatio < 0 || s.LowSpaceRatio >= 1 {
		errs = append(errs,
			fmt.Errorf("schedule.low-space-ratio: %v is not in [0, 1)", s.LowSpaceRatio))
	}
	for _, sc := range s.Schedulers {
		if !known(SchedulerTypes, sc.Type) {
			errs = append(errs,
				fmt.Errorf("schedule.schedulers: unknown type %q%s", sc.Type,
					cli.DidYouMean("%q", sc.Type, SchedulerTypes)))
		}
	}
	return errors.Join(errs...)
}

// Enabled tells whether a scheduler is named and not disabled.
func (s *Schedule) Enabled(name string) bool {
	if name == "evict-leader" {
		return true // it acts only on stores that shed their leaders
	}
	for _, sc := range s.Schedulers {
		if sc.Type == name {
			return !sc.Disable
		}
	}
	return name == "evict-slow-store" || name == "merge" // on unless they are named and disabled
}
