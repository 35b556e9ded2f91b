package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/pkg/trace"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// outcome sorts an error into the three places where a client finds it: a region error, a message,
// or the status of the RPC.
func outcome(err error) (region *errorpb.Error, msg string, rpc error) {
	if err == nil {
		return nil, "", nil
	}
	return failure(err)
}

// failure is apart from outcome since what errors.As fills is allocated.
func failure(err error) (region *errorpb.Error, msg string, rpc error) {
	var invalid *requestError
	var missing *regionerr.FeatureError
	switch {
	case errors.As(err, &invalid):
		return nil, invalid.Error(), nil
	case errors.As(err, &missing):
		return nil, missing.Error(), nil
	case errors.Is(err, context.DeadlineExceeded):
		return nil, "",
			status.Error(codes.DeadlineExceeded,
				"deadline exceeded; the outcome is unknown: a write may still be carried out")
	case errors.Is(err, context.Canceled):
		return nil, "", status.Error(codes.Canceled, err.Error())
	case errors.Is(err, regionerr.ErrStopping), errors.Is(err, regionerr.ErrFailed),
		errors.Is(err, engine.ErrClosed):
		return nil, "", status.Error(codes.Unavailable, err.Error())
	}
	if pb, ok := regionerr.ToProto(err); ok {
		return pb, "", nil
	}
	return nil, "", status.Error(codes.Internal, err.Error())
}

// requestError is a fault of the request itself.
type requestError struct{ reason string }

func (e *requestError) Error() string { return e.reason }

