package tikv

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/memcomparable"
)

// txnCases are all RPCs of transactions that are for one region, with the names of their commands
// in a batch.
func txnCases() []rpcCase {
	type C = *kvrpcpb.Context
	put := func(key string) []*kvrpcpb.Mutation {
		return []*kvrpcpb.Mutation{{Op: kvrpcpb.Op_Put, Key: []byte("b"), Value: []byte("odd")},
			{Op: kvrpcpb.Op_Put, Key: []byte(key), Value: make([]byte, 300)}}
	}
	two := func(key string) [][]byte { return [][]byte{[]byte("b"), []byte(key)} }
	return []rpcCase{
		{"Get", func(c C, key string) encodable {
			return &kvrpcpb.GetRequest{Context: c, Key: []byte(key), Version: 100}
		}, func() answering { return new(kvrpcpb.GetResponse) }},
		{"BatchGet", func(c C, key string) encodable {
			return &kvrpcpb.BatchGetRequest{Context: c, Keys: two(key), Version: 100}
		}, func() answering { return new(kvrpcpb.BatchGetResponse) }},
		{"Scan", func(c C, key string) encodable {
			return &kvrpcpb.ScanRequest{Context: c, StartKey: []byte(key), Limit: 1, Version: 100}
		}, func() answering { return new(kvrpcpb.ScanResponse) }},
		{"Prewrite", func(c C, key string) encodable {
			return &kvrpcpb.PrewriteRequest{
				Context: c, Mutations: put(key), PrimaryLock: []byte("b"), StartVersion: 100,
				LockTtl: 9,
			}
		}, func() answering { return new(kvrpcpb.PrewriteResponse) }},
		{"Commit", func(c C, key string) encodable {
			return &kvrpcpb.CommitRequest{
				Context: c, Keys: two(key), StartVersion: 50, CommitVersion: 60,
			}
		}, func() answering { return new(kvrpcpb.CommitResponse) }},
		{"BatchRollback", func(c C, key string) encodable {
			return &kvrpcpb.BatchRollbackRequest{Context: c, Keys: two(key), StartVersion: 50}
		}, func() answering { return new(kvrpcpb.BatchRollbackResponse) }},
		{"Cleanup", func(c C, key string) encodable {
			return &kvrpcpb.CleanupRequest{Context: c, Key: []byte(key), StartVersion: 50}
		}, func() answering { return new(kvrpcpb.CleanupResponse) }},
		{"CheckTxnStatus", func(c C, key string) encodable {
			return &kvrpcpb.CheckTxnStatusRequest{
				Context: c, PrimaryKey: []byte(key), LockTs: 50, RollbackIfNotExist: true,
			}
		}, func() answering { return new(kvrpcpb.CheckTxnStatusResponse) }},
		{"CheckSecondaryLocks", func(c C, key string) encodable {
			return &kvrpcpb.CheckSecondaryLocksRequest{Context: c, Keys: two(key), StartVersion: 50}
		}, func() answering { return new(kvrpcpb.CheckSecondaryLocksResponse) }},
		{"PessimisticLock", func(c C, key string) encodable {
			return &kvrpcpb.PessimisticLockRequest{
				Context: c, PrimaryLock: []byte("b"), StartVersion: 100, ForUpdateTs: 100,
				LockTtl: 9, WaitTimeout: -1,
				Mutations: []*kvrpcpb.Mutation{
					{Op: kvrpcpb.Op_PessimisticLock, Key: []byte("b")},
					{Op: kvrpcpb.Op_PessimisticLock, Key: []byte(key)},
				},
			}
		}, func() answering { return new(kvrpcpb.PessimisticLockResponse) }},
		{"PessimisticRollback", func(c C, key string) encodable {
			return &kvrpcpb.PessimisticRollbackRequest{
				Context: c, Keys: two(key), StartVersion: 50, ForUpdateTs: 60,
			}
		}, func() answering { return new(kvrpcpb.PessimisticRollbackResponse) }},
		{"TxnHeartBeat", func(c C, key string) encodable {
			return &kvrpcpb.TxnHeartBeatRequest{
				Context: c, PrimaryLock: []byte(key), StartVersion: 50, AdviseLockTtl: 1 << 20,
			}
		}, func() answering { return new(kvrpcpb.TxnHeartBeatResponse) }},
		{"ResolveLock", func(c C, key string) encodable {
			return &kvrpcpb.ResolveLockRequest{
				Context: c, StartVersion: 50, Keys: [][]byte{[]byte(key)},
			}
		}, func() answering { return new(kvrpcpb.ResolveLockResponse) }},
		{"ScanLock", func(c C, key string) encodable {
			return &kvrpcpb.ScanLockRequest{
				Context: c, MaxVersion: math.MaxUint64, StartKey: []byte(key),
			}
		}, func() answering { return new(kvrpcpb.ScanLockResponse) }},
		{"DeleteRange", func(c C, key string) encodable {
			return &kvrpcpb.DeleteRangeRequest{
				Context: c, StartKey: []byte(key), EndKey: []byte(key + "~"),
			}
		}, func() answering { return new(kvrpcpb.DeleteRangeResponse) }},
		{"MvccGetByKey", func(c C, key string) encodable {
			return &kvrpcpb.MvccGetByKeyRequest{Context: c, Key: []byte(key)}
		}, func() answering { return new(kvrpcpb.MvccGetByKeyResponse) }},
		{"MvccGetByStartTs", func(c C, _ string) encodable {
			return &kvrpcpb.MvccGetByStartTsRequest{Context: c, StartTs: 50}
		}, func() answering { return new(kvrpcpb.MvccGetByStartTsResponse) }},
		{"SplitRegion", func(c C, key string) encodable {
			return &kvrpcpb.SplitRegionRequest{Context: c, SplitKeys: [][]byte{[]byte(key)}}
		}, func() answering { return new(kvrpcpb.SplitRegionResponse) }},
	}
}

