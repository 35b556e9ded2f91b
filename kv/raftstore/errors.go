package raftstore

import "github.com/tinykv/tinykv/kv/regionerr"

// Errors of package regionerr under the names that this package gave them before.
type (
	BusyError            = regionerr.BusyError
	ClusterNotMatchError = regionerr.ClusterNotMatchError
	EpochNotMatchError   = regionerr.EpochNotMatchError
	FeatureError         = regionerr.FeatureError
	InvalidError         = regionerr.InvalidError
	KeyNotInRegionError  = regionerr.KeyNotInRegionError
	NotLeaderError       = regionerr.NotLeaderError
	RegionNotFoundError  = regionerr.RegionNotFoundError
	StaleCommandError    = regionerr.StaleCommandError
	StalePositionError   = regionerr.StalePositionError
	UndeterminedError    = regionerr.UndeterminedError
)

// Errors of package regionerr under the names that this package gave them before.
var (
	ErrStopping         = regionerr.ErrStopping
	ErrDeadlineExceeded = regionerr.ErrDeadlineExceeded
	ErrFailed           = regionerr.ErrFailed
)
