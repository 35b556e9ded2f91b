package client

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// swapper is a store that answers compare-and-swaps and range deletes one after the other as the
// test has set.
type swapper struct {
	tinykvpb.TinyKvClient
	answers []func() (*kvrpcpb.RawCASResponse, error)
	seen    []*kvrpcpb.RawCASRequest
	// ranges are the answers to range deletes, deleted their requests; without answers the store
	// does not know the call.
	ranges  []*errorpb.Error
	deleted []*kvrpcpb.RawDeleteRangeRequest
}

func (s *swapper) RawCAS(
	_ context.Context, in *kvrpcpb.RawCASRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawCASResponse, error) {
	s.seen = append(s.seen, in)
	next := s.answers[0]
	s.answers = s.answers[1:]
	return next()
}

func (s *swapper) RawDeleteRange(
	_ context.Context, in *kvrpcpb.RawDeleteRangeRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawDeleteRangeResponse, error) {
	if s.deleted = append(s.deleted, in); len(s.deleted) <= len(s.ranges) {
		return &kvrpcpb.RawDeleteRangeResponse{RegionError: s.ranges[len(s.deleted)-1]}, nil
	}
	return nil, status.Error(codes.Unimplemented, "unknown method")
}

func clientOf(s *swapper) *Client {
	return New(newDirectory("a"), Options{
		Timeout: 10 * time.Second,
		Dial:    func(context.Context, uint64) (tinykvpb.TinyKvClient, error) { return s, nil },
	})
}

// TestStoresWithoutConditionalWrites: a store of an older version ends the request, and the error
// says what to do.
func TestStoresWithoutConditionalWrites(t *testing.T) {
	s := &swapper{answers: []func() (*kvrpcpb.RawCASResponse, error){
		func() (*kvrpcpb.RawCASResponse, error) {
			return nil, status.Error(codes.Unimplemented, "unknown method")
		},
	}}
	c := clientOf(s)
	defer c.Close()
	_, _, err := c.CompareAndSwap(t.Context(), []byte("k"), nil, []byte("v"))
	var refused *RequestError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "every store of the cluster must run a newer one")
	require.ErrorAs(t, c.DeleteRange(t.Context(), nil, nil), &refused)
}

// TestSwapNamesWhatItRetries: a retry has the identity of the first attempt and says where that
// went; the answer to the last attempt counts.
func TestSwapNamesWhatItRetries(t *testing.T) {
	ok := func(r *kvrpcpb.RawCASResponse) func() (*kvrpcpb.RawCASResponse, error) {
		return func() (*kvrpcpb.RawCASResponse, error) { return r, nil }
	}
	s := &swapper{answers: []func() (*kvrpcpb.RawCASResponse, error){
		ok(&kvrpcpb.RawCASResponse{
			RegionError: &errorpb.Error{
				StalePosition: &errorpb.StalePosition{RegionId: 1, LogPosition: 7},
			},
		}),
		ok(&kvrpcpb.RawCASResponse{
			RegionError:   &errorpb.Error{StaleCommand: &errorpb.StaleCommand{}},
			PreviousValue: []byte("no"),
		}),
		ok(&kvrpcpb.RawCASResponse{Succeed: true, PreviousValue: []byte(""), LogIndex: 9}),
	}}
	c := clientOf(s)
	defer c.Close()
	previous, swapped, err := c.CompareAndSwap(t.Context(), []byte("k"), []byte{}, nil)
	require.NoError(t, err)
	require.True(t, swapped)
	require.Equal(t, []byte{}, previous, "an empty value is a value")
	require.Len(t, s.seen, 3)
	for i, in := range s.seen {
		require.True(t, in.Delete, "without a value")
		require.False(t, in.PreviousNotExist)
		require.Equal(t, s.seen[0].Context.WriteNumber, in.Context.WriteNumber)
		require.EqualValues(t, i+1, in.Context.WriteAttempt)
	}
	require.Empty(t, s.seen[1].Context.WriteOrigins, "the first attempt was refused for certain")
	require.Equal(t, []*kvrpcpb.WriteOrigin{{RegionId: 1, LogPosition: 7}},
		s.seen[2].Context.WriteOrigins)
}

// TestDeleteRangeOfASplitRegion: a range delete whose first attempt may have been carried out is
// not cut in two when its region is split: the second part would delete what others have put since.
// Before there is a doubt, it is.
func TestDeleteRangeOfASplitRegion(t *testing.T) {
	peers := []*metapb.Peer{{Id: 1, StoreId: 1}}
	epoch := &metapb.RegionEpoch{Version: 2, ConfVer: 1}
	split := &errorpb.Error{EpochNotMatch: &errorpb.EpochNotMatch{CurrentRegions: []*metapb.Region{
		{Id: 1, EndKey: []byte("m"), RegionEpoch: epoch, Peers: peers},
		{Id: 2, StartKey: []byte("m"), RegionEpoch: epoch, Peers: peers},
	}}}
	doubt := &errorpb.Error{StaleCommand: &errorpb.StaleCommand{}}
	// a position to search from
	first := &errorpb.Error{StalePosition: &errorpb.StalePosition{RegionId: 1, LogPosition: 7}}
	busy := &errorpb.Error{ServerIsBusy: &errorpb.ServerIsBusy{Reason: "test"}}
	ends := func(s *swapper) (out []string) {
		for _, in := range s.deleted {
			out = append(out, string(in.StartKey)+"-"+string(in.EndKey))
		}
		return out
	}

	s := &swapper{ranges: []*errorpb.Error{first, doubt, split}}
	c := clientOf(s)
	defer c.Close()
	var unknown *UnknownError
	require.ErrorAs(t, c.DeleteRange(t.Context(), []byte("a"), []byte("z")), &unknown)
	require.ErrorContains(t, unknown, splitInDoubt)
	require.Equal(t, []string{"a-z", "a-z", "a-z"}, ends(s))

	s = &swapper{ranges: []*errorpb.Error{busy, split, nil, nil}}
	c = clientOf(s)
	defer c.Close()
	require.NoError(t, c.DeleteRange(t.Context(), []byte("a"), []byte("z")))
	require.Equal(t, []string{"a-z", "a-z", "a-m", "m-z"}, ends(s),
		"nothing was done by the first two")

	s = &swapper{ranges: []*errorpb.Error{first, doubt, split, nil}}
	c = clientOf(s)
	defer c.Close()
	require.NoError(t, c.DeleteRange(t.Context(), []byte("a"), []byte("c")),
		"all of it is in one half")
	require.Equal(t, []string{"a-c", "a-c", "a-c", "a-c"}, ends(s))
}

func TestReaches(t *testing.T) {
	for _, c := range []struct {
		last, upper string
		want        bool
	}{
		{"", "", true}, {"", "m", true}, {"m", "", false}, {"m", "m", true}, {"m", "n", false},
		{"n", "m", true},
	} {
		require.Equal(t, c.want, reaches([]byte(c.last), []byte(c.upper)), "%+v", c)
	}
}