// path is the RPC of a case.
func (c *rpcCase) path() string {
	switch c.method {
	case "MvccGetByKey", "MvccGetByStartTs", "SplitRegion":
		return c.method
	case "PessimisticRollback":
		return "KV" + c.method
	}
	return "Kv" + c.method
}

// replicatedTxn is the storage of a store that has the region of the keys [a, m), and leads it.
func replicatedTxn(t testing.TB) storage.Storage {
	return replicatedOf(t, memcomparable.Encode([]byte("a")), memcomparable.Encode([]byte("m")),
		true)
}

// startTxnWire serves a region of a transactional cluster in which b and c are committed at 60, and
// d is locked at 70.
func startTxnWire(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn := txnOverTheWire(t, replicatedTxn(t))
	do := func(method string, req encodable, resp answering) {
		t.Helper()
		require.NoError(t, ask(t, conn, method, req, resp))
		require.Nil(t, resp.GetRegionError())
	}
	pre := func(start uint64, keys ...string) *kvrpcpb.PrewriteRequest {
		req := &kvrpcpb.PrewriteRequest{
			Context: goodContext(), PrimaryLock: []byte(keys[0]), StartVersion: start, LockTtl: 5,
			MinCommitTs: start + 1, TxnSize: 3,
		}
		for _, k := range keys {
			req.Mutations = append(req.Mutations,
				&kvrpcpb.Mutation{Op: kvrpcpb.Op_Put, Key: []byte(k), Value: []byte("v" + k)})
		}
		return req
	}
	for start, keys := range map[uint64][]string{50: {"b", "c"}, 70: {"d"}} {
		resp := new(kvrpcpb.PrewriteResponse)
		do("KvPrewrite", pre(start, keys...), resp)
		require.Equal(t, &kvrpcpb.PrewriteResponse{}, resp)
	}
	resp := new(kvrpcpb.CommitResponse)
	do("KvCommit", &kvrpcpb.CommitRequest{
		Context: goodContext(), Keys: [][]byte{[]byte("b"), []byte("c")}, StartVersion: 50,
		CommitVersion: 60,
	}, resp)
	require.Equal(t, &kvrpcpb.CommitResponse{CommitVersion: 60}, resp)
	return conn
}

