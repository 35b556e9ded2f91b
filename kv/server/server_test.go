package server

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/storage/standalone"
	"github.com/tinykv/tinykv/proto/pkg/coprocessor"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

func newServer() *Server {
	cfg := config.Default()
	return New(cfg, standalone.New(memengine.New()), nil, nil, zap.NewNop())
}

func put(t *testing.T, s *Server, cf, key, value string) {
	t.Helper()
	resp, err := s.RawPut(context.Background(),
		&kvrpcpb.RawPutRequest{Cf: cf, Key: []byte(key), Value: []byte(value)})
	require.NoError(t, err)
	require.Empty(t, resp.Error)
	require.Nil(t, resp.RegionError)
}

func TestGetPutDelete(t *testing.T) {
	s, ctx := newServer(), context.Background()
	get := func(cf, key string) (string, bool) {
		resp, err := s.RawGet(ctx, &kvrpcpb.RawGetRequest{Cf: cf, Key: []byte(key)})
		require.NoError(t, err)
		require.Empty(t, resp.Error)
		return string(resp.Value), !resp.NotFound
	}
	put(t, s, "", "k", "v")
	put(t, s, "write", "k", "w")
	put(t, s, "default", "empty", "")
	for _, tc := range []struct {
		cf, key, want string
		found         bool
	}{
		{"", "k", "v", true}, {"default", "k", "v", true}, {"write", "k", "w", true},
		{"lock", "k", "", false}, {"", "empty", "", true}, {"", "absent", "", false},
	} {
		value, found := get(tc.cf, tc.key)
		require.Equal(t, tc.want, value)
		require.Equal(t, tc.found, found, "%s/%s", tc.cf, tc.key)
	}
	for range 2 { // deleting what is not there succeeds
		resp, err := s.RawDelete(ctx, &kvrpcpb.RawDeleteRequest{Key: []byte("k")})
		require.NoError(t, err)
		require.Empty(t, resp.Error)
	}
	_, found := get("", "k")
	require.False(t, found)
	_, found = get("write", "k")
	require.True(t, found)
}

func TestScan(t *testing.T) {
	s, ctx := newServer(), context.Background()
	for _, k := range []string{"a", "b", "c", "d"} {
		put(t, s, "", k, strings.Repeat(k, 100))
	}
	put(t, s, "lock", "b", "other")
	for _, tc := range []struct {
		name string
		req  kvrpcpb.RawScanRequest
		want string
		more bool
	}{
		{"all", kvrpcpb.RawScanRequest{Limit: 10}, "abcd", false},
		{"limit", kvrpcpb.RawScanRequest{Limit: 2}, "ab", false},
		{"limit 0", kvrpcpb.RawScanRequest{}, "", false},
		{"from", kvrpcpb.RawScanRequest{StartKey: []byte("b"), Limit: 10}, "bcd", false},
		{
			"range", kvrpcpb.RawScanRequest{StartKey: []byte("b"), EndKey: []byte("d"), Limit: 10},
			"bc", false,
		},
		{
			"inverted",
			kvrpcpb.RawScanRequest{StartKey: []byte("d"), EndKey: []byte("b"), Limit: 10}, "",
			false,
		},
		{"reverse", kvrpcpb.RawScanRequest{Reverse: true, Limit: 10}, "dcba", false},
		{
			"reverse range",
			kvrpcpb.RawScanRequest{
				Reverse: true, StartKey: []byte("d"), EndKey: []byte("b"), Limit: 10,
			}, "cb", false,
		},
		{"keys only", kvrpcpb.RawScanRequest{KeyOnly: true, Limit: 10}, "abcd", false},
		{"max bytes", kvrpcpb.RawScanRequest{Limit: 10, MaxBytes: 250}, "ab", true},
		{"max bytes gives one", kvrpcpb.RawScanRequest{Limit: 10, MaxBytes: 1}, "a", true},
		{"another family", kvrpcpb.RawScanRequest{Cf: "lock", Limit: 10}, "b", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, err := s.RawScan(ctx, &tc.req)
			require.NoError(t, err)
			require.Empty(t, resp.Error)
			got := ""
			for _, kv := range resp.Kvs {
				got += string(kv.Key)
				require.Equal(t, tc.req.KeyOnly, len(kv.Value) == 0)
			}
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.more, resp.More)
		})
	}
}

// TestBadRequestsAreAnswered: whatever the shape of a request, it gets an error that says what is
// wrong, and changes nothing.
func TestBadRequestsAreAnswered(t *testing.T) {
	s, ctx := newServer(), context.Background()
	long := make([]byte, 5000)
	for name, tc := range map[string]struct {
		key  []byte
		cf   string
		want string
	}{
		"nil key":      {nil, "", "empty"},
		"long key":     {long, "", "5000"},
		"unknown cf":   {[]byte("k"), "nope", "nope"},
		"cf is casing": {[]byte("k"), "Default", "Default"},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := s.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: tc.key, Cf: tc.cf})
			require.NoError(t, err)
			require.Contains(t, g.Error, tc.want)
			require.False(t, g.NotFound)
			p, err := s.RawPut(ctx,
				&kvrpcpb.RawPutRequest{Key: tc.key, Cf: tc.cf, Value: []byte("v")})
			require.NoError(t, err)
			require.Contains(t, p.Error, tc.want)
			d, err := s.RawDelete(ctx, &kvrpcpb.RawDeleteRequest{Key: tc.key, Cf: tc.cf})
			require.NoError(t, err)
			require.Contains(t, d.Error, tc.want)
		})
	}
	for name, req := range map[string]*kvrpcpb.RawScanRequest{
		"huge limit": {Limit: 1 << 31},
		"long start": {StartKey: long, Limit: 1},
		"long end":   {EndKey: long, Limit: 1},
		"unknown cf": {Cf: "x", Limit: 1},
	} {
		resp, err := s.RawScan(ctx, req)
		require.NoError(t, err)
		require.NotEmpty(t, resp.Error, name)
	}
	_, err := s.Coprocessor(ctx, &coprocessor.Request{})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	require.Error(t, s.Raft(nil), "not replicated")
}

func TestScanThatDoesNotFitIsAnErrorUnlessCut(t *testing.T) {
	s, ctx := newServer(), context.Background()
	big := string(make([]byte, 5<<20))
	for _, k := range []string{"a", "b", "c", "d"} {
		put(t, s, "", k, big)
	}
	resp, err := s.RawScan(ctx, &kvrpcpb.RawScanRequest{Limit: 10})
	require.NoError(t, err)
	require.Contains(t, resp.Error, "max_bytes")
	require.Empty(t, resp.Kvs)
	resp, err = s.RawScan(ctx, &kvrpcpb.RawScanRequest{Limit: 10, MaxBytes: 6 << 20})
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	require.True(t, resp.More)
}