func (s *Server) checkKey(key []byte) error {
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

// checkCF reads the column family of a raw request, which is the first thing that is looked at.
func (s *Server) checkCF(name string) (engine.CF, error) {
	if err := s.checkRaw(); err != nil {
		return "", err
	}
	cf, err := engine.ParseCF(name)
	if err != nil {
		return "", &requestError{err.Error()}
	}
	return cf, nil
}

// RawGet implements tinykvpb.TinyKvServer.
func (s *Server) RawGet(
	ctx context.Context, req *kvrpcpb.RawGetRequest,
) (*kvrpcpb.RawGetResponse, error) {
	resp := &kvrpcpb.RawGetResponse{}
	value, found, err := s.rawGet(ctx, req)
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	resp.Value, resp.NotFound = value, err == nil && !found
	return resp, rpc
}

func (s *Server) rawGet(ctx context.Context, req *kvrpcpb.RawGetRequest) ([]byte, bool, error) {
	cf, err := s.checkCF(req.Cf)
	if err == nil {
		err = s.checkKey(req.Key)
	}
	if err != nil {
		return nil, false, err
	}
	return s.storage.Get(ctx, req.Context, cf, req.Key)
}

// rawGetLocal answers like RawGet if that needs nobody else; else ok is false.
func (s *Server) rawGetLocal(
	req *kvrpcpb.RawGetRequest,
) (resp *kvrpcpb.RawGetResponse, ok bool, rpc error) {
	if s.local == nil || !s.gate.Open() {
		return nil, false, nil
	}
	defer s.gate.Note(time.Now())
	cf, err := s.checkCF(req.Cf)
	if err == nil {
		err = s.checkKey(req.Key)
	}
	var value []byte
	var found bool
	if err == nil {
		if value, found, ok, err = s.local.GetLocal(req.Context, cf, req.Key); !ok {
			return nil, false, nil
		}
	}
	resp = &kvrpcpb.RawGetResponse{}
	resp.RegionError, resp.Error, rpc = outcome(err)
	resp.Value, resp.NotFound = value, err == nil && !found
	return resp, true, rpc
}

// put checks a put and says what it changes.
func (s *Server) put(req *kvrpcpb.RawPutRequest) ([]storage.Modify, error) {
	cf, err := s.checkCF(req.Cf)
	if err == nil {
		err = s.checkKey(req.Key)
	}
	if err == nil {
		err = checkTTL(s.storage, req.Ttl)
	}
	return []storage.Modify{{CF: cf, Key: req.Key, Value: req.Value, TTL: req.Ttl}}, err
}

// del checks a delete and says what it changes.
func (s *Server) del(req *kvrpcpb.RawDeleteRequest) ([]storage.Modify, error) {
	cf, err := s.checkCF(req.Cf)
	if err == nil {
		err = s.checkKey(req.Key)
	}
	return []storage.Modify{{Delete: true, CF: cf, Key: req.Key}}, err
}

func putAnswer(index uint64, err error) (resp *kvrpcpb.RawPutResponse, rpc error) {
	resp = &kvrpcpb.RawPutResponse{LogIndex: index}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

func deleteAnswer(index uint64, err error) (resp *kvrpcpb.RawDeleteResponse, rpc error) {
	resp = &kvrpcpb.RawDeleteResponse{LogIndex: index}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// RawPut implements tinykvpb.TinyKvServer. An empty value is stored as such.
func (s *Server) RawPut(
	ctx context.Context, req *kvrpcpb.RawPutRequest,
) (*kvrpcpb.RawPutResponse, error) {
	mods, err := s.put(req)
	var index uint64
	if err == nil {
		index, err = s.storage.Write(ctx, req.Context, mods)
	}
	return putAnswer(index, err)
}

// RawDelete implements tinykvpb.TinyKvServer. Deleting what does not exist succeeds.
func (s *Server) RawDelete(
	ctx context.Context, req *kvrpcpb.RawDeleteRequest,
) (*kvrpcpb.RawDeleteResponse, error) {
	mods, err := s.del(req)
	var index uint64
	if err == nil {
		index, err = s.storage.Write(ctx, req.Context, mods)
	}
	return deleteAnswer(index, err)
}

// RawScan implements tinykvpb.TinyKvServer. It stays within the region that has the start key.
func (s *Server) RawScan(
	ctx context.Context, req *kvrpcpb.RawScanRequest,
) (*kvrpcpb.RawScanResponse, error) {
	resp := &kvrpcpb.RawScanResponse{}
	var rpc error
	err := s.rawScan(ctx, req, resp)
	if err != nil {
		resp.Kvs, resp.More = nil, false
	}
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

func (s *Server) rawScan(
	ctx context.Context, req *kvrpcpb.RawScanRequest, resp *kvrpcpb.RawScanResponse,
) error {
	cf, err := s.checkCF(req.Cf)
	if err != nil {
		return err
	}
	if limit := s.cfg.Server.MaxScanLimit; req.Limit > limit {
		return &requestError{
			fmt.Sprintf("the limit of %d pairs exceeds the most allowed, %d", req.Limit, limit),
		}
	}
	if max := int(s.cfg.Server.MaxKeySize); len(req.StartKey) > max+1 || len(req.EndKey) > max+1 {
		return &requestError{
			fmt.Sprintf("a bound of the scan exceeds the key limit of %d bytes", max),
		}
	}
	anchor := append([]byte{}, req.StartKey...)
	if req.Reverse {
		// The upper bound is exclusive and may equal the region's end; the lower one may lie below
		// it. The epoch ensures that the client means this region.
		anchor = nil
	}
	view := trace.From(ctx).Begin("take a view")
	r, err := s.storage.Reader(ctx, req.Context, anchor)
	if view(); err != nil {
		return err
	}
	defer r.Close()
	defer trace.From(ctx).Begin("read")()
	if req.Limit == 0 {
		return nil
	}
	lower, upper := req.StartKey, req.EndKey
	if req.Reverse {
		lower, upper = req.EndKey, req.StartKey
	}
	it := r.Iterate(cf, lower, upper)
	defer it.Close()
	return s.fillScan(rpc.RoomOf(ctx), req, resp, it)
}

// fillScan copies pairs until the limit, the end, or the size that one message can carry. If the
// store has no room for more, an answer that may be cut is.
func (s *Server) fillScan(
	held *rpc.Room, req *kvrpcpb.RawScanRequest, resp *kvrpcpb.RawScanResponse, it storage.Iterator,
) error {
	next, first := it.Next, it.First
	if req.Reverse {
		next, first = it.Prev, it.Last
	}
	room := uint64(s.cfg.Server.GRPCMaxMessage) * 3 / 4
	cut := req.MaxBytes > 0
	if cut {
		room = min(room, req.MaxBytes)
	}
	size, pairs := uint64(0), newPairs(held, int(req.Limit))
	resp.Kvs = pairs.list
	for first(); it.Valid() && len(resp.Kvs) < int(req.Limit); next() {
		pair := pairs.next()
		pair.Key = pairs.copy(it.Key())
		if !req.KeyOnly {
			pair.Value = pairs.copy(it.Value())
		}
		size += uint64(len(pair.Key)+len(pair.Value)) + 16
		full := !held.Gather(int(size))
		if full && (!cut || len(resp.Kvs) == 0) {
			return &regionerr.BusyError{Reason: rpc.NoRoom}
		}
		if (full || size > room) && len(resp.Kvs) > 0 {
			if !cut {
				return &requestError{
					"the pairs do not fit into one answer; lower the limit or set max_bytes",
				}
			}
			resp.More = true
			return nil
		}
		resp.Kvs = append(resp.Kvs, pair)
	}
	pairs.list = resp.Kvs
	return it.Err()
}
