package tikv

import (
	"context"
	"fmt"
	"math"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/redact"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	own "github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// SetTransactions has the service carry out transactions; without, or with nil, it refuses them. To
// be called before it serves.
func (s *Service) SetTransactions(e *commands.Executor) { s.txn = e }

// txnTarget checks whom a request of a transaction is for, and its keys.
func (s *Service) txnTarget(c *kvrpcpb.Context, keys ...[]byte) (*own.Context, error) {
	if s.txn == nil {
		return nil, errTxnRefused
	}
	to, err := translate(c)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if err := s.checkKey(key); err != nil {
			return nil, err
		}
	}
	return to, nil
}

// inTime gives a request its time.
func (s *Service) inTime(
	ctx context.Context, c *kvrpcpb.Context,
) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.timeout(c))
}

var isolations = map[kvrpcpb.IsolationLevel]commands.Isolation{
	kvrpcpb.IsolationLevel_SI: commands.Snapshot, kvrpcpb.IsolationLevel_RC: commands.ReadCommitted,
	kvrpcpb.IsolationLevel_RCCheckTS: commands.ReadNewest,
}

// readOf is what a read at a version sees.
func readOf(c *kvrpcpb.Context, version uint64, needCommitTS bool) (commands.Read, error) {
	if c.GetStaleRead() {
		return commands.Read{}, &staleReadError{c.GetRegionId(), c.GetPeer().GetId()}
	}
	level, ok := isolations[c.GetIsolationLevel()]
	if !ok {
		return commands.Read{},
			&requestError{"unknown isolation level " + c.GetIsolationLevel().String()}
	}
	return commands.Read{
		TS: version, Isolation: level, Ignore: c.GetResolvedLocks(), Through: c.GetCommittedLocks(),
		NeedCommitTS: needCommitTS,
	}, nil
}

// KvGet implements tikvpb.Tikv.
func (s *Service) KvGet(
	ctx context.Context, req *kvrpcpb.GetRequest,
) (*kvrpcpb.GetResponse, error) {
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, rd, err := getOf(s, req)
	var v commands.Value
	if err == nil {
		v, err = s.txn.Get(ctx, to, req.Key, rd)
	}
	return getTxnAnswer(req, v, err)
}

// kvGetNow is KvGet under a lease, if ok; it never waits.
func kvGetNow(s *Service, req *kvrpcpb.GetRequest) (resp *kvrpcpb.GetResponse, ok bool, rpc error) {
	if s.txn == nil {
		return nil, false, nil
	}
	to, rd, err := getOf(s, req)
	var v commands.Value
	if err == nil {
		if v, ok, err = s.txn.GetNow(to, req.Key, rd); !ok {
			return nil, false, nil
		}
	}
	resp, rpc = getTxnAnswer(req, v, err)
	return resp, true, rpc
}

// getOf checks and translates a get.
func getOf(s *Service, req *kvrpcpb.GetRequest) (to *own.Context, rd commands.Read, err error) {
	if to, err = s.txnTarget(req.Context, req.Key); err == nil {
		rd, err = readOf(req.Context, req.Version, req.NeedCommitTs)
	}
	return to, rd, err
}

