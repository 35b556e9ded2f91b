package server

import (
	"bytes"
	"context"
	"fmt"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Writes that are decided at their place in the log (storage.Conditional).

var errNotConditional = &requestError{"this store has no compare-and-swap and no range deletes"}

// RawCAS implements tinykvpb.TinyKvServer.
func (s *Server) RawCAS(
	ctx context.Context, req *kvrpcpb.RawCASRequest,
) (*kvrpcpb.RawCASResponse, error) {
	resp := &kvrpcpb.RawCASResponse{}
	out, err := compareAndSwap(ctx, s, req)
	var rpc error
	if resp.RegionError, resp.Error, rpc = outcome(err); err == nil {
		resp.Succeed, resp.LogIndex = out.Swapped, out.Index
		resp.PreviousValue, resp.PreviousNotExist = out.Previous, !out.Found
	}
	return resp, rpc
}

func compareAndSwap(
	ctx context.Context, s *Server, req *kvrpcpb.RawCASRequest,
) (storage.Swapped, error) {
	cf, err := s.checkCF(req.Cf)
	if err == nil {
		err = s.checkKey(req.Key)
	}
	if err == nil && !req.Delete {
		err = checkTTL(s.storage, req.Ttl)
	}
	if err != nil {
		return storage.Swapped{}, err
	}
	cond, ok := s.storage.(storage.Conditional)
	if !ok {
		return storage.Swapped{}, errNotConditional
	}
	return cond.CompareAndSwap(ctx, req.Context, &storage.Swap{
		CF: cf, Key: req.Key, Value: req.Value, Delete: req.Delete,
		Expected: req.PreviousValue, ExpectAbsent: req.PreviousNotExist, TTL: req.Ttl,
	})
}

// RawDeleteRange implements tinykvpb.TinyKvServer. The range must lie in one region.
func (s *Server) RawDeleteRange(
	ctx context.Context, req *kvrpcpb.RawDeleteRangeRequest,
) (*kvrpcpb.RawDeleteRangeResponse, error) {
	resp := &kvrpcpb.RawDeleteRangeResponse{}
	index, err := deleteRange(ctx, s, req)
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	resp.LogIndex = index
	return resp, rpc
}

func deleteRange(
	ctx context.Context, s *Server, req *kvrpcpb.RawDeleteRangeRequest,
) (uint64, error) {
	cf, err := s.checkCF(req.Cf)
	if err != nil {
		return 0, err
	}
	limit := int(s.cfg.Server.MaxKeySize) + 1
	switch {
	case len(req.StartKey) > limit || len(req.EndKey) > limit:
		return 0,
			&requestError{fmt.Sprintf("a bound of the range exceeds the limit of %d bytes", limit)}
	case len(req.EndKey) > 0 && bytes.Compare(req.StartKey, req.EndKey) >= 0:
		return 0, &requestError{"the range is empty: its end is not above its start"}
	}
	cond, ok := s.storage.(storage.Conditional)
	if !ok {
		return 0, errNotConditional
	}
	return cond.DeleteRange(ctx, req.Context, cf, req.StartKey, req.EndKey)
}

// DestroyRange implements tinykvpb.TinyKvServer.
func (s *Server) DestroyRange(
	ctx context.Context, req *kvrpcpb.DestroyRangeRequest,
) (*kvrpcpb.DestroyRangeResponse, error) {
	var err error = errNotConditional
	if d, ok := s.storage.(storage.Destroyer); ok {
		err = d.DestroyIn(ctx, req.Context, req.StartKey, req.EndKey)
	}
	resp := &kvrpcpb.DestroyRangeResponse{}
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}

// others are the other stores, to which a range that is to be destroyed belongs too.
type others struct{ peers Peers }

// DestroyIn implements storage.Others.
func (o others) DestroyIn(
	ctx context.Context, storeID uint64, req *kvrpcpb.DestroyRangeRequest,
) (*kvrpcpb.DestroyRangeResponse, error) {
	peer, err := o.peers.Peer(ctx, storeID)
	if err != nil {
		return nil, err
	}
	return peer.DestroyRange(ctx, req)
}
