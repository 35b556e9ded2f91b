package server

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// noMerges says why the cluster merges no regions, "" if it does.
func (c *RaftCluster) noMerges() string {
	switch {
	case !c.Features().Has(feature.Merge):
		return "not all stores have been started with raftstore.region-merge = true"
	case c.opts.Mode != nil && c.opts.Mode() == string(clustermode.Txn) &&
		!c.Features().Has(feature.TxnMerge):
		return "not all stores know how regions of a cluster of transactions are merged"
	}
	return ""
}

// modeOf is the cluster's mode, "" if it is not bootstrapped.
func modeOf(s *Server) string {
	s.leaderMu.RLock()
	defer s.leaderMu.RUnlock()
	return s.leaderMu.meta.GetMode()
}

// orderMerge lets a region go into a neighbour. Both get an operator, or neither.
func orderMerge(s *Server, source *core.RegionInfo, into uint64, by string) (any, error) {
	if why := s.cluster.noMerges(); why != "" {
		return nil, badRequest("%s", why)
	}
	target := s.cluster.core.Region(into)
	if target == nil {
		return nil, badRequest("region %d is not known", into)
	}
	merge, take, err := operator.CreateMergeOperators("admin-merge", source, target,
		operator.OpAdmin, operator.Medium,
		operator.Alignment{})
	if err != nil {
		return nil, badRequest("%v", err)
	}
	if err := s.cluster.addPair(merge.Because("asked for by %s", by),
		take.Because("asked for by %s", by)); err != nil {
		return nil, err
	}
	rec, _ := s.cluster.Controller().Find(source.ID())
	return toOperatorJSON(rec), nil
}

// explainMerge says of one region why it is merged or not.
func (c *RaftCluster) explainMerge(r *core.RegionInfo) schedule.Decision {
	v := c.newView()
	d := schedule.Decision{
		Scheduler: merge.Name, At: v.Now, Result: fmt.Sprintf("region %d", r.ID()),
		Lines: c.merges.Explain(v, r),
	}
	if f := c.planner.MayMerge(v); !f.None() {
		d.Result += ": " + f.String()
	}
	return d
}

// loadHolds takes over the holds that were set before. Without them nothing may be merged that
// somebody wants to keep: if they are not readable, everything is held for a day.
func loadHolds(s *Server, d hardState) {
	var list []merge.Hold
	if value, ok := d[s.keys.MergeHolds()]; ok {
		if err := json.Unmarshal(value, &list); err != nil {
			s.logger.Error("the ranges that are held are not readable; nothing is merged for a day",
				zap.Error(err))
			list = []merge.Hold{
				{Until: time.Now().Add(24 * time.Hour), Why: "the saved holds are not readable"},
			}
		}
	}
	s.cluster.SetHolds(list)
}

// SetHolds replaces the ranges whose regions are not merged.
func (c *RaftCluster) SetHolds(list []merge.Hold) { c.merges.SetHolds(list) }

// changeHolds writes a new list of holds, and then has it in force.
func changeHolds(
	s *Server, ctx context.Context, change func(old []merge.Hold) ([]merge.Hold, error),
) error {
	s.holdsMu.Lock()
	defer s.holdsMu.Unlock()
	next, err := change(s.cluster.merges.Holds(time.Now()))
	if err != nil {
		return err
	}
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := s.write(ctx, storage.Put(s.keys.MergeHolds(), value)); err != nil {
		return err
	}
	s.cluster.SetHolds(next)
	return nil
}

type holdJSON struct {
	Start   string    `json:"start"`
	End     string    `json:"end"`
	Until   time.Time `json:"until"`
	Seconds float64   `json:"seconds"`
	Why     string    `json:"why,omitempty"`
}

func getHolds(s *Server) handler {
	return func(*http.Request) (any, error) {
		out, now := []holdJSON{}, time.Now()
		for _, h := range s.cluster.merges.Holds(now) {
			out = append(out, holdJSON{
				hex.EncodeToString(h.Start), hex.EncodeToString(h.End), h.Until.UTC(),
				h.Until.Sub(now).Seconds(), h.Why,
			})
		}
		return map[string]any{"holds": out}, nil
	}
}

