package runner

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

const (
	// sweepKeys and sweepBytes bound what one entry of the sweep removes, by number and by bytes of
	// keys.
	sweepKeys  = 512
	sweepBytes = 64 << 10
	// sweepRate is how many expiry times a second a store reads for the sweep.
	sweepRate = 100_000
	// sweepWait is how long an entry of the sweep is waited for.
	sweepWait = 10 * time.Second
)

// Sweeper gives back the space of keys that have expired. In each round it reads the expiry times
// of the regions that this store leads, one region after the other, and has their logs remove what
// has expired. Readers do not depend on it.
//
// A region that was read to its end is not read again before its next key expires, unless expiry
// times were written since, or the region has changed.
//
// An entry names its keys. It says by its own time, when it is applied, which of them have expired:
// a key that was put again since stays. One entry is under way at a time.
type Sweeper struct {
	opts  SweeperOptions
	limit *rate.Limiter
	swept atomic.Uint64
	// rests are the regions of the last round that need no reading, by ID.
	rests map[uint64]rest
}

// Led is a region that this store leads. Mortal counts what has written expiry times of it. It is
// counted once the engine has them, so what a snapshot lacks that is taken after a count, a later
// count has.
type Led struct {
	Region *metapb.Region
	Term   uint64
	Mortal uint64
}

// rest is until when a region needs no reading.
//
// Invariant: under the leadership of term, as long as version and mortal stay, no key of the region
// expires before until. A leader's data changes by entries only, and a store that lost a leadership
// does not have it again in the same term.
type rest struct{ term, version, mortal, until uint64 }

// SweeperOptions are what a Sweeper is made of.
type SweeperOptions struct {
	Engine engine.Engine
	// Interval is the pause between two rounds; 0: there are none.
	Interval time.Duration
	// Millis is the store's time, in milliseconds since 1970.
	Millis func() uint64
	// Led are the regions whose keys may expire and that this store leads.
	Led func() []Led
	// Expire has a region's log carry the request out, and returns once it is applied, or an error.
	Expire func(ctx context.Context, r *metapb.Region, req *raft_cmdpb.ExpireRequest) error
	// Failed is called if reading a region's data failed.
	Failed func(regionID uint64, err error)
	Logger *zap.Logger
}

// NewSweeper makes the runner.
func NewSweeper(o SweeperOptions) *Sweeper {
	return &Sweeper{opts: o, limit: rate.NewLimiter(sweepRate, sweepRate/10)}
}

// Swept is how many keys were named in entries of the sweep that were applied. Safe for concurrent
// use.
func (s *Sweeper) Swept() uint64 { return s.swept.Load() }

// Run works until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	if s.opts.Interval <= 0 {
		return
	}
	tick := time.NewTicker(s.opts.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.Round(ctx)
	}
}

// Round sweeps each region once. What it cannot remove now the next round does.
func (s *Sweeper) Round(ctx context.Context) {
	before := s.rests
	s.rests = map[uint64]rest{}
	for _, l := range s.opts.Led() {
		if ctx.Err() != nil {
			return
		}
		id := l.Region.Id
		now := rest{term: l.Term, version: l.Region.GetRegionEpoch().GetVersion(), mortal: l.Mortal}
		if now.until = before[id].until; now == before[id] && now.until > s.opts.Millis() {
			s.rests[id] = now
			continue
		}
		var err error
		if now.until, err = s.region(ctx, l.Region); err == nil {
			s.rests[id] = now
		} else if ctx.Err() == nil {
			s.opts.Logger.Debug("sweeping a region ended early", log.RegionID(id), zap.Error(err))
		}
	}
}

// region sweeps a region. next is when the first of the keys expires that have not yet; the end of
// time if there is none.
func (s *Sweeper) region(ctx context.Context, r *metapb.Region) (next uint64, err error) {
	view := s.opts.Engine.NewSnapshot()
	defer view.Close()
	next = math.MaxUint64
	for _, cf := range engine.CFs {
		if err := s.family(ctx, view, r, cf, &next); err != nil {
			return 0, err
		}
	}
	return next, nil
}

// family sweeps a column family and lowers next.
func (s *Sweeper) family(
	ctx context.Context, view engine.Snapshot, r *metapb.Region, cf engine.CF, next *uint64,
) error {
	it := view.NewIterator(engine.DataKey(cf.Expiry(), r.StartKey),
		engine.DataEndKey(cf.Expiry(), r.EndKey))
	defer it.Close()
	req, size, now := &raft_cmdpb.ExpireRequest{}, 0, s.opts.Millis()
	for it.First(); it.Valid(); it.Next() {
		if err := s.limit.Wait(ctx); err != nil {
			return err
		}
		at, err := engine.DecodeExpiry(it.Value())
		if err != nil {
			s.opts.Failed(r.Id, err)
			return err
		}
		if at > now {
			*next = min(*next, at)
			continue
		}
		key := append([]byte{}, engine.UserKey(it.Key())...)
		req.Keys = append(req.Keys, &raft_cmdpb.ExpiringKey{Cf: string(cf), Key: key})
		if size += len(key); len(req.Keys) == sweepKeys || size >= sweepBytes {
			if err := s.expire(ctx, r, req, now); err != nil {
				return err
			}
			req, size = &raft_cmdpb.ExpireRequest{}, 0
		}
	}
	if err := it.Err(); err != nil {
		s.opts.Failed(r.Id, err)
		return err
	}
	if len(req.Keys) == 0 {
		return nil
	}
	return s.expire(ctx, r, req, now)
}

func (s *Sweeper) expire(
	ctx context.Context, r *metapb.Region, req *raft_cmdpb.ExpireRequest, now uint64,
) error {
	ctx, cancel := context.WithTimeout(ctx, sweepWait)
	defer cancel()
	req.Now = now
	if err := s.opts.Expire(ctx, r, req); err != nil {
		return err
	}
	s.swept.Add(uint64(len(req.Keys)))
	return nil
}