// records are all that is stored of the keys that these tests use.
func records(t *testing.T, conn *grpc.ClientConn) (out string) {
	t.Helper()
	for _, key := range []string{"b", "c", "d", "e", "z"} {
		resp := new(kvrpcpb.MvccGetByKeyResponse)
		req := &kvrpcpb.MvccGetByKeyRequest{Context: goodContext(), Key: []byte(key)}
		require.NoError(t, ask(t, conn, "MvccGetByKey", req, resp))
		require.Equal(t, key == "z", resp.RegionError != nil)
		out += fmt.Sprintf("%s: %v\n", key, resp.Info)
	}
	return out
}

// Each RPC of transactions says in a region error that the request is not for this region, or that
// its key is not there, and writes nothing.
func TestTxnRequestsForOtherRegions(t *testing.T) {
	conn := startTxnWire(t)
	before := records(t, conn)
	for _, rpc := range txnCases() {
		odds := oddContexts()
		elsewhere := odds["no context"]
		elsewhere.context = goodContext()
		elsewhere.context.ClusterId = 1 << 40
		odds["foreign cluster"] = elsewhere
		for name, odd := range odds {
			resp := rpc.answer()
			require.NoError(t, ask(t, conn, rpc.path(), rpc.request(odd.context, "c"), resp),
				"%s, %s", rpc.method, name)
			require.True(t, odd.wanted(resp.GetRegionError()), "%s, %s: %v", rpc.method, name, resp)
		}
		// which are clipped
		if rpc.method != "ScanLock" && rpc.method != "DeleteRange" &&
			rpc.method != "MvccGetByStartTs" {
			resp := rpc.answer()
			require.NoError(t, ask(t, conn, rpc.path(), rpc.request(goodContext(), "z"), resp),
				rpc.method)
			require.NotNil(t, resp.GetRegionError().GetKeyNotInRegion(), "%s: %v", rpc.method, resp)
		}
		require.Equal(t, before, records(t, conn), rpc.method)
	}
}

// abortOf is the text of an answer that refuses a request for good.
func abortOf(resp any) string {
	switch r := resp.(type) {
	case interface{ GetError() *kvrpcpb.KeyError }:
		return r.GetError().GetAbort()
	case interface{ GetErrors() []*kvrpcpb.KeyError }:
		if len(r.GetErrors()) == 1 {
			return r.GetErrors()[0].GetAbort()
		}
	case interface{ GetError() string }:
		return r.GetError()
	case interface{ GetRegionError() *errorpb.Error }: // the answer to a split has no other place
		return r.GetRegionError().GetMessage()
	}
	return ""
}

