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
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// swapper is a store that answers compare-and-swaps and range deletes one after the other as the test has set.
type swapper struct {
	tinykvpb.TinyKvClient
	answers []func() (*kvrpcpb.RawCASResponse, error)
	seen    []*kvrpcpb.RawCASRequest
}

func (s *swapper) RawCAS(_ context.Context, in *kvrpcpb.RawCASRequest, _ ...grpc.CallOption) (*kvrpcpb.RawCASResponse, error) {
	s.seen = append(s.seen, in)
	next := s.answers[0]
	s.answers = s.answers[1:]
	return next()
}

func (s *swapper) RawDeleteRange(
	context.Context, *kvrpcpb.RawDeleteRangeRequest, ...grpc.CallOption,
) (*kvrpcpb.RawDeleteRangeResponse, error) {
	return nil, status.Error(codes.Unimplemented, "unknown method")
}

func clientOf(s *swapper) *Client {
	return New(newDirectory("a"), Options{
		Timeout: 10 * time.Second, Dial: func(context.Context, uint64) (tinykvpb.TinyKvClient, error) { return s, nil },
	})
}

// TestStoresWithoutConditionalWrites: a store of an older version ends the request, and the error says what to do.
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

// TestSwapNamesWhatItRetries: a retry has the identity of the first attempt and says where that went; the answer to the
// last attempt counts.
func TestSwapNamesWhatItRetries(t *testing.T) {
	ok := func(r *kvrpcpb.RawCASResponse) func() (*kvrpcpb.RawCASResponse, error) {
		return func() (*kvrpcpb.RawCASResponse, error) { return r, nil }
	}
	s := &swapper{answers: []func() (*kvrpcpb.RawCASResponse, error){
		ok(&kvrpcpb.RawCASResponse{RegionError: &errorpb.Error{StalePosition: &errorpb.StalePosition{RegionId: 1, LogPosition: 7}}}),
		ok(&kvrpcpb.RawCASResponse{RegionError: &errorpb.Error{StaleCommand: &errorpb.StaleCommand{}}, PreviousValue: []byte("no")}),
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
	require.Equal(t, []*kvrpcpb.WriteOrigin{{RegionId: 1, LogPosition: 7}}, s.seen[2].Context.WriteOrigins)
}
