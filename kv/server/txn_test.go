package server

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// TestModeRefusesTheOtherKind: in words that name the mode.
func TestModeRefusesTheOtherKind(t *testing.T) {
	ctx := context.Background()
	raw := newReplicated(t)
	get, err := raw.KvGet(ctx,
		&kvrpcpb.GetRequest{Context: regionOne(), Key: []byte("b"), Version: 1})
	require.NoError(t, err)
	require.Contains(t, get.Error.GetAbort(), "mode raw")
	pre, err := raw.KvPrewrite(ctx, &kvrpcpb.PrewriteRequest{Context: regionOne()})
	require.NoError(t, err)
	require.Contains(t, pre.Errors[0].GetAbort(), "mode raw")
	_, err = raw.KvScan(ctx, &kvrpcpb.ScanRequest{Context: regionOne()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	put, err := raw.RawPut(ctx, &kvrpcpb.RawPutRequest{Context: regionOne(), Key: []byte("b")})
	require.NoError(t, err)
	require.Empty(t, put.Error)

	txn := newReplicated(t)
	txn.SetMode(clustermode.Txn)
	put, err = txn.RawPut(ctx, &kvrpcpb.RawPutRequest{Context: regionOne(), Key: []byte("b")})
	require.NoError(t, err)
	require.Contains(t, put.Error, "mode txn")
	scan, err := txn.RawScan(ctx,
		&kvrpcpb.RawScanRequest{Context: regionOne(), StartKey: []byte("b"), Limit: 1})
	require.NoError(t, err)
	require.Contains(t, scan.Error, "mode txn")
	got, err := txn.RawGet(ctx, &kvrpcpb.RawGetRequest{Context: regionOne(), Key: []byte("b")})
	require.NoError(t, err)
	require.Contains(t, got.Error, "mode txn")
	swap, err := txn.RawCAS(ctx, &kvrpcpb.RawCASRequest{Key: []byte("k"), PreviousNotExist: true})
	require.NoError(t, err)
	require.Contains(t, swap.Error, "mode txn")
	gone, err := txn.RawDeleteRange(ctx, &kvrpcpb.RawDeleteRangeRequest{StartKey: []byte("k")})
	require.NoError(t, err)
	require.Contains(t, gone.Error, "mode txn")
}

// TestTransactionOverARegion: prewrite, commit and reads through raft, and keys of another region.
func TestTransactionOverARegion(t *testing.T) {
	ctx := context.Background()
	s := newReplicated(t)
	s.SetMode(clustermode.Txn)
	// its leadership is known to readers a moment after it is won
	require.Eventually(t, func() bool {
		resp, err := s.KvGet(ctx,
			&kvrpcpb.GetRequest{Context: regionOne(), Key: []byte("b"), Version: 1})
		return err == nil && resp.RegionError == nil
	}, 10*time.Second, time.Millisecond)
	muts := []*kvrpcpb.Mutation{
		{Op: kvrpcpb.Op_Put, Key: []byte("b"), Value: []byte("1")},
		{Op: kvrpcpb.Op_Put, Key: []byte("c"), Value: make([]byte, 1000)},
	}
	pre, err := s.KvPrewrite(ctx, &kvrpcpb.PrewriteRequest{
		Context: regionOne(), Mutations: muts, PrimaryLock: []byte("b"), StartVersion: 10,
		LockTtl: 5,
	})
	require.NoError(t, err)
	require.Equal(t, kvrpcpb.PrewriteResponse{}, *pre)
	get, err := s.KvGet(ctx,
		&kvrpcpb.GetRequest{Context: regionOne(), Key: []byte("c"), Version: 10})
	require.NoError(t, err)
	require.Equal(t, uint64(10), get.Error.GetLocked().GetLockVersion())
	com, err := s.KvCommit(ctx, &kvrpcpb.CommitRequest{
		Context: regionOne(), StartVersion: 10, CommitVersion: 11,
		Keys: [][]byte{[]byte("b"), []byte("c")},
	})
	require.NoError(t, err)
	require.Equal(t, kvrpcpb.CommitResponse{}, *com)
	scan, err := s.KvScan(ctx,
		&kvrpcpb.ScanRequest{Context: regionOne(), StartKey: []byte("a"), Limit: 10, Version: 11})
	require.NoError(t, err)
	require.Len(t, scan.Pairs, 2)
	require.Len(t, scan.Pairs[1].Value, 1000)

	com, err = s.KvCommit(ctx, &kvrpcpb.CommitRequest{
		Context: regionOne(), StartVersion: 10, CommitVersion: 11,
		Keys: [][]byte{[]byte("x"), []byte("b")},
	})
	require.NoError(t, err)
	require.NotNil(t, com.RegionError.GetKeyNotInRegion())
	com, err = s.KvCommit(ctx, &kvrpcpb.CommitRequest{
		Context: regionOne(), StartVersion: 10, CommitVersion: 11,
		Keys: [][]byte{[]byte("nothing there"), []byte("b")}[1:],
	})
	require.NoError(t, err)
	require.Nil(t, com.Error)
	com, err = s.KvCommit(ctx,
		&kvrpcpb.CommitRequest{
			Context: regionOne(), StartVersion: 20, CommitVersion: 21, Keys: [][]byte{[]byte("b")},
		})
	require.NoError(t, err)
	require.Contains(t, com.Error.GetRetryable(), "TxnLockNotFound")
}

// TestBadTransactionRequests: each is answered with what is wrong with it.
func TestBadTransactionRequests(t *testing.T) {
	ctx := context.Background()
	s := NewServer(storage.NewMemStorage())
	get, err := s.KvGet(ctx, &kvrpcpb.GetRequest{})
	require.NoError(t, err)
	require.Contains(t, get.Error.GetAbort(), "must not be empty")
	put := func(op kvrpcpb.Op, key string, primary string, start uint64) string {
		resp, err := s.KvPrewrite(ctx, &kvrpcpb.PrewriteRequest{
			Mutations:   []*kvrpcpb.Mutation{{Op: op, Key: []byte(key)}},
			PrimaryLock: []byte(primary), StartVersion: start,
		})
		require.NoError(t, err)
		require.Len(t, resp.Errors, 1)
		return resp.Errors[0].GetAbort()
	}
	require.Contains(t, put(kvrpcpb.Op_Put, "", "k", 5), "must not be empty")
	require.Contains(t, put(kvrpcpb.Op_Put, "k", "", 5), "primary")
	require.Contains(t, put(kvrpcpb.Op_Put, string(make([]byte, 5000)), "k", 5),
		"exceeds the limit")
	require.Contains(t, put(kvrpcpb.Op_Rollback, "k", "k", 5), "neither a put")
	require.Contains(t, put(kvrpcpb.Op_Put, "k", "k", 0), "InvalidTxnTso")
	_, err = s.KvScan(ctx, &kvrpcpb.ScanRequest{Limit: 1 << 30})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	_, err = s.KvCheckTxnStatus(ctx, &kvrpcpb.CheckTxnStatusRequest{})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
}
