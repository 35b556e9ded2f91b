package server

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

func TestCompareAndSwapRequests(t *testing.T) {
	s := newServer()
	swap := func(req *kvrpcpb.RawCASRequest) *kvrpcpb.RawCASResponse {
		t.Helper()
		resp, err := s.RawCAS(t.Context(), req)
		require.NoError(t, err)
		return resp
	}
	key := []byte("k")
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousNotExist: true},
		swap(&kvrpcpb.RawCASRequest{Key: key, Value: []byte("1")}))
	require.Equal(t, &kvrpcpb.RawCASResponse{Succeed: true, PreviousNotExist: true},
		swap(&kvrpcpb.RawCASRequest{Key: key, Value: []byte("1"), PreviousNotExist: true}))
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousValue: []byte("1")},
		swap(&kvrpcpb.RawCASRequest{Key: key, Value: []byte("2"), PreviousValue: []byte("3")}))
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousNotExist: true},
		swap(&kvrpcpb.RawCASRequest{
			Key: key, Cf: "lock", Value: []byte("2"), PreviousValue: []byte("1"),
		}))
	require.Equal(t, &kvrpcpb.RawCASResponse{Succeed: true, PreviousValue: []byte("1")},
		swap(&kvrpcpb.RawCASRequest{Key: key, PreviousValue: []byte("1"), Delete: true}))
	require.Contains(t, swap(&kvrpcpb.RawCASRequest{}).Error, "empty")
	require.Contains(t, swap(&kvrpcpb.RawCASRequest{Key: key, Cf: "holidays"}).Error,
		"column family")
	_, text, rpc := outcome(&regionerr.FeatureError{Missing: 1})
	require.NoError(t, rpc)
	require.Contains(t, text,
		"every store of the cluster must run a version that knows conditional-ops")
	without := New(config.Default(), new(fakeStorage), nil, nil, zap.NewNop())
	resp, err := without.RawCAS(t.Context(), &kvrpcpb.RawCASRequest{Key: key})
	require.NoError(t, err)
	require.Contains(t, resp.Error, "no compare-and-swap")
}

func TestDeleteRangeRequests(t *testing.T) {
	s := newServer()
	remove := func(cf, start, end string) string {
		t.Helper()
		resp, err := s.RawDeleteRange(t.Context(),
			&kvrpcpb.RawDeleteRangeRequest{Cf: cf, StartKey: []byte(start), EndKey: []byte(end)})
		require.NoError(t, err)
		require.Nil(t, resp.RegionError)
		return resp.Error
	}
	left := func() string {
		t.Helper()
		resp, err := s.RawScan(t.Context(), &kvrpcpb.RawScanRequest{Limit: 100})
		require.NoError(t, err)
		var keys []byte
		for _, kv := range resp.Kvs {
			keys = append(keys, kv.Key...)
		}
		return string(keys)
	}
	for _, k := range []string{"a", "b", "c", "d", "e"} {
		put(t, s, "", k, "v")
	}
	put(t, s, "write", "b", "w")
	require.Empty(t, remove("lock", "", ""))
	require.Equal(t, "abcde", left())
	require.Empty(t, remove("", "b", "d"))
	require.Equal(t, "ade", left())
	require.Contains(t, remove("", "b", "b"), "empty")
	require.Contains(t, remove("", "c", "b"), "empty")
	require.Contains(t, remove("holidays", "", ""), "column family")
	require.Contains(t, remove("", "a", string(bytes.Repeat([]byte("z"), 5000))), "limit")
	require.Empty(t, remove("", "b", ""))
	require.Equal(t, "a", left())
	resp, err := s.RawGet(t.Context(), &kvrpcpb.RawGetRequest{Cf: "write", Key: []byte("b")})
	require.NoError(t, err)
	require.Equal(t, "w", string(resp.Value))
}
