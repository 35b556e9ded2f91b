package tikv

import (
	"context"
	"fmt"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/clustermode"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	own "github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

func (s *Service) checkKey(key []byte) error {
	switch limit := int(s.cfg.Server.MaxKeySize); {
	case len(key) == 0:
		return &requestError{"the key must not be empty"}
	case len(key) > limit:
		return &requestError{
			fmt.Sprintf("the key of %d bytes exceeds the limit of %d", len(key), limit),
		}
	}
	return nil
}

// target checks whom a request is for, its column family and its keys.
func (s *Service) target(
	c *kvrpcpb.Context,
	cfName string,
	keys ...[]byte,
) (*own.Context, engine.CF, error) {
	if s.mode == clustermode.Txn {
		return nil, "", errRawRefused
	}
	to, err := translate(c)
	if err != nil {
		return nil, "", err
	}
	cf, err := engine.ParseCF(cfName)
	if err != nil {
		return nil, "", &requestError{err.Error()}
	}
	for _, key := range keys {
		if err := s.checkKey(key); err != nil {
			return nil, "", err
		}
	}
	return to, cf, nil
}

var errRawRefused = &requestError{clustermode.Txn.Refusal()}

// RawGet implements tikvpb.Tikv.
func (s *Service) RawGet(
	ctx context.Context,
	req *kvrpcpb.RawGetRequest,
) (*kvrpcpb.RawGetResponse, error) {
	to, cf, err := s.target(req.Context, req.Cf, req.Key)
	var value []byte
	var found bool
	if err == nil {
		value, found, err = s.storage.Get(ctx, to, cf, req.Key)
	}
	return getAnswer(value, found, err)
}

func getAnswer(value []byte, found bool, err error) (resp *kvrpcpb.RawGetResponse, rpc error) {
	resp = &kvrpcpb.RawGetResponse{Value: value, NotFound: err == nil && !found}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// getNow answers a get if that needs nobody else; else ok is false.
func (s *Service) getNow(
	req *kvrpcpb.RawGetRequest,
) (resp *kvrpcpb.RawGetResponse, ok bool, rpc error) {
	if s.local == nil || !s.gate.Open() {
		return nil, false, nil
	}
	defer s.gate.Note(time.Now())
	to, cf, err := s.target(req.Context, req.Cf, req.Key)
	var value []byte
	var found bool
	if err == nil {
		if value, found, ok, err = s.local.GetLocal(to, cf, req.Key); !ok {
			return nil, false, nil
		}
	}
	resp, rpc = getAnswer(value, found, err)
	return resp, true, rpc
}

// RawBatchGet implements tikvpb.Tikv: the pairs that exist, of one moment.
func (s *Service) RawBatchGet(
	ctx context.Context,
	req *kvrpcpb.RawBatchGetRequest,
) (*kvrpcpb.RawBatchGetResponse, error) {
	resp := &kvrpcpb.RawBatchGetResponse{}
	pairs, err := s.batchGet(ctx, req)
	var rpc error
	if resp.RegionError, rpc = readOutcome(err); err == nil {
		resp.Pairs = pairs
	}
	return resp, rpc
}

func (s *Service) batchGet(
	ctx context.Context,
	req *kvrpcpb.RawBatchGetRequest,
) ([]*kvrpcpb.KvPair, error) {
	if n := len(req.Keys); n > rawops.MaxKeys {
		return nil, tooMany(n)
	}
	to, cf, err := s.target(req.Context, req.Cf, req.Keys...)
	if err != nil || len(req.Keys) == 0 {
		return nil, err
	}
	r, err := s.storage.Reader(ctx, to, req.Keys[0])
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var pairs []*kvrpcpb.KvPair
	room, held := maxScanBytes, rpc.RoomOf(ctx)
	err = rawops.BatchGet(r, to.RegionId, cf, req.Keys, func(i int, value []byte) (bool, error) {
		if room -= len(req.Keys[i]) + len(value); room < 0 {
			return false, errAnswerTooLarge
		}
		if !held.Gather(maxScanBytes - room) {
			return false, &regionerr.BusyError{Reason: rpc.NoRoom}
		}
		pairs = append(pairs, &kvrpcpb.KvPair{Key: req.Keys[i], Value: value})
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return pairs, nil
}

var errAnswerTooLarge = &requestError{
	fmt.Sprintf("the answer would exceed %d bytes; ask for less at a time", maxScanBytes),
}

func tooMany(n int) error { return asRequestError(rawops.CheckCount(n)) }

// asRequestError is an error of the request itself.
func asRequestError(err error) error {
	if err == nil {
		return nil
	}
	return &requestError{err.Error()}
}

// RawGetKeyTTL implements tikvpb.Tikv.
func (s *Service) RawGetKeyTTL(
	ctx context.Context,
	req *kvrpcpb.RawGetKeyTTLRequest,
) (*kvrpcpb.RawGetKeyTTLResponse, error) {
	to, cf, err := s.target(req.Context, req.Cf, req.Key)
	resp := &kvrpcpb.RawGetKeyTTLResponse{}
	if err == nil {
		var found bool
		resp.Ttl, found, err = rawops.TTL(ctx, s.storage, to, cf, req.Key)
		resp.NotFound = err == nil && !found
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// change is a write that was checked, or what is wrong with it.
type change struct {
	to   *own.Context
	mods []storage.Modify
	err  error
}

// checkTTL refuses a TTL that is too long, or that the storage cannot keep; 0 is none.
func checkTTL(st storage.Storage, seconds uint64) error {
	return asRequestError(rawops.CheckTTL(st, seconds))
}

func (s *Service) put(req *kvrpcpb.RawPutRequest) (c change) {
	var cf engine.CF
	c.to, cf, c.err = s.target(req.Context, req.Cf, req.Key)
	if c.err == nil {
		c.err = checkTTL(s.storage, req.Ttl)
	}
	c.mods = []storage.Modify{{CF: cf, Key: req.Key, Value: req.Value, TTL: req.Ttl}}
	return c
}

func (s *Service) del(req *kvrpcpb.RawDeleteRequest) (c change) {
	var cf engine.CF
	c.to, cf, c.err = s.target(req.Context, req.Cf, req.Key)
	c.mods = []storage.Modify{{Delete: true, CF: cf, Key: req.Key}}
	return c
}

// batchPut makes one write of all pairs, so that they take effect together.
func (s *Service) batchPut(req *kvrpcpb.RawBatchPutRequest) (c change) {
	if n := len(req.Pairs); n > rawops.MaxKeys {
		return change{err: tooMany(n)}
	}
	var cf engine.CF
	if c.to, cf, c.err = s.target(req.Context, req.Cf); c.err != nil {
		return c
	}
	ttls, err := batchTTLs(req)
	if err != nil {
		return change{err: err}
	}
	for i, p := range req.Pairs {
		if c.err = s.checkKey(p.GetKey()); c.err != nil {
			return c
		}
		if c.err = checkTTL(s.storage, ttls(i)); c.err != nil {
			return c
		}
		c.mods = append(c.mods, storage.Modify{CF: cf, Key: p.Key, Value: p.Value, TTL: ttls(i)})
	}
	return c
}

// batchTTLs finds out the life of each pair: none, one for all, or one for each.
func batchTTLs(req *kvrpcpb.RawBatchPutRequest) (func(i int) uint64, error) {
	//lint:ignore SA1019 old clients set nothing else
	all := req.GetTtl()
	ttls, err := rawops.TTLs(len(req.Pairs), all, req.Ttls)
	return ttls, asRequestError(err)
}

func (s *Service) batchDelete(req *kvrpcpb.RawBatchDeleteRequest) (c change) {
	if n := len(req.Keys); n > rawops.MaxKeys {
		return change{err: tooMany(n)}
	}
	var cf engine.CF
	c.to, cf, c.err = s.target(req.Context, req.Cf, req.Keys...)
	for _, key := range req.Keys {
		c.mods = append(c.mods, storage.Modify{Delete: true, CF: cf, Key: key})
	}
	return c
}

// write carries out a change and waits for it.
func (s *Service) write(ctx context.Context, c change) error {
	if c.err != nil || len(c.mods) == 0 {
		return c.err
	}
	_, err := s.storage.Write(ctx, c.to, c.mods)
	return err
}

// RawPut implements tikvpb.Tikv.
func (s *Service) RawPut(
	ctx context.Context,
	req *kvrpcpb.RawPutRequest,
) (*kvrpcpb.RawPutResponse, error) {
	return putAnswer(s.write(ctx, s.put(req)))
}

func putAnswer(err error) (resp *kvrpcpb.RawPutResponse, rpc error) {
	resp = &kvrpcpb.RawPutResponse{}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// RawDelete implements tikvpb.Tikv. Deleting what does not exist succeeds.
func (s *Service) RawDelete(
	ctx context.Context,
	req *kvrpcpb.RawDeleteRequest,
) (*kvrpcpb.RawDeleteResponse, error) {
	return deleteAnswer(s.write(ctx, s.del(req)))
}

func deleteAnswer(err error) (resp *kvrpcpb.RawDeleteResponse, rpc error) {
	resp = &kvrpcpb.RawDeleteResponse{}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// RawBatchPut implements tikvpb.Tikv: all pairs or none.
func (s *Service) RawBatchPut(
	ctx context.Context,
	req *kvrpcpb.RawBatchPutRequest,
) (*kvrpcpb.RawBatchPutResponse, error) {
	return batchPutAnswer(s.write(ctx, s.batchPut(req)))
}

func batchPutAnswer(err error) (resp *kvrpcpb.RawBatchPutResponse, rpc error) {
	resp = &kvrpcpb.RawBatchPutResponse{}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// RawBatchDelete implements tikvpb.Tikv: all keys or none.
func (s *Service) RawBatchDelete(
	ctx context.Context,
	req *kvrpcpb.RawBatchDeleteRequest,
) (*kvrpcpb.RawBatchDeleteResponse, error) {
	return batchDeleteAnswer(s.write(ctx, s.batchDelete(req)))
}

func batchDeleteAnswer(err error) (resp *kvrpcpb.RawBatchDeleteResponse, rpc error) {
	resp = &kvrpcpb.RawBatchDeleteResponse{}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}
