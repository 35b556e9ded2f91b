package server

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/grpc"

	pb "github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/pdface"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
)

// pdBackend is a member as the face for clients of TiKV knows it.
type pdBackend struct{ v *service }

var _ pdface.Backend = pdBackend{}

func (b pdBackend) ClusterID() uint64 { return b.v.s.clusterID }

func (b pdBackend) Check(clusterID uint64) error {
	return b.v.validate(&pb.RequestHeader{ClusterId: clusterID})
}

func (b pdBackend) Bootstrapped() bool {
	ok, _ := b.v.s.bootstrapped()
	return ok
}

func (b pdBackend) IsLeader() bool              { return b.v.s.IsLeader() }
func (b pdBackend) Regions() *core.BasicCluster { return b.v.s.cluster.Core() }
func (b pdBackend) GC() pdface.SafePoints       { return safePoints{s: b.v.s, client: true} }

func (b pdBackend) WhileLeading(loop func() error) error { return b.v.whileLeading(loop) }

func (b pdBackend) ForwardStream(
	down grpc.ServerStream,
	method string,
	newReq, newResp func() any,
) error {
	return b.v.s.forward.stream(down, method, newReq, newResp)
}

func (b pdBackend) ScatterRegion(regionID uint64) error {
	_, err := b.v.s.cluster.Scatter(regionID, "asked for by a client")
	return err
}

const (
	// splitTimeout is how long a client waits for the splits that it asked for, if it does not say.
	splitTimeout = 30 * time.Second
	// splitPoll is how often the region map is looked at meanwhile.
	splitPoll = 20 * time.Millisecond
)

// SplitAt plans a split of each region that has keys inside, and looks for the results until they
// are there. What another operator or an election holds up is planned again.
func (b pdBackend) SplitAt(ctx context.Context, keys [][]byte) []uint64 {
	ctx, cancel := context.WithTimeout(ctx, splitTimeout)
	defer cancel()
	lead := b.v.s.leaderContext()
	if lead == nil {
		return nil
	}
	poll := time.NewTicker(splitPoll)
	defer poll.Stop()
	for {
		ids, rest := b.splitOnce(keys)
		if len(rest) == 0 {
			return ids
		}
		select {
		case <-ctx.Done():
			return ids
		case <-lead.Done():
			return ids
		case <-poll.C:
		}
	}
}

// splitOnce returns the regions that begin at keys, and has the other keys' regions split.
func (b pdBackend) splitOnce(keys [][]byte) (ids []uint64, rest [][]byte) {
	cluster := b.v.s.cluster
	inside := map[*core.RegionInfo][][]byte{}
	for _, key := range keys {
		r := cluster.Core().RegionByKey(key)
		if r != nil && bytes.Equal(r.StartKey(), key) {
			ids = append(ids, r.ID())
			continue
		}
		rest = append(rest, key)
		if r != nil {
			inside[r] = append(inside[r], key)
		}
	}
	for r, keys := range inside {
		if !cluster.Controller().Busy(r.ID()) {
			op := operator.CreateSplitOperator(
				"client-split",
				r,
				operator.OpAdmin,
				operator.Medium,
				keys,
			)
			_ = cluster.AddOperator(
				op.Because("asked for by a client"),
			) // refused: the next look plans it again
		}
	}
	return ids, rest
}
