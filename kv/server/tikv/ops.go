package tikv

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/clustermode"
)

// Writes that are decided at their place in the log (storage.Conditional).

var errNotConditional = &requestError{"this store has no compare-and-swap and no range deletes"}

// conditional is the storage, if it can do that.
func (s *Service) conditional() (storage.Conditional, error) {
	if c, ok := s.storage.(storage.Conditional); ok {
		return c, nil
	}
	return nil, errNotConditional
}

// RawCompareAndSwap implements tikvpb.Tikv. It is linearizable with all other writes, whether or
// not their clients are in atomic mode.
func (s *Service) RawCompareAndSwap(
	ctx context.Context,
	req *kvrpcpb.RawCASRequest,
) (*kvrpcpb.RawCASResponse, error) {
	resp := &kvrpcpb.RawCASResponse{}
	ctx, cancel := context.WithTimeout(ctx, s.timeout(req.Context))
	defer cancel()
	out, err := s.compareAndSwap(ctx, req)
	var rpc error
	resp.RegionError, resp.Error, rpc = swapOutcome(err)
	if err == nil {
		resp.Succeed = out.Swapped
		resp.PreviousValue, resp.PreviousNotExist = out.Previous, !out.Found
	}
	return resp, rpc
}

func (s *Service) compareAndSwap(
	ctx context.Context, req *kvrpcpb.RawCASRequest,
) (storage.Swapped, error) {
	to, cf, err := s.target(req.Context, req.Cf, req.Key)
	if err == nil && !req.Delete {
		err = checkTTL(s.storage, req.Ttl)
	}
	if err != nil {
		return storage.Swapped{}, err
	}
	cond, err := s.conditional()
	if err != nil {
		return storage.Swapped{}, err
	}
	return cond.CompareAndSwap(ctx, to, &storage.Swap{
		CF: cf, Key: req.Key, Value: req.Value, Delete: req.Delete,
		Expected: req.PreviousValue, ExpectAbsent: req.PreviousNotExist, TTL: req.Ttl,
	})
}

// swapOutcome is outcome for a compare-and-swap. Clients repeat a request after a region error and
// after some errors of the call. A swap that may have been carried out must not be repeated: the
// second one would find what the first one has written, and report that it did not swap. So the
// answer says that its outcome is unknown, which ends the client's call.
func swapOutcome(err error) (region *errorpb.Error, text string, rpc error) {
	var unknown *regionerr.UnknownError
	if errors.As(err, &unknown) || errors.Is(err, context.DeadlineExceeded) {
		return nil,
			fmt.Sprintf("the outcome is unknown: the value may have been swapped (%v)", err), nil
	}
	return outcome(err)
}

// RawDeleteRange implements tikvpb.Tikv: all keys of the range, which must lie in the region.
func (s *Service) RawDeleteRange(
	ctx context.Context,
	req *kvrpcpb.RawDeleteRangeRequest,
) (*kvrpcpb.RawDeleteRangeResponse, error) {
	resp := &kvrpcpb.RawDeleteRangeResponse{}
	ctx, cancel := context.WithTimeout(ctx, s.timeout(req.Context))
	defer cancel()
	var rpc error
	resp.RegionError, resp.Error, rpc = outcome(s.deleteRange(ctx, req))
	return resp, rpc
}

func (s *Service) deleteRange(ctx context.Context, req *kvrpcpb.RawDeleteRangeRequest) error {
	to, cf, err := s.target(req.Context, req.Cf)
	if err == nil {
		err = s.checkBounds(req.StartKey, req.EndKey)
	}
	if err != nil {
		return err
	}
	cond, err := s.conditional()
	if err != nil {
		return err
	}
	_, err = cond.DeleteRange(ctx, to, cf, req.StartKey, req.EndKey)
	return err
}

// checkBounds refuses bounds of no range. A bound may be one byte longer than a key.
func (s *Service) checkBounds(start, end []byte) error {
	if limit := int(s.cfg.Server.MaxKeySize) + 1; len(start) > limit || len(end) > limit {
		return &requestError{
			fmt.Sprintf("a bound of the range exceeds the limit of %d bytes", limit),
		}
	}
	if len(end) > 0 && bytes.Compare(start, end) >= 0 {
		return &requestError{"the range is empty: its end is not above its start"}
	}
	return nil
}

// UnsafeDestroyRange implements tikvpb.Tikv. TiKV removes the files of a range on each store, past
// the raft log; clients send it to all stores and must not use the range any more. Here each store
// sees to it that the range is deleted in all regions of which it has a replica, by their logs.
func (s *Service) UnsafeDestroyRange(
	ctx context.Context,
	req *kvrpcpb.UnsafeDestroyRangeRequest,
) (*kvrpcpb.UnsafeDestroyRangeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout(req.Context))
	defer cancel()
	resp := &kvrpcpb.UnsafeDestroyRangeResponse{}
	var rpc error
	resp.RegionError, resp.Error, rpc = textOutcome(s.destroyRange(ctx, req.StartKey, req.EndKey))
	return resp, rpc
}

func (s *Service) destroyRange(ctx context.Context, start, end []byte) error {
	if err := s.checkBounds(start, end); err != nil {
		return err
	}
	if s.txn != nil {
		return s.txn.DestroyRange(ctx, start, end)
	}
	if s.mode == clustermode.Txn {
		return errRawRefused
	}
	cond, err := s.conditional()
	if err != nil {
		return err
	}
	return cond.DestroyRange(ctx, start, end)
}
