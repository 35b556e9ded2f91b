package server

import (
	"context"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// errNoTTL refuses TTLs where the storage has none.
var errNoTTL = &requestError{"this store has no TTL: it is not replicated"}

// checkTTL refuses a TTL that is too long, or that the storage cannot keep; 0 is none.
func (s *Server) checkTTL(seconds uint64) error {
	if seconds == 0 {
		return nil
	}
	if _, ok := s.storage.(storage.Expirer); !ok {
		return errNoTTL
	}
	if err := storage.CheckTTL(seconds); err != nil {
		return &requestError{err.Error()}
	}
	return nil
}

// RawGetKeyTTL implements tinykvpb.TinyKvServer: how many seconds a key has left, rounded up.
func (s *Server) RawGetKeyTTL(ctx context.Context, req *kvrpcpb.RawGetKeyTTLRequest) (*kvrpcpb.RawGetKeyTTLResponse, error) {
	resp := &kvrpcpb.RawGetKeyTTLResponse{}
	ttl, found, err := s.keyTTL(ctx, req)
	var rpc error
	if resp.RegionError, resp.Error, rpc = outcome(err); err == nil {
		resp.Ttl, resp.NotFound = ttl, !found
	}
	return resp, rpc
}

func (s *Server) keyTTL(ctx context.Context, req *kvrpcpb.RawGetKeyTTLRequest) (seconds uint64, found bool, err error) {
	cf, err := s.checkCF(req.Cf)
	if err == nil {
		err = s.checkKey(req.Key)
	}
	if err != nil {
		return 0, false, err
	}
	e, ok := s.storage.(storage.Expirer)
	if !ok { // nothing has a TTL
		_, found, err = s.storage.Get(ctx, req.Context, cf, req.Key)
		return 0, found, err
	}
	return e.TTL(ctx, req.Context, cf, req.Key)
}
