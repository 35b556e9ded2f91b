package keyspace

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

// Region is what Split looks at.
type Region struct {
	ID     uint64
	Start  []byte
	Leader uint64 // store
	// Confirmed: its leader has reported it, so that operators for it are admitted.
	Confirmed bool
}

// Service is the placement service.
type Service interface {
	// Regions returns the regions that have keys of [start, end], in order.
	Regions(ctx context.Context, start, end []byte) ([]Region, error)
	// Split begins to cut a region at keys inside it. It may be refused for the moment.
	Split(ctx context.Context, region uint64, keys [][]byte) error
	// Scatter has a region go where few of those are that were scattered before it.
	Scatter(ctx context.Context, region uint64) error
	// Operators are the regions that have a running operator.
	Operators(ctx context.Context) (map[uint64]bool, error)
}

// poll is how often Split looks how far it has come.
const poll = 50 * time.Millisecond

// Split has a region begin at each border, and spreads the regions over the stores. It may be
// called again with the same borders, and goes on where it was. progress gets the number of regions
// that begin at a border. The error, when ctx ends, says what was refused last. The regions are
// returned in order.
func Split(ctx context.Context, s Service, borders [][]byte, progress func(int)) ([]Region, error) {
	regions, err := cut(ctx, s, borders, progress)
	if err != nil {
		return nil, err
	}
	for _, r := range regions {
		if err := retry(ctx, func() error { return s.Scatter(ctx, r.ID) }); err != nil {
			return nil, fmt.Errorf("scatter region %d: %w", r.ID, err)
		}
	}
	err = retry(ctx, func() error {
		running, err := s.Operators(ctx)
		for _, r := range regions {
			if err == nil && running[r.ID] {
				err = fmt.Errorf("region %d still has an operator", r.ID)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	_, regions, err = look(ctx, s, borders)
	return regions, err
}

// retry calls f until it succeeds; the error is its last one, when ctx ends.
func retry(ctx context.Context, f func() error) error {
	var last error
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			if last == nil {
				last = err
			}
			return fmt.Errorf("%w: %w", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// cut splits until a region begins at each border.
func cut(
	ctx context.Context, s Service, borders [][]byte, progress func(int),
) (regions []Region, err error) {
	err = retry(ctx, func() error {
		var missing map[uint64][][]byte
		missing, regions, err = look(ctx, s, borders)
		if err != nil {
			return err
		}
		progress(len(regions))
		var refused error
		for region, keys := range missing {
			refused = s.Split(ctx, region, keys)
		}
		for _, r := range regions {
			if refused == nil && !r.Confirmed {
				refused = fmt.Errorf("the leader of region %d has not reported it", r.ID)
			}
		}
		if len(missing) > 0 && refused == nil {
			refused = fmt.Errorf("%d of %d regions are there", len(regions), len(borders))
		}
		return refused
	})
	return regions, err
}

// look returns the regions that begin at a border, and the borders at which none does by the region
// that has them.
func look(
	ctx context.Context, s Service, borders [][]byte,
) (missing map[uint64][][]byte, there []Region, err error) {
	all, err := s.Regions(ctx, borders[0], borders[len(borders)-1])
	if err != nil {
		return nil, nil, err
	}
	missing = map[uint64][][]byte{}
	i := 0
	for _, b := range borders {
		for i+1 < len(all) && bytes.Compare(all[i+1].Start, b) <= 0 {
			i++
		}
		switch {
		case len(all) == 0 || bytes.Compare(all[i].Start, b) > 0:
			return nil, nil, fmt.Errorf("no region is known that has %q", b)
		case bytes.Equal(all[i].Start, b):
			there = append(there, all[i])
		default:
			missing[all[i].ID] = append(missing[all[i].ID], b)
		}
	}
	return missing, there, nil
}
