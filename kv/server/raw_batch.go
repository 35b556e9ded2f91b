package server

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/kv/storage"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Requests for many raw keys of one region.

// checkKeys checks the column family of a request, how many keys it has, and each of them.
func checkKeys(s *Server, cfName string, n int, key func(i int) []byte) (engine.CF, error) {
	cf, err := s.checkCF(cfName)
	if err == nil {
		err = asRequestError(rawops.CheckCount(n))
	}
	for i := 0; i < n && err == nil; i++ {
		err = s.checkKey(key(i))
	}
	return cf, err
}

// RawBatchGet implements tinykvpb.TinyKvServer: the pairs that exist, of one moment. An answer that
// is cut says so.
func (s *Server) RawBatchGet(
	ctx context.Context, req *kvrpcpb.RawBatchGetRequest,
) (*kvrpcpb.RawBatchGetResponse, error) {
	resp := &kvrpcpb.RawBatchGetResponse{}
	err := rawBatchGet(ctx, s, req, resp)
	if err != nil {
		*resp = kvrpcpb.RawBatchGetResponse{}
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

func rawBatchGet(
	ctx context.Context, s *Server, req *kvrpcpb.RawBatchGetRequest, resp *kvrpcpb.RawBatchGetResponse,
) error {
	cf, err := checkKeys(s, req.Cf, len(req.Keys), func(i int) []byte { return req.Keys[i] })
	if err != nil || len(req.Keys) == 0 {
		return err
	}
	r, err := s.storage.Reader(ctx, req.Context, req.Keys[0])
	if err != nil {
		return err
	}
	defer r.Close()
	size, room, held := 0, int(s.cfg.Server.GRPCMaxMessage)*3/4, rpc.RoomOf(ctx)
	resp.Read = uint32(len(req.Keys))
	return rawops.BatchGet(r, req.Context.GetRegionId(), cf, req.Keys,
		func(i int, value []byte) (bool, error) {
			size += len(req.Keys[i]) + len(value) + 16
			full := !held.Gather(size)
			if full && len(resp.Pairs) == 0 {
				return false, &regionerr.BusyError{Reason: rpc.NoRoom}
			}
			if (full || size > room) && len(resp.Pairs) > 0 {
				resp.Read = uint32(i)
				return false, nil
			}
			resp.Pairs = append(resp.Pairs, &kvrpcpb.KvPair{Key: req.Keys[i], Value: value})
			return true, nil
		})
}

// RawBatchPut implements tinykvpb.TinyKvServer: all pairs or none.
func (s *Server) RawBatchPut(
	ctx context.Context, req *kvrpcpb.RawBatchPutRequest,
) (*kvrpcpb.RawBatchPutResponse, error) {
	resp := &kvrpcpb.RawBatchPutResponse{}
	mods, err := batchPut(s, req)
	if err == nil && len(mods) > 0 {
		resp.LogIndex, err = s.storage.Write(ctx, req.Context, mods)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

func batchPut(s *Server, req *kvrpcpb.RawBatchPutRequest) ([]storage.Modify, error) {
	cf, err := checkKeys(s, req.Cf, len(req.Pairs), func(i int) []byte {
		return req.Pairs[i].GetKey()
	})
	if err != nil {
		return nil, err
	}
	ttls, err := rawops.TTLs(len(req.Pairs), 0, req.Ttls)
	if err != nil {
		return nil, asRequestError(err)
	}
	mods := make([]storage.Modify, 0, len(req.Pairs))
	for i, p := range req.Pairs {
		if err := checkTTL(s.storage, ttls(i)); err != nil {
			return nil, err
		}
		mods = append(mods, storage.Modify{CF: cf, Key: p.Key, Value: p.Value, TTL: ttls(i)})
	}
	return mods, nil
}

// RawBatchDelete implements tinykvpb.TinyKvServer: all keys or none.
func (s *Server) RawBatchDelete(
	ctx context.Context, req *kvrpcpb.RawBatchDeleteRequest,
) (*kvrpcpb.RawBatchDeleteResponse, error) {
	resp := &kvrpcpb.RawBatchDeleteResponse{}
	cf, err := checkKeys(s, req.Cf, len(req.Keys), func(i int) []byte { return req.Keys[i] })
	if err == nil && len(req.Keys) > 0 {
		mods := make([]storage.Modify, 0, len(req.Keys))
		for _, key := range req.Keys {
			mods = append(mods, storage.Modify{Delete: true, CF: cf, Key: key})
		}
		resp.LogIndex, err = s.storage.Write(ctx, req.Context, mods)
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// RawChecksum implements tinykvpb.TinyKvServer. The range is clipped to the region.
func (s *Server) RawChecksum(
	ctx context.Context, req *kvrpcpb.RawChecksumRequest,
) (*kvrpcpb.RawChecksumResponse, error) {
	resp := &kvrpcpb.RawChecksumResponse{}
	sum, err := checksum(ctx, s, req)
	var rpc error
	if resp.RegionError, resp.Error, rpc = outcome(err); err == nil {
		resp.Checksum, resp.TotalKvs, resp.TotalBytes = sum.Checksum, sum.Pairs, sum.Bytes
	}
	return resp, rpc
}

func checksum(
	ctx context.Context, s *Server, req *kvrpcpb.RawChecksumRequest,
) (sum rawops.Sum, err error) {
	cf, err := s.checkCF(req.Cf)
	if err != nil {
		return sum, err
	}
	if len(req.EndKey) > 0 && bytes.Compare(req.StartKey, req.EndKey) >= 0 {
		return sum, nil // there is nothing in it
	}
	r, err := s.storage.Reader(ctx, req.Context, nil)
	if err != nil {
		return sum, err
	}
	defer r.Close()
	err = sum.Add(ctx, r, cf, req.StartKey, req.EndKey)
	return sum, err
}
