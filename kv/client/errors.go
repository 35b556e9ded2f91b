package client

import (
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
)

// Errors come in two classes. An *UnknownError says that a write may have been carried out, or may
// still be while the log of its region reaches back to where it was sent. Every other error is
// definite: nothing was done.

// UnknownError: the outcome of a write is unknown.
type UnknownError struct{ Cause error }

func (e *UnknownError) Error() string {
	return "the outcome of the write is unknown: " + e.Cause.Error()
}

func (e *UnknownError) Unwrap() error { return e.Cause }

// IsUnknown tells whether a write that returned err may have been carried out.
func IsUnknown(err error) bool {
	var u *UnknownError
	return errors.As(err, &u)
}

// RequestError: a store refused the request itself (key too long, unknown column family, ...).
// Trying again does not help.
type RequestError struct{ Message string }

func (e *RequestError) Error() string { return e.Message }

// ErrNoRegion: the placement service knows no region for a key (yet).
var ErrNoRegion = errors.New("client: no region is known for the key")

// regionError is a region error that ended the retries.
func regionError(pb *errorpb.Error) error {
	if pb.Message != "" {
		return fmt.Errorf("region error: %s", pb.Message)
	}
	if pb.KeyNotInRegion != nil || pb.EpochNotMatch != nil { // these have keys in them
		return errors.New("region error: the key is not in the region, or the region has changed")
	}
	return fmt.Errorf("region error: %v", pb)
}