// What is wrong with a request itself is said by an abort, and nothing is written.
func TestTxnRequestsThatAreWrong(t *testing.T) {
	conn := startTxnWire(t)
	before := records(t, conn)
	good := goodContext()
	mut := func(op kvrpcpb.Op) []*kvrpcpb.Mutation {
		return []*kvrpcpb.Mutation{
			{Op: kvrpcpb.Op_Put, Key: []byte("e"), Value: []byte("v")}, {Op: op, Key: []byte("c")},
		}
	}
	pre := func(change func(*kvrpcpb.PrewriteRequest)) *kvrpcpb.PrewriteRequest {
		req := &kvrpcpb.PrewriteRequest{
			Context: good, Mutations: mut(kvrpcpb.Op_Put), PrimaryLock: []byte("e"),
			StartVersion: 100,
		}
		change(req)
		return req
	}
	one := [][]byte{[]byte("d")}
	far := goodContext()
	far.ApiVersion = kvrpcpb.APIVersion_V2
	odd := goodContext()
	odd.IsolationLevel = 77
	for name, c := range map[string]struct {
		method string
		req    encodable
		resp   answering
		want   string
	}{
		"API V2": {
			"KvGet", &kvrpcpb.GetRequest{Context: far, Key: one[0]}, &kvrpcpb.GetResponse{},
			"API version",
		},
		"empty key": {
			"KvGet", &kvrpcpb.GetRequest{Context: good}, &kvrpcpb.GetResponse{},
			"must not be empty",
		},
		"isolation": {
			"KvGet", &kvrpcpb.GetRequest{Context: odd, Key: one[0]}, &kvrpcpb.GetResponse{},
			"isolation",
		},
		"empty key of many": {
			"KvBatchGet", &kvrpcpb.BatchGetRequest{Context: good, Keys: [][]byte{one[0], nil}},
			&kvrpcpb.BatchGetResponse{}, "must not be empty",
		},
		"limit": {
			"KvScan", &kvrpcpb.ScanRequest{Context: good, StartKey: one[0], Limit: 1 << 30},
			&kvrpcpb.ScanResponse{}, "limit",
		},
		"rollback": {
			"KvPrewrite",
			pre(func(r *kvrpcpb.PrewriteRequest) { r.Mutations = mut(kvrpcpb.Op_Rollback) }),
			&kvrpcpb.PrewriteResponse{}, "Rollback",
		},
		"unknown op": {
			"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) { r.Mutations = mut(99) }),
			&kvrpcpb.PrewriteResponse{}, "99",
		},
		"pessimistic op": {
			"KvPrewrite",
			pre(func(r *kvrpcpb.PrewriteRequest) { r.Mutations = mut(kvrpcpb.Op_PessimisticLock) }),
			&kvrpcpb.PrewriteResponse{}, "PessimisticLock",
		},
		"constraints": {"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) {
			r.ForUpdateTsConstraints = []*kvrpcpb.PrewriteRequest_ForUpdateTSConstraint{{Index: 9}}
		}), &kvrpcpb.PrewriteResponse{}, "do not fit"},
		"checks": {"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) {
			r.PessimisticActions = []kvrpcpb.PrewriteRequest_PessimisticAction{1}
		}), &kvrpcpb.PrewriteResponse{}, "for_update_ts"},
		"more checks": {"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) {
			r.PessimisticActions = make([]kvrpcpb.PrewriteRequest_PessimisticAction, 9)
		}), &kvrpcpb.PrewriteResponse{}, "do not fit"},
		"no primary": {
			"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) { r.PrimaryLock = nil }),
			&kvrpcpb.PrewriteResponse{}, "primary",
		},
		"no start": {
			"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) { r.StartVersion = 0 }),
			&kvrpcpb.PrewriteResponse{}, "InvalidTxnTso",
		},
		"start at end": {
			"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) { r.StartVersion = math.MaxUint64 }),
			&kvrpcpb.PrewriteResponse{}, "InvalidTxnTso",
		},
		"files": {
			"KvPrewrite", pre(func(r *kvrpcpb.PrewriteRequest) { r.TxnFileChunks = []uint64{1} }),
			&kvrpcpb.PrewriteResponse{}, "files",
		},
		"back in time": {
			"KvCommit",
			&kvrpcpb.CommitRequest{Context: good, Keys: one, StartVersion: 70, CommitVersion: 70},
			&kvrpcpb.CommitResponse{}, "InvalidTxnTso",
		},
		"commit at end": {
			"KvCommit",
			&kvrpcpb.CommitRequest{
				Context: good, Keys: one, StartVersion: 70, CommitVersion: math.MaxUint64,
			}, &kvrpcpb.CommitResponse{}, "InvalidTxnTso",
		},
		"rollback at 0": {
			"KvBatchRollback", &kvrpcpb.BatchRollbackRequest{Context: good, Keys: one},
			&kvrpcpb.BatchRollbackResponse{}, "InvalidTxnTso",
		},
		"rollback at ∞": {
			"KvBatchRollback",
			&kvrpcpb.BatchRollbackRequest{Context: good, Keys: one, StartVersion: math.MaxUint64},
			&kvrpcpb.BatchRollbackResponse{}, "InvalidTxnTso",
		},
		"committed": {
			"KvBatchRollback",
			&kvrpcpb.BatchRollbackRequest{
				Context: good, Keys: [][]byte{one[0], []byte("b")}, StartVersion: 50,
			}, &kvrpcpb.BatchRollbackResponse{}, "Committed",
		},
		"cleanup at 0": {
			"KvCleanup", &kvrpcpb.CleanupRequest{Context: good, Key: one[0]},
			&kvrpcpb.CleanupResponse{}, "InvalidTxnTso",
		},
		"status at 0": {
			"KvCheckTxnStatus",
			&kvrpcpb.CheckTxnStatusRequest{
				Context: good, PrimaryKey: one[0], RollbackIfNotExist: true,
			}, &kvrpcpb.CheckTxnStatusResponse{}, "InvalidTxnTso",
		},
		"status of none": {
			"KvCheckTxnStatus", &kvrpcpb.CheckTxnStatusRequest{Context: good, LockTs: 5},
			&kvrpcpb.CheckTxnStatusResponse{}, "must not be empty",
		},
		"heartbeat at 0": {
			"KvTxnHeartBeat",
			&kvrpcpb.TxnHeartBeatRequest{Context: good, PrimaryLock: one[0], AdviseLockTtl: 5},
			&kvrpcpb.TxnHeartBeatResponse{}, "InvalidTxnTso",
		},
		"resolve back": {
			"KvResolveLock",
			&kvrpcpb.ResolveLockRequest{Context: good, StartVersion: 70, CommitVersion: 69},
			&kvrpcpb.ResolveLockResponse{}, "InvalidTxnTso",
		},
		"resolve keys": {
			"KvResolveLock",
			&kvrpcpb.ResolveLockRequest{Context: good, Keys: one, CommitVersion: 69},
			&kvrpcpb.ResolveLockResponse{}, "InvalidTxnTso",
		},
		"resolve infos": {"KvResolveLock", &kvrpcpb.ResolveLockRequest{
			Context: good, TxnInfos: []*kvrpcpb.TxnInfo{{Txn: 70}, {Txn: 71, Status: 3}},
		}, &kvrpcpb.ResolveLockResponse{}, "InvalidTxnTso"},
		"inverted": {
			"KvDeleteRange",
			&kvrpcpb.DeleteRangeRequest{Context: good, StartKey: []byte("e"), EndKey: []byte("b")},
			&kvrpcpb.DeleteRangeResponse{}, "empty",
		},
		"destroy all": {
			"UnsafeDestroyRange", &kvrpcpb.UnsafeDestroyRangeRequest{Context: good},
			&kvrpcpb.UnsafeDestroyRangeResponse{}, "two bounds",
		},
		"destroy upwards": {
			"UnsafeDestroyRange",
			&kvrpcpb.UnsafeDestroyRangeRequest{Context: good, StartKey: []byte("c")},
			&kvrpcpb.UnsafeDestroyRangeResponse{}, "two bounds",
		},
		"split at nothing": {
			"SplitRegion", &kvrpcpb.SplitRegionRequest{Context: good},
			&kvrpcpb.SplitRegionResponse{}, "",
		},
		"raw put": {
			"RawPut", &kvrpcpb.RawPutRequest{Context: good, Key: one[0]}, &kvrpcpb.RawPutResponse{},
			"mode txn",
		},
		"lock": {
			"KvPessimisticLock",
			&kvrpcpb.PessimisticLockRequest{Context: good, StartVersion: 70, ForUpdateTs: 69},
			&kvrpcpb.PessimisticLockResponse{}, "InvalidTxnTso",
		},
		"lock a put": {"KvPessimisticLock", &kvrpcpb.PessimisticLockRequest{
			Context: good, StartVersion: 70, ForUpdateTs: 70, Mutations: mut(kvrpcpb.Op_Put),
			PrimaryLock: one[0],
		}, &kvrpcpb.PessimisticLockResponse{}, "operation Put"},
		"lock in spite of all": {"KvPessimisticLock", &kvrpcpb.PessimisticLockRequest{
			Context: good, StartVersion: 70, ForUpdateTs: 70,
			WakeUpMode: kvrpcpb.PessimisticLockWakeUpMode_WakeUpModeForceLock,
		}, &kvrpcpb.PessimisticLockResponse{}, "in spite of a conflict"},
		"lock what exists": {"KvPessimisticLock", &kvrpcpb.PessimisticLockRequest{
			Context: good, StartVersion: 70, ForUpdateTs: 70, LockOnlyIfExists: true,
		}, &kvrpcpb.PessimisticLockResponse{}, "return_values"},
		"unlock": {
			"KVPessimisticRollback", &kvrpcpb.PessimisticRollbackRequest{Context: good},
			&kvrpcpb.PessimisticRollbackResponse{}, "InvalidTxnTso",
		},
		"secondaries": {
			"KvCheckSecondaryLocks", &kvrpcpb.CheckSecondaryLocksRequest{Context: good, Keys: one},
			&kvrpcpb.CheckSecondaryLocksResponse{}, "InvalidTxnTso",
		},
	} {
		err := ask(t, conn, c.method, c.req, c.resp)
		if c.method == "SplitRegion" {
			require.ErrorContains(t, err, "without keys")
			continue
		}
		require.NoError(t, err, name)
		require.Nil(t, c.resp.GetRegionError(), name)
		require.Contains(t, abortOf(c.resp), c.want, "%s: %v", name, c.resp)
		require.Equal(t, before, records(t, conn), name)
	}
}

