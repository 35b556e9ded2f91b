package loadgen

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Phases are the loads that there are: load writes every key once; the others run for a time. mixed
// is half puts, half gets.
var Phases = []string{"load", "put", "get", "mixed", "scan", "delete"}

// Config describes one phase.
type Config struct {
	Phase     string
	Workers   int
	Keys      int
	KeySize   int // bytes
	ValueSize int // bytes
	ScanLimit int
	// Zipf is the exponent of a zipfian choice of keys; 0 means uniform.
	Zipf     float64
	Warmup   time.Duration
	Duration time.Duration // measured time; load ends with the last key instead
	// Rate limits all workers together to so many operations a second; 0: no limit.
	Rate float64
	// PIDs are the servers, if they are processes of this machine.
	PIDs []int
	// Written, if set, asks the servers what they have written so far; else the kernel is asked
	// about PIDs.
	Written func() (*Written, error)
	// OnMeasure is called in a goroutine of its own when the warm-up ends. May be nil.
	OnMeasure func()
}

// Validate tells all that is wrong.
func (c Config) Validate() error {
	var errs []error
	if !slices.Contains(Phases, c.Phase) {
		errs = append(errs, fmt.Errorf("unknown phase %q", c.Phase))
	}
	if c.Workers < 1 || c.Keys < 1 || c.Duration <= 0 || c.Warmup < 0 || c.ScanLimit < 1 ||
		c.Rate < 0 {
		errs = append(errs,
			errors.New("workers, keys, duration and the scan's limit must be positive"))
	}
	if c.KeySize < MinKeySize {
		errs = append(errs, fmt.Errorf("keys have at least %d bytes", MinKeySize))
	}
	if c.ValueSize < 0 {
		errs = append(errs, errors.New("the size of values is negative"))
	}
	if c.Zipf < 0 || c.Zipf >= 1 {
		errs = append(errs, errors.New("the zipfian exponent is between 0 and 1"))
	}
	return errors.Join(errs...)
}
