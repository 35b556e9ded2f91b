package tikv

import (
	"context"
	"testing"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/storage/standalone"
	own "github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

func serviceOver(st storage.Storage) *Service {
	return New(config.Default(), 1, st, new(gate.Gate))
}

// TestSwapRequests: what clients can ask for, and the answers.
func TestSwapRequests(t *testing.T) {
	s := serviceOver(standalone.New(memengine.New()))
	swap := func(req *kvrpcpb.RawCASRequest) *kvrpcpb.RawCASResponse {
		t.Helper()
		req.Key = []byte("k")
		resp, err := s.RawCompareAndSwap(t.Context(), req)
		require.NoError(t, err)
		return resp
	}
	require.Equal(t, &kvrpcpb.RawCASResponse{Succeed: true, PreviousNotExist: true},
		swap(&kvrpcpb.RawCASRequest{PreviousNotExist: true, Value: []byte("1")}))
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousValue: []byte("1")},
		swap(&kvrpcpb.RawCASRequest{PreviousValue: []byte("2"), Delete: true}))
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousValue: []byte("1")},
		swap(&kvrpcpb.RawCASRequest{PreviousNotExist: true, Value: []byte("2")}))
	require.Equal(t, &kvrpcpb.RawCASResponse{Succeed: true, PreviousValue: []byte("1")},
		swap(&kvrpcpb.RawCASRequest{PreviousValue: []byte("1"), Delete: true}))
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousNotExist: true},
		swap(&kvrpcpb.RawCASRequest{Value: []byte("2")}))
	require.Contains(t, swap(&kvrpcpb.RawCASRequest{Ttl: 5}).Error, "TTL")
}

// failing answers conditional writes with an error.
type failing struct {
	*standalone.Storage
	err error
}

func (f failing) CompareAndSwap(
	context.Context, *own.Context, *storage.Swap,
) (storage.Swapped, error) {
	return storage.Swapped{Swapped: true}, f.err
}

func (f failing) DeleteRange(
	context.Context, *own.Context, engine.CF, []byte, []byte,
) (uint64, error) {
	return 0, f.err
}

// TestUnknownSwapsAreNotRepeated: clients repeat what is answered by a region error. A swap that
// may have been carried out is answered by a message; one that was not is left to be repeated. A
// range may be deleted twice.
func TestUnknownSwapsAreNotRepeated(t *testing.T) {
	for _, c := range []struct {
		err           error
		swap, deleted string
	}{
		{&regionerr.UnknownError{Cause: regionerr.ErrStopping}, "message", "region"},
		{context.DeadlineExceeded, "message", "call"},
		{&regionerr.OverwrittenError{Term: 5}, "region", "region"},
		{&regionerr.NotLeaderError{RegionID: 1}, "region", "region"},
		{regionerr.ErrStopping, "call", "call"},
		{&regionerr.FeatureError{Missing: 1}, "message", "message"},
	} {
		s := serviceOver(failing{standalone.New(memengine.New()), c.err})
		where := func(region, message bool, rpc error) string {
			switch {
			case rpc != nil:
				return "call"
			case region:
				return "region"
			case message:
				return "message"
			}
			return "nowhere"
		}
		r, err := s.RawCompareAndSwap(t.Context(), &kvrpcpb.RawCASRequest{Key: []byte("k")})
		require.Equal(t, c.swap, where(r.RegionError != nil, r.Error != "", err), "%v", c.err)
		require.False(t, r.Succeed, "%v", c.err)
		d, err := s.RawDeleteRange(t.Context(),
			&kvrpcpb.RawDeleteRangeRequest{StartKey: []byte("k")})
		require.Equal(t, c.deleted, where(d.RegionError != nil, d.Error != "", err), "%v", c.err)
	}
}
