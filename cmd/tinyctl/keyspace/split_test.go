package keyspace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// service is a placement service that refuses every other request.
type service struct {
	regions   []Region
	calls     int
	scattered map[uint64]int
	busy      map[uint64]bool
	stuck     bool
}

var errBusy = errors.New("region has an operator")

func (s *service) refuses() bool { s.calls++; return s.stuck || s.calls%2 == 0 }

func (s *service) Regions(_ context.Context, start, end []byte) (out []Region, err error) {
	for i, r := range s.regions {
		last := i+1 == len(s.regions)
		if string(r.Start) <= string(end) &&
			(last || string(s.regions[i+1].Start) > string(start)) {
			out = append(out, r)
		}
	}
	return out, nil
}

func (s *service) Split(_ context.Context, region uint64, keys [][]byte) error {
	if s.refuses() {
		return errBusy
	}
	for _, k := range keys {
		i := slices.IndexFunc(s.regions, func(r Region) bool { return string(r.Start) > string(k) })
		if i < 0 {
			i = len(s.regions)
		}
		if s.regions[i-1].ID != region && s.regions[i-1].ID < 100 {
			return fmt.Errorf("key %q is not in region %d", k, region)
		}
		s.regions = slices.Insert(s.regions, i,
			Region{ID: uint64(100 + len(s.regions)), Start: k, Confirmed: true})
	}
	return nil
}

func (s *service) Scatter(_ context.Context, region uint64) error {
	if s.refuses() {
		return errBusy
	}
	s.scattered[region]++
	s.busy[region] = true
	return nil
}

func (s *service) Operators(context.Context) (map[uint64]bool, error) {
	running := s.busy
	s.busy = map[uint64]bool{}
	return running, nil
}

func TestSplit(t *testing.T) {
	s := &service{
		regions: []Region{
			{ID: 1, Confirmed: true}, {ID: 2, Start: []byte("p4"), Confirmed: true},
			{ID: 3, Start: []byte("x"), Confirmed: true},
		},
		scattered: map[uint64]int{}, busy: map[uint64]bool{},
	}
	borders, err := Borders([]byte("p"), 8, "hex")
	require.NoError(t, err)
	done := 0
	got, err := Split(t.Context(), s, borders, func(n int) { done = n })
	require.NoError(t, err)
	require.Equal(t, 8, done)
	require.Len(t, got, 8)
	for i, r := range got {
		require.Equal(t, string(borders[i]), string(r.Start))
		require.Equal(t, 1, s.scattered[r.ID])
	}
	require.Len(t, s.regions, 10, "there was one border, and regions beside them")
	again, err := Split(t.Context(), s, borders, func(int) {})
	require.NoError(t, err)
	require.Equal(t, got, again)
}

func TestSplitSaysWhatIsInTheWay(t *testing.T) {
	s := &service{regions: []Region{{ID: 1}}, stuck: true}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := Split(ctx, s, [][]byte{[]byte("a"), []byte("b")}, func(int) {})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, errBusy)
	_, err = Split(ctx, &service{}, [][]byte{[]byte("a")}, func(int) {})
	require.ErrorContains(t, err, "no region is known")
}
