package server

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// TestRawBatches: what clients can ask for, and what is answered.
func TestRawBatches(t *testing.T) {
	s := newReplicatedWith(t, raftstore.Options{})
	s.cfg.Server.GRPCMaxMessage = 8 << 10
	to := &kvrpcpb.Context{
		RegionId: 1, Peer: &metapb.Peer{Id: 1, StoreId: 1},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
	put := func(ttls []uint64, keys ...string) *kvrpcpb.RawBatchPutResponse {
		t.Helper()
		req := &kvrpcpb.RawBatchPutRequest{Context: to, Ttls: ttls}
		for _, k := range keys {
			req.Pairs = append(req.Pairs,
				&kvrpcpb.KvPair{Key: []byte(k), Value: bytes.Repeat([]byte{'v'}, 1<<10)})
		}
		resp, err := s.RawBatchPut(t.Context(), req)
		require.NoError(t, err)
		return resp
	}
	get := func(keys ...string) *kvrpcpb.RawBatchGetResponse {
		t.Helper()
		req := &kvrpcpb.RawBatchGetRequest{Context: to}
		for _, k := range keys {
			req.Keys = append(req.Keys, []byte(k))
		}
		resp, err := s.RawBatchGet(t.Context(), req)
		require.NoError(t, err)
		return resp
	}
	var keys []string
	for i := range 12 {
		keys = append(keys, fmt.Sprintf("k%02d", i))
	}
	require.Empty(t, put(nil).Error)
	require.Empty(t, put(nil, keys...).Error)
	require.NotNil(t, put(nil, "b", "z").RegionError.GetKeyNotInRegion())
	require.Contains(t, put([]uint64{1, 2}, "b", "c", "d").Error, "2 TTLs for 3 pairs")
	require.Contains(t, put(nil, "b", "").Error, "empty")
	require.Contains(t, put([]uint64{1, 1 << 63}, "b", "c").Error, "longest")
	require.Contains(t, put(nil, make([]string, rawops.MaxKeys+1)...).Error, "at most")

	cut := get(append([]string{"absent"}, keys...)...)
	require.Empty(t, cut.Error)
	require.Equal(t, int(cut.Read)-1, len(cut.Pairs), "all but the one that is absent")
	require.Less(t, len(cut.Pairs), len(keys))
	require.NotEmpty(t, cut.Pairs)
	require.Empty(t, get().Pairs)
	require.NotNil(t, get("b", "z").RegionError.GetKeyNotInRegion())
	require.Empty(t, get("b", "c", "d").Pairs, "nothing of a refused batch was written")

	sum := func(start, end string) *kvrpcpb.RawChecksumResponse {
		t.Helper()
		resp, err := s.RawChecksum(t.Context(),
			&kvrpcpb.RawChecksumRequest{Context: to, StartKey: []byte(start), EndKey: []byte(end)})
		require.NoError(t, err)
		return resp
	}
	all, left, right := sum("", ""), sum("", "k05"), sum("k05", "zz")
	require.EqualValues(t, len(keys), all.TotalKvs)
	require.Equal(t, all.Checksum, left.Checksum^right.Checksum)
	require.Equal(t, all.TotalBytes, left.TotalBytes+right.TotalBytes)
	require.Zero(t, sum("k05", "k05").TotalKvs)
	require.Zero(t, sum("k05", "k01").TotalKvs)

	del, err := s.RawBatchDelete(t.Context(),
		&kvrpcpb.RawBatchDeleteRequest{
			Context: to, Keys: [][]byte{[]byte("k00"), []byte("absent")},
		})
	require.NoError(t, err)
	require.Empty(t, del.Error)
	require.Empty(t, get("k00").Pairs)
	require.EqualValues(t, len(keys)-1, sum("", "").TotalKvs)
}