// Errors of keys have all the fields that clients act on.
func TestTxnErrorsOfKeys(t *testing.T) {
	conn := startTxnWire(t)
	before := records(t, conn)
	good := goodContext()
	get := new(kvrpcpb.GetResponse)
	require.NoError(t,
		ask(t, conn, "KvGet", &kvrpcpb.GetRequest{Context: good, Key: []byte("d"), Version: 80},
			get))
	lock := &kvrpcpb.LockInfo{
		Key: []byte("d"), PrimaryLock: []byte("d"), LockVersion: 70, LockTtl: 5, TxnSize: 3,
		MinCommitTs: 71,
	}
	require.Equal(t, lock, get.Error.Locked)
	pre := func(change func(*kvrpcpb.PrewriteRequest)) *kvrpcpb.KeyError {
		req := &kvrpcpb.PrewriteRequest{
			Context: good, PrimaryLock: []byte("e"), StartVersion: 100,
			Mutations: []*kvrpcpb.Mutation{
				{Op: kvrpcpb.Op_Put, Key: []byte("e")}, {Op: kvrpcpb.Op_Put, Key: []byte("c")},
			},
		}
		change(req)
		resp := new(kvrpcpb.PrewriteResponse)
		require.NoError(t, ask(t, conn, "KvPrewrite", req, resp))
		require.Len(t, resp.Errors, 1)
		return resp.Errors[0]
	}
	e := pre(func(r *kvrpcpb.PrewriteRequest) { r.StartVersion = 55 })
	require.Contains(t, e.Retryable, "write conflict")
	require.Equal(t, &kvrpcpb.WriteConflict{
		StartTs: 55, ConflictTs: 50, ConflictCommitTs: 60, Key: []byte("c"), Primary: []byte("e"),
		Reason: kvrpcpb.WriteConflict_Optimistic,
	}, e.Conflict)
	require.Equal(t, []byte("c"),
		pre(func(r *kvrpcpb.PrewriteRequest) {
			r.Mutations[1].Op = kvrpcpb.Op_Insert
		}).AlreadyExist.Key)
	require.Equal(t, []byte("c"),
		pre(func(r *kvrpcpb.PrewriteRequest) {
			r.Mutations[1].Op = kvrpcpb.Op_CheckNotExists
		}).AlreadyExist.Key)
	e = pre(func(r *kvrpcpb.PrewriteRequest) {
		r.AssertionLevel, r.Mutations[1].Assertion = kvrpcpb.AssertionLevel_Strict,
			kvrpcpb.Assertion_NotExist
	})
	require.Equal(t, &kvrpcpb.AssertionFailed{
		StartTs: 100, Key: []byte("c"), Assertion: kvrpcpb.Assertion_NotExist, ExistingStartTs: 50,
		ExistingCommitTs: 60,
	}, e.AssertionFailed)
	e = pre(func(r *kvrpcpb.PrewriteRequest) { r.Mutations[0].Key = []byte("d") })
	require.Equal(t, lock, e.Locked)

	commit := func(start, ts uint64, key string) *kvrpcpb.KeyError {
		resp := new(kvrpcpb.CommitResponse)
		req := &kvrpcpb.CommitRequest{
			Context: good, StartVersion: start, CommitVersion: ts,
			Keys: [][]byte{[]byte("d"), []byte(key)},
		}
		require.NoError(t, ask(t, conn, "KvCommit", req, resp))
		require.Zero(t, resp.CommitVersion)
		return resp.Error
	}
	e = commit(70, 80, "e")
	require.Contains(t, e.Retryable, "TxnLockNotFound")
	require.Equal(t, []byte("e"), e.TxnLockNotFound.Key)
	status := func(key string, caller uint64) *kvrpcpb.CheckTxnStatusResponse {
		resp := new(kvrpcpb.CheckTxnStatusResponse)
		req := &kvrpcpb.CheckTxnStatusRequest{
			Context: good, PrimaryKey: []byte(key), LockTs: 70, CallerStartTs: caller,
			VerifyIsPrimary: true,
		}
		require.NoError(t, ask(t, conn, "KvCheckTxnStatus", req, resp))
		return resp
	}
	require.Equal(t, &kvrpcpb.TxnNotFound{StartTs: 70, PrimaryKey: []byte("e")},
		status("e", 0).Error.TxnNotFound)
	require.Equal(t, before, records(t, conn))
	st := status("d", 90)
	require.Equal(t, kvrpcpb.Action_MinCommitTSPushed, st.Action)
	require.EqualValues(t, 91, st.LockInfo.MinCommitTs)
	require.Equal(t, &kvrpcpb.CommitTsExpired{
		StartTs: 70, AttemptedCommitTs: 80, Key: []byte("d"), MinCommitTs: 91,
	}, commit(70, 80, "d").CommitTsExpired)

	two := &kvrpcpb.PrewriteRequest{
		Context: good, PrimaryLock: []byte("f"), StartVersion: 120, UseAsyncCommit: true,
		TryOnePc: true, Secondaries: [][]byte{[]byte("g")},
		Mutations: []*kvrpcpb.Mutation{
			{Op: kvrpcpb.Op_Put, Key: []byte("f")}, {Op: kvrpcpb.Op_Put, Key: []byte("g")},
		},
	}
	resp := new(kvrpcpb.PrewriteResponse)
	require.NoError(t, ask(t, conn, "KvPrewrite", two, resp))
	require.Equal(t, &kvrpcpb.PrewriteResponse{}, resp, "the client goes on in two phases")
	mis := new(kvrpcpb.CheckTxnStatusResponse)
	req := &kvrpcpb.CheckTxnStatusRequest{
		Context: good, PrimaryKey: []byte("g"), LockTs: 120, VerifyIsPrimary: true,
	}
	require.NoError(t, ask(t, conn, "KvCheckTxnStatus", req, mis))
	require.Equal(t, []byte("f"), mis.Error.PrimaryMismatch.LockInfo.PrimaryLock)
	require.False(t, mis.Error.PrimaryMismatch.LockInfo.UseAsyncCommit)

	stale := goodContext()
	stale.StaleRead = true
	require.NoError(t,
		ask(t, conn, "KvGet", &kvrpcpb.GetRequest{Context: stale, Key: []byte("d"), Version: 80},
			get))
	require.NotNil(t, get.RegionError.DataIsNotReady)
}

