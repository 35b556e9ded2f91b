package server

import (
	"context"
	"slices"
	"time"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// maxCompareWait is the longest that a comparison waits for replicas, and how long if the request
// does not say.
const maxCompareWait = 5 * time.Minute

// CheckConsistency implements tinykvpb.TinyKvServer: it has the replicas of a region compared.
func (s *Server) CheckConsistency(
	ctx context.Context, req *kvrpcpb.CheckConsistencyRequest,
) (*kvrpcpb.CheckConsistencyResponse, error) {
	comparer, ok := s.storage.(storage.Comparer)
	if !ok {
		return &kvrpcpb.CheckConsistencyResponse{Error: "this store is not replicated"}, nil
	}
	wait := maxCompareWait
	if ms := req.WaitMs; ms > 0 && ms < uint64(wait.Milliseconds()) {
		wait = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	out, err := comparer.Compare(ctx, req.Context)
	resp := &kvrpcpb.CheckConsistencyResponse{Index: out.Index, Undecided: out.Undecided}
	for _, p := range out.Region.GetPeers() {
		hash, known := out.Hashes[p.Id]
		resp.Replicas = append(resp.Replicas, &kvrpcpb.ReplicaHashResult{
			Peer: p, Known: known, Hash: hash, Diverged: slices.Contains(out.Diverged, p.Id),
		})
	}
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(err)
	return resp, rpc
}
