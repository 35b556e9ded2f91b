package server

import (
	"context"

	"github.com/tinykv/tinykv/kv/server/rawops"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// checkTTL refuses a TTL that is too long, or that the storage cannot keep; 0 is none.
func checkTTL(st storage.Storage, seconds uint64) error {
	return asRequestError(rawops.CheckTTL(st, seconds))
}

// asRequestError is an error of the request itself.
func asRequestError(err error) error {
	if err == nil {
		return nil
	}
	return &requestError{err.Error()}
}

// RawGetKeyTTL implements tinykvpb.TinyKvServer: how many seconds a key has left, rounded up.
func (s *Server) RawGetKeyTTL(
	ctx context.Context, req *kvrpcpb.RawGetKeyTTLRequest,
) (*kvrpcpb.RawGetKeyTTLResponse, error) {
	resp := &kvrpcpb.RawGetKeyTTLResponse{}
	ttl, found, err := keyTTL(ctx, s, req)
	var rpc error
	if resp.RegionError, resp.Error, rpc = outcome(err); err == nil {
		resp.Ttl, resp.NotFound = ttl, !found
	}
	return resp, rpc
}

func keyTTL(
	ctx context.Context, s *Server, req *kvrpcpb.RawGetKeyTTLRequest,
) (seconds uint64, found bool, err error) {
	cf, err := s.checkCF(req.Cf)
	if err == nil {
		err = s.checkKey(req.Key)
	}
	if err != nil {
		return 0, false, err
	}
	return rawops.TTL(ctx, s.storage, req.Context, cf, req.Key)
}