func getTxnAnswer(
	req *kvrpcpb.GetRequest, v commands.Value, err error,
) (*kvrpcpb.GetResponse, error) {
	resp := &kvrpcpb.GetResponse{Value: v.Data, NotFound: err == nil && !v.Found}
	if req.NeedCommitTs {
		resp.CommitTs = v.CommitTS
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// pairs gathers the pairs of an answer.
type pairs struct {
	list         []*kvrpcpb.KvPair
	needCommitTS bool
	size         int
	room         *rpc.Room
}

func gather(ctx context.Context, needCommitTS bool) *pairs {
	return &pairs{needCommitTS: needCommitTS, room: rpc.RoomOf(ctx)}
}

func (p *pairs) add(pair commands.Pair) error {
	kv := &kvrpcpb.KvPair{Key: pair.Key, Value: pair.Value}
	if p.needCommitTS {
		kv.CommitTs = pair.CommitTS
	}
	if pair.Err != nil {
		kv.Error = keyError(pair.Err)
	}
	if p.size += kv.Size() + 16; p.size > maxScanBytes {
		return errAnswerSize
	}
	if !p.room.Gather(p.size) {
		return &regionerr.BusyError{Reason: rpc.NoRoom}
	}
	p.list = append(p.list, kv)
	return nil
}

// KvBatchGet implements tikvpb.Tikv: the pairs that exist, of one moment, and those that are
// locked.
func (s *Service) KvBatchGet(
	ctx context.Context, req *kvrpcpb.BatchGetRequest,
) (*kvrpcpb.BatchGetResponse, error) {
	resp := &kvrpcpb.BatchGetResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	found := gather(ctx, req.NeedCommitTs)
	err := s.txnBatchGet(ctx, req, found)
	if err == nil {
		resp.Pairs = found.list
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

func (s *Service) txnBatchGet(
	ctx context.Context, req *kvrpcpb.BatchGetRequest, found *pairs,
) error {
	if n := len(req.Keys); n > rawops.MaxKeys {
		return tooMany(n)
	}
	to, err := s.txnTarget(req.Context, req.Keys...)
	if err != nil {
		return err
	}
	rd, err := readOf(req.Context, req.Version, req.NeedCommitTs)
	if err != nil {
		return err
	}
	return s.txn.BatchGet(ctx, to, req.Keys, rd, found.add)
}

// KvScan implements tikvpb.Tikv. It stays within the region. Clients take fewer pairs than the
// limit for the region's end, so nothing else may cut the answer.
func (s *Service) KvScan(
	ctx context.Context, req *kvrpcpb.ScanRequest,
) (*kvrpcpb.ScanResponse, error) {
	resp := &kvrpcpb.ScanResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	found := gather(ctx, false)
	err := s.txnScan(ctx, req, found)
	if err == nil {
		resp.Pairs = found.list
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

func (s *Service) txnScan(ctx context.Context, req *kvrpcpb.ScanRequest, found *pairs) error {
	to, err := s.txnTarget(req.Context)
	if err == nil {
		err = s.checkScan(req.Limit, scanRange{lower: req.StartKey, upper: req.EndKey})
	}
	if err != nil {
		return err
	}
	rd, err := readOf(req.Context, req.Version, false)
	if err != nil {
		return err
	}
	return s.txn.Scan(ctx, to, &commands.Scan{
		Read: rd, Start: req.StartKey, End: req.EndKey, Limit: int(req.Limit), Reverse: req.Reverse,
		KeyOnly: req.KeyOnly,
	}, found.add)
}

// KvScanLock implements tikvpb.Tikv: locks of transactions that began by max_version.
func (s *Service) KvScanLock(
	ctx context.Context, req *kvrpcpb.ScanLockRequest,
) (*kvrpcpb.ScanLockResponse, error) {
	resp := &kvrpcpb.ScanLockResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context)
	limit := int(min(req.Limit, math.MaxInt32))
	if limit == 0 {
		limit = math.MaxInt32
	}
	if err == nil {
		err = s.checkScan(0, scanRange{lower: req.StartKey, upper: req.EndKey})
	}
	if err == nil {
		var locks []mvcc.KeyLock
		locks, err = s.txn.ScanLocks(ctx, to, req.MaxVersion, bound(req.StartKey),
			bound(req.EndKey), limit)
		for i := range locks {
			resp.Locks = append(resp.Locks, lockInfo(&locks[i]))
		}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = txnOutcome(err)
	return resp, rpc
}

// bound is a bound of a range; an empty one is none.
func bound(key []byte) []byte {
	if len(key) == 0 {
		return nil
	}
	return key
}

// MvccGetByKey implements tikvpb.Tikv.
func (s *Service) MvccGetByKey(
	ctx context.Context, req *kvrpcpb.MvccGetByKeyRequest,
) (*kvrpcpb.MvccGetByKeyResponse, error) {
	resp := &kvrpcpb.MvccGetByKeyResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context, req.Key)
	if err == nil {
		var all *mvcc.Records
		if all, err = s.txn.Inspect(ctx, to, req.Key); err == nil {
			resp.Info, err = mvccInfo(all)
		}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = textOutcome(err)
	return resp, rpc
}

// MvccGetByStartTs implements tikvpb.Tikv: one key of the region that the transaction has locked or
// written.
func (s *Service) MvccGetByStartTs(
	ctx context.Context, req *kvrpcpb.MvccGetByStartTsRequest,
) (*kvrpcpb.MvccGetByStartTsResponse, error) {
	resp := &kvrpcpb.MvccGetByStartTsResponse{}
	ctx, cancel := s.inTime(ctx, req.Context)
	defer cancel()
	to, err := s.txnTarget(req.Context)
	if err == nil {
		var all *mvcc.Records
		if all, err = s.txn.InspectTxn(ctx, to, req.StartTs); err == nil && all != nil {
			resp.Key = all.Key
			resp.Info, err = mvccInfo(all)
		}
	}
	var rpc error
	if resp.RegionError, resp.Error, rpc = textOutcome(err); err != nil {
		resp.Key = nil
	}
	return resp, rpc
}

// mvccInfo is what is stored of a key in TiKV's form.
func mvccInfo(all *mvcc.Records) (*kvrpcpb.MvccInfo, error) {
	if all.Cut {
		return nil,
			&requestError{
				fmt.Sprintf("key %v has more records than one answer holds", redact.Key(all.Key)),
			}
	}
	out := &kvrpcpb.MvccInfo{}
	if l := all.Lock; l != nil {
		out.Lock = &kvrpcpb.MvccLock{
			Type: lockTypes[l.Kind], StartTs: l.Ts, Primary: l.Primary, ShortValue: l.ShortValue,
			Ttl:         l.Ttl,
			ForUpdateTs: l.ForUpdateTS, TxnSize: l.TxnSize, UseAsyncCommit: l.AsyncCommit,
			Secondaries: l.Secondaries,
			RollbackTs:  l.RollbackTS, LastChangeTs: l.LastChange.TS,
			VersionsToLastChange: l.LastChange.Versions,
		}
	}
	for _, w := range all.Writes {
		rec := &kvrpcpb.MvccWrite{
			Type: lockTypes[w.Kind], StartTs: w.StartTS, CommitTs: w.CommitTS,
			ShortValue:            w.ShortValue,
			HasOverlappedRollback: w.OverlappedRollback, HasGcFence: w.Fence != nil,
			LastChangeTs: w.LastChange.TS, VersionsToLastChange: w.LastChange.Versions,
		}
		if w.Fence != nil {
			rec.GcFence = *w.Fence
		}
		out.Writes = append(out.Writes, rec)
	}
	for _, v := range all.Values {
		out.Values = append(out.Values, &kvrpcpb.MvccValue{StartTs: v.StartTS, Value: v.Value})
	}
	return out, nil
}