// holdRange decodes the hexadecimal keys of a hold.
func holdRange(start, end string) (s, e []byte, err error) {
	if s, err = hex.DecodeString(start); err != nil {
		return nil, nil, badRequest("start: %q is not hexadecimal", start)
	}
	if e, err = hex.DecodeString(end); err != nil {
		return nil, nil, badRequest("end: %q is not hexadecimal", end)
	}
	return s, e, nil
}

const (
	defaultHold = 24 * time.Hour
	longestHold = 10 * 365 * 24 * time.Hour
)

// postHold keeps the regions of a range from being merged for a time: {"start": hex, "end": hex,
// "for": "24h", "why": text}. A merge of them ends whose regions are not frozen yet.
func postHold(s *Server) handler {
	return func(r *http.Request) (any, error) {
		var body struct {
			Start string `json:"start"`
			End   string `json:"end"`
			For   string `json:"for"`
			Why   string `json:"why"`
		}
		if err := decodeBody(r, &body); err != nil {
			return nil, err
		}
		start, end, err := holdRange(body.Start, body.End)
		if err != nil {
			return nil, err
		}
		d, err := time.ParseDuration(cmp.Or(body.For, defaultHold.String()))
		if err != nil || d <= 0 || d > longestHold {
			return nil, badRequest("for: %q is not a time between 0 and %v", body.For, longestHold)
		}
		h := merge.Hold{
			Start: start, End: end, Until: time.Now().Add(d).Round(time.Millisecond), Why: body.Why,
		}
		err = changeHolds(s, r.Context(), func(old []merge.Hold) ([]merge.Hold, error) {
			next, err := merge.With(old, h, time.Now())
			if err != nil {
				return nil, badRequest("%v", err)
			}
			return next, nil
		})
		if err != nil {
			return nil, err
		}
		s.cluster.endMerges(&h)
		s.cluster.events.add("range-held",
			fmt.Sprintf("[%v, %v) for %v: its regions are not merged",
				redact.Key(start), redact.Key(end), d))
		return getHolds(s)(r)
	}
}

// endMerges ends the merges of a range that has just been held. A frozen region may still be
// merged: the stores have decided.
func (c *RaftCluster) endMerges(h *merge.Hold) {
	for _, op := range c.controller.Running() {
		r := c.core.Region(op.RegionID())
		if op.Kind()&operator.OpMerge != 0 && op.Kind()&operator.OpAdmin == 0 && r != nil &&
			h.Covers(r) {
			c.controller.Cancel(op.RegionID(), "the range is held")
		}
	}
}

func deleteHold(s *Server) handler {
	return func(r *http.Request) (any, error) {
		start, end, err := holdRange(r.URL.Query().Get("start"), r.URL.Query().Get("end"))
		if err != nil {
			return nil, err
		}
		err = changeHolds(s, r.Context(), func(old []merge.Hold) ([]merge.Hold, error) {
			next, found := merge.Without(old, start, end, time.Now())
			if !found {
				return nil,
					notFound("exactly this range is not held; GET /holds lists those that are")
			}
			return next, nil
		})
		if err != nil {
			return nil, err
		}
		s.cluster.events.add("range-released",
			fmt.Sprintf("[%v, %v)", redact.Key(start), redact.Key(end)))
		s.cluster.planner.Wake()
		return getHolds(s)(r)
	}
}

// regionParam finds the region that a parameter of the query names, nil if there is none.
func regionParam(s *Server, r *http.Request) (*core.RegionInfo, error) {
	text := r.URL.Query().Get("region")
	if text == "" {
		return nil, nil
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return nil, badRequest("region: %q is not an id", text)
	}
	reg := s.cluster.Core().Region(id)
	if reg == nil {
		return nil, notFound("region %d is not known", id)
	}
	return reg, nil
}
