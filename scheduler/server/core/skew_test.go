package core

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// TestSkewIsBoundedByRoundTrips: a report that was long on its way says nothing by itself; with the
// next one it bounds the skew from both sides.
func TestSkewIsBoundedByRoundTrips(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	const skew = 3 * time.Second
	st := NewStore(&metapb.Store{Id: 1}, now)
	report := func(onTheWay, tripBefore time.Duration) {
		sent := now.Add(skew)
		now = now.Add(onTheWay)
		st = st.Clone(
			WithStats(&schedulerpb.StoreStats{
				StoreId: 1, Clock: sent.UnixNano(), RoundTrip: uint64(tripBefore),
			}, now))
		now = now.Add(10 * time.Second)
	}
	report(2*time.Second, 0)
	require.False(t, st.Skew().Known, "how long it was on its way is not known yet")
	report(time.Millisecond, 2500*time.Millisecond)
	require.Equal(t, Skew{time.Second, 3500 * time.Millisecond, true}, st.Skew())
	require.True(t, st.Skew().Beyond(500*time.Millisecond))
	require.False(t, st.Skew().Beyond(time.Second), "not for certain")
	report(time.Millisecond, 0)
	require.Equal(t, Skew{time.Second, 3500 * time.Millisecond, true}, st.Skew(),
		"the call before failed: nothing new")
	report(0, 2*time.Millisecond)
	require.Equal(t, Skew{skew - time.Millisecond, skew + time.Millisecond, true}, st.Skew())
	require.Equal(t, skew, st.Skew().Middle())

	st = st.Clone(WithUnreadClock())
	report(0, time.Millisecond)
	require.False(t, st.Skew().Known, "the report before was to another member")
	behind := Skew{-2 * time.Second, -time.Second, true}
	require.True(t, behind.Beyond(500*time.Millisecond))
	st = st.Clone(WithStats(&schedulerpb.StoreStats{StoreId: 1}, now))
	report(0, time.Millisecond)
	require.False(t, st.Skew().Known, "a store that does not tell its clock")
}