// Requests of transactions in a batch get the same answers as alone, in any order, and the stream
// goes on.
func TestTxnBatches(t *testing.T) {
	conn := startTxnWire(t)
	before := records(t, conn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/"+serviceName+"/BatchCommands")
	require.NoError(t, err)
	numbers := map[string]uint16{}
	for n, kind := range commandKinds() {
		numbers[kind] = n
	}
	one := func(number uint16, req encodable) *tikvpb.BatchCommandsResponse_Response {
		t.Helper()
		data, err := req.Marshal()
		require.NoError(t, err)
		out, in := batchOf(number, data), encoded{}
		require.NoError(t, stream.SendMsg(&out))
		require.NoError(t, stream.RecvMsg(&in))
		resp := new(tikvpb.BatchCommandsResponse)
		require.NoError(t, resp.Unmarshal(in))
		require.Len(t, resp.Responses, 1)
		return resp.Responses[0]
	}
	served := 0
	for _, rpc := range txnCases() {
		number, ok := numbers[rpc.method]
		if !ok {
			continue // it is no command of a batch
		}
		served++
		for name, odd := range oddContexts() {
			answer, err := one(number, rpc.request(odd.context, "c")).Marshal()
			require.NoError(t, err)
			resp := rpc.answer() // the only field of the response
			_, n := tagAndSize(answer)
			require.NoError(t, resp.Unmarshal(answer[n:]))
			require.True(t, odd.wanted(resp.GetRegionError()), "%s, %s: %v", rpc.method, name, resp)
		}
	}
	require.Equal(t, 15, served)
	require.Equal(t, before, records(t, conn))
	for name, text := range map[string]string{
		"Flush": "not served", "BufferBatchGet": "not served",
	} {
		require.Contains(t, one(numbers[name], &kvrpcpb.FlushRequest{}).String(), text, name)
	}
	got := one(numbers["Scan"],
		&kvrpcpb.ScanRequest{
			Context: goodContext(), StartKey: []byte("e"), EndKey: []byte("b"), Limit: 9,
			Version: 65, Reverse: true,
		})
	require.Equal(t,
		[]*kvrpcpb.KvPair{
			{Key: []byte("c"), Value: []byte("vc")}, {Key: []byte("b"), Value: []byte("vb")},
		}, got.GetScan().Pairs)
	split := new(kvrpcpb.SplitRegionResponse)
	err = ask(t, conn, "SplitRegion",
		&kvrpcpb.SplitRegionRequest{Context: goodContext(), SplitKeys: [][]byte{[]byte("c")}},
		split)
	require.True(t, err != nil || split.RegionError != nil, "nobody gives out ids here")
}

// A cluster of raw keys refuses transactions by words that name the mode.
func TestTransactionsAreRefusedAmongRawKeys(t *testing.T) {
	conn := startWire(t)
	before := content(t, conn)
	for _, rpc := range txnCases() {
		if rpc.method == "SplitRegion" {
			continue
		}
		resp := rpc.answer()
		require.NoError(t, ask(t, conn, rpc.path(), rpc.request(goodContext(), "c"), resp),
			rpc.method)
		require.Contains(t, abortOf(resp), "mode raw", rpc.method)
		require.Equal(t, before, content(t, conn))
	}
	lock := new(kvrpcpb.PessimisticLockResponse)
	require.NoError(t, ask(t, conn, "KvPessimisticLock", &kvrpcpb.PessimisticLockRequest{}, lock))
	require.Contains(t, abortOf(lock), "mode raw")
}
