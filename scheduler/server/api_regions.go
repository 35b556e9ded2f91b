package server

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
)

type peerJSON struct {
	ID      uint64 `json:"id"`
	StoreID uint64 `json:"store_id"`
	Learner bool   `json:"learner,omitempty"`
	Leader  bool   `json:"leader,omitempty"`
	Pending bool   `json:"pending,omitempty"`
	Down    bool   `json:"down,omitempty"`
}

type regionJSON struct {
	ID       uint64     `json:"id"`
	StartKey string     `json:"start_key"` // hex
	EndKey   string     `json:"end_key"`   // hex; empty is +inf
	Version  uint64     `json:"version"`
	ConfVer  uint64     `json:"conf_ver"`
	Term     uint64     `json:"term"`
	Leader   uint64     `json:"leader_store"`
	Peers    []peerJSON `json:"peers"`
	SizeMiB  int64      `json:"size_mib"`
	Keys     int64      `json:"keys"`
	// What was written and read in the leader's last interval, 10 s by default: bytes and keys.
	Written     uint64 `json:"bytes_written"`
	Read        uint64 `json:"bytes_read"`
	KeysWritten uint64 `json:"keys_written"`
	KeysRead    uint64 `json:"keys_read"`
	// Confirmed is false until a leader has reported the region to this placement leader.
	Confirmed bool     `json:"confirmed"`
	Defects   []string `json:"defects,omitempty"`
}

func toRegionJSON(r *core.RegionInfo, defects []string) regionJSON {
	out := regionJSON{
		ID: r.ID(), StartKey: hex.EncodeToString(r.StartKey()),
		EndKey:  hex.EncodeToString(r.EndKey()),
		Version: r.Version(), ConfVer: r.ConfVer(), Term: r.Term(), Leader: r.LeaderStore(),
		SizeMiB: r.Size(),
		Keys:    r.Keys(), Written: r.Flow().BytesWritten, Read: r.Flow().BytesRead,
		KeysWritten: r.Flow().KeysWritten, KeysRead: r.Flow().KeysRead, Confirmed: r.Confirmed(),
		Defects: defects,
	}
	for _, p := range r.Peers() {
		out.Peers = append(out.Peers, peerJSON{
			ID: p.ID, StoreID: p.StoreID, Learner: p.Learner, Leader: r.LeaderStore() == p.StoreID,
			Pending: r.IsPending(p.ID), Down: r.IsDown(p.ID),
		})
	}
	return out
}

// getRegions lists regions in key order, always paged: key= (text) or hexkey= finds one; start=
// (hex) begins; store=, check= filter; sort=size|write|read ranks; cursor= continues.
func (s *Server) getRegions(r *http.Request) (any, error) {
	q := r.URL.Query()
	limit, err := queryInt(r, "limit", 100, 10_000)
	if err != nil {
		return nil, err
	}
	v := s.cluster.newView()
	if q.Has("key") || q.Has("hexkey") {
		key := []byte(q.Get("key"))
		if q.Has("hexkey") {
			if key, err = hex.DecodeString(q.Get("hexkey")); err != nil {
				return nil, badRequest("hexkey: %q is not hexadecimal", q.Get("hexkey"))
			}
		}
		reg := s.cluster.Core().RegionByKey(key)
		if reg == nil {
			return nil, notFound("no region is known for this key")
		}
		return map[string]any{"count": 1, "total": s.cluster.Core().RegionCount(),
			"regions": []regionJSON{
				toRegionJSON(reg, s.defects(v, reg)),
			}}, nil
	}
	start, err := hex.DecodeString(cmp.Or(q.Get("cursor"), q.Get("start")))
	if err != nil {
		return nil, badRequest("start: not hexadecimal")
	}
	store, err := queryInt(r, "store", 0, 1<<62)
	if err != nil {
		return nil, err
	}
	out, cursor := []regionJSON{}, ""
	take := func(reg *core.RegionInfo) {
		if _, ok := reg.StorePeer(uint64(store)); store != 0 && !ok {
			return
		}
		defects := s.defects(v, reg)
		if check := q.Get("check"); check != "" && !slices.Contains(defects, check) {
			return
		}
		out = append(out, toRegionJSON(reg, defects))
	}
	if by := q.Get("sort"); by != "" {
		for _, reg := range s.topRegions(by, limit) {
			take(reg)
		}
	} else {
		cursor = s.pageRegions(start, limit, func() int { return len(out) }, take)
	}
	return map[string]any{
		"count": len(out), "total": s.cluster.Core().RegionCount(), "regions": out,
		"cursor": cursor,
	}, nil
}

// pageRegions visits regions until enough were taken; it returns where to go on, "" at the end.
func (s *Server) pageRegions(
	start []byte, limit int, taken func() int, take func(*core.RegionInfo),
) string {
	const batch = 1000
	for {
		list := s.cluster.Core().ScanRegions(start, nil, batch)
		for i, reg := range list {
			take(reg)
			last := i == len(list)-1 && len(list) < batch
			if taken() >= limit && !last && len(reg.EndKey()) > 0 {
				return hex.EncodeToString(reg.EndKey())
			}
		}
		if len(list) < batch {
			return ""
		}
		if start = list[len(list)-1].EndKey(); len(start) == 0 {
			return ""
		}
	}
}

func (s *Server) topRegions(by string, limit int) []*core.RegionInfo {
	rank := func(r *core.RegionInfo) uint64 { return uint64(r.Size()) }
	switch by {
	case "write":
		rank = func(r *core.RegionInfo) uint64 { return r.Flow().BytesWritten }
	case "read":
		rank = func(r *core.RegionInfo) uint64 { return r.Flow().BytesRead }
	}
	list := s.cluster.Core().ScanRegions(nil, nil, 0)
	slices.SortStableFunc(list, func(a, b *core.RegionInfo) int {
		return cmp.Compare(rank(b), rank(a))
	})
	return list[:min(limit, len(list))]
}

func (s *Server) getRegion(r *http.Request) (any, error) {
	reg, err := s.regionOf(r)
	if err != nil {
		return nil, err
	}
	return toRegionJSON(reg, s.defects(s.cluster.newView(), reg)), nil
}

// regionFields are what the actions of a region take.
var regionFields = map[string][]string{
	"transfer-leader": {"to"}, "move-peer": {"from", "to"}, "add-peer": {"to"},
	"remove-peer": {"from"},
	"split":       {"keys"}, "merge": {"into"}, "scatter": nil,
}

// postRegion plans an operator: transfer-leader {"to": store}, move-peer {"from": store, "to":
// store}, add-peer {"to": store}, remove-peer {"from": store}, split {"keys": [hex]},
// merge {"into": region}, scatter.
func (s *Server) postRegion(r *http.Request) (any, error) {
	reg, err := s.regionOf(r)
	if err != nil {
		return nil, err
	}
	var body struct {
		From uint64   `json:"from"`
		To   uint64   `json:"to"`
		Keys []string `json:"keys"`
		Into uint64   `json:"into"`
	}
	if err := decodeFields(r, &body, regionFields); err != nil {
		return nil, err
	}
	v := s.cluster.newView()
	var op *operator.Operator
	switch action := r.PathValue("action"); action {
	case "transfer-leader":
		op = operator.CreateTransferLeaderOperator("admin-transfer-leader", reg, operator.OpAdmin,
			operator.Medium, body.To)
		if _, ok := reg.StorePeer(body.To); !ok {
			return nil, badRequest("region %d has no peer on store %d", reg.ID(), body.To)
		}
	case "move-peer", "add-peer":
		id, aerr := s.allocPeerID()
		if aerr != nil {
			return nil, aerr
		}
		if v.Store(body.To) == nil {
			return nil, badRequest("store %d is not known", body.To)
		}
		if _, has := reg.StorePeer(body.To); has {
			return nil, badRequest("store %d has a peer of region %d already", body.To, reg.ID())
		}
		if action == "add-peer" {
			op = operator.CreateAddPeerOperator("admin-add-peer", reg, operator.OpAdmin,
				operator.Medium, body.To, id, v.LearnerFirst())
			break
		}
		op, err = operator.CreateMovePeerOperator("admin-move-peer", reg, operator.OpAdmin,
			operator.Medium,
			body.From, body.To, id, v.LearnerFirst(), v.NewLeader)
	case "remove-peer":
		op, err = operator.CreateRemovePeerOperator("admin-remove-peer", reg, operator.OpAdmin,
			operator.Medium, body.From, v.NewLeader)
	case "split":
		keys, kerr := splitKeys(reg, body.Keys)
		if kerr != nil {
			return nil, kerr
		}
		op = operator.CreateSplitOperator("admin-split", reg, operator.OpAdmin, operator.Medium,
			keys)
	case "merge":
		return orderMerge(s, reg, body.Into, r.RemoteAddr)
	case "scatter":
		return s.scatter(reg.ID(), "asked for by "+r.RemoteAddr)
	default:
		return nil,
			badRequest(
				"unknown action %q: transfer-leader, move-peer, add-peer, remove-peer, split, merge or scatter", action)
	}
	if err != nil {
		return nil, badRequest("%v", err)
	}
	if err := s.cluster.AddOperator(op.Because("asked for by %s", r.RemoteAddr)); err != nil {
		return nil, err
	}
	rec, _ := s.cluster.Controller().Find(reg.ID())
	return toOperatorJSON(rec), nil
}

// splitKeys decodes the keys of a split; without any, the store looks for one.
func splitKeys(r *core.RegionInfo, texts []string) ([][]byte, error) {
	var keys [][]byte
	for _, text := range texts {
		key, err := hex.DecodeString(text)
		switch {
		case err != nil:
			return nil, badRequest("key %q is not hexadecimal", text)
		case !r.Contains(key):
			return nil, badRequest("key %s is not in region %d", text, r.ID())
		case !r.CutBy(key):
			return nil, badRequest("region %d begins at key %q already", r.ID(), text)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 && r.Keys() == 0 {
		return nil,
			badRequest(
				"region %d has no keys by its last report, so its store finds none to split at: name a key", r.ID())
	}
	return keys, nil
}

// scatter answers with the operator, or with one that is done if there is nothing to do.
func (s *Server) scatter(regionID uint64, why string) (any, error) {
	op, err := s.cluster.Scatter(regionID, why)
	if err != nil {
		return nil, err
	}
	if op == nil {
		return operatorJSON{
			RegionID: regionID, Desc: "scatter", Status: operator.Success.String(), Why: why,
			Reason: "the region is well where it is", Steps: []string{},
		}, nil
	}
	rec, _ := s.cluster.Controller().Find(regionID)
	return toOperatorJSON(rec), nil
}

type operatorJSON struct {
	RegionID    uint64     `json:"region_id"`
	Desc        string     `json:"desc"`
	Kind        string     `json:"kind"`
	Priority    string     `json:"priority"`
	Status      string     `json:"status"`
	Why         string     `json:"why"`
	Reason      string     `json:"reason,omitempty"`
	Steps       []string   `json:"steps"`
	CurrentStep int        `json:"current_step"`
	SizeMiB     int64      `json:"size_mib"`
	Started     time.Time  `json:"started"`
	Finished    *time.Time `json:"finished,omitempty"`
	Seconds     float64    `json:"seconds"`
	StepSeconds []float64  `json:"step_seconds,omitempty"`
}

func toOperatorJSON(rec operator.Record) operatorJSON {
	out := operatorJSON{
		RegionID: rec.RegionID, Desc: rec.Desc, Kind: rec.Kind.String(),
		Priority: rec.Priority.String(),
		Status:   rec.Status.String(), Why: rec.Why, Reason: rec.Reason, Steps: rec.Steps,
		CurrentStep: rec.Current,
		SizeMiB:     rec.Size, Started: rec.Started.UTC(),
		Seconds: time.Since(rec.Started).Seconds(),
	}
	if rec.Status.Final() {
		t := rec.Finished.UTC()
		out.Finished, out.Seconds = &t, rec.Finished.Sub(rec.Started).Seconds()
	}
	for _, d := range rec.StepTimes {
		out.StepSeconds = append(out.StepSeconds, d.Seconds())
	}
	return out
}

func operatorsJSON(list []operator.Record, kind string) map[string]any {
	out := []operatorJSON{}
	for _, rec := range list {
		if o := toOperatorJSON(rec); kind == "" || strings.Contains(o.Kind, kind) {
			out = append(out, o)
		}
	}
	return map[string]any{"count": len(out), "operators": out}
}

func (s *Server) getOperators(r *http.Request) (any, error) {
	return operatorsJSON(s.cluster.Controller().Records(), r.URL.Query().Get("kind")), nil
}

func (s *Server) getHistory(r *http.Request) (any, error) {
	limit, err := queryInt(r, "limit", 100, 10_000)
	if err != nil {
		return nil, err
	}
	return operatorsJSON(s.cluster.Controller().History(limit), r.URL.Query().Get("kind")), nil
}

func (s *Server) getOperator(r *http.Request) (any, error) {
	id, err := pathID(r, "region")
	if err != nil {
		return nil, err
	}
	rec, ok := s.cluster.Controller().Find(id)
	if !ok {
		return nil, notFound("region %d has had no operator in the past ten minutes", id)
	}
	return toOperatorJSON(rec), nil
}

func (s *Server) deleteOperator(r *http.Request) (any, error) {
	id, err := pathID(r, "region")
	if err != nil {
		return nil, err
	}
	if !s.cluster.Controller().Cancel(id, "canceled by "+r.RemoteAddr) {
		return nil, notFound("region %d has no running operator", id)
	}
	return s.getOperator(r)
}

// getKeymap sums the key space up into buckets of neighbouring regions, for pictures.
func (s *Server) getKeymap(r *http.Request) (any, error) {
	buckets, err := queryInt(r, "buckets", 512, 4096)
	if err != nil {
		return nil, err
	}
	list := s.cluster.Core().ScanRegions(nil, nil, 0)
	type bucket struct {
		Start   string `json:"start"`
		Regions int    `json:"regions"`
		SizeMiB int64  `json:"size_mib"`
		Written uint64 `json:"bytes_written"`
		Read    uint64 `json:"bytes_read"`
		Store   uint64 `json:"leader_store"` // of the first region
		ID      uint64 `json:"region_id"`
	}
	out := []bucket{}
	per := max(1, (len(list)+max(1, buckets)-1)/max(1, buckets))
	for i, reg := range list {
		if i%per == 0 {
			out = append(out,
				bucket{
					Start: hex.EncodeToString(reg.StartKey()), Store: reg.LeaderStore(),
					ID: reg.ID(),
				})
		}
		b := &out[len(out)-1]
		b.Regions++
		b.SizeMiB += reg.Size()
		b.Written += reg.Flow().BytesWritten
		b.Read += reg.Flow().BytesRead
	}
	return map[string]any{"regions": len(list), "buckets": out}, nil
}

// getHot lists the regions with the most bytes written or read in their last interval.
func (s *Server) getHot(r *http.Request) (any, error) {
	limit, err := queryInt(r, "limit", 20, 1000)
	if err != nil {
		return nil, err
	}
	kind := cmp.Or(r.URL.Query().Get("kind"), "write")
	if kind != "write" && kind != "read" {
		return nil, badRequest("kind: %q is not write or read", kind)
	}
	out := []regionJSON{}
	for _, reg := range s.topRegions(kind, limit) {
		if f := reg.Flow(); kind == "write" && f.BytesWritten > 0 ||
			kind == "read" && f.BytesRead > 0 {
			out = append(out, toRegionJSON(reg, nil))
		}
	}
	return map[string]any{"kind": kind, "regions": out}, nil
}

// deleteRegion forgets what is known of a region. If it is there, its leader tells it anew with its
// next heartbeat; this is for regions that went on under an older version after more was lost than
// a majority.
func (s *Server) deleteRegion(r *http.Request) (any, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	if s.cluster.Core().RemoveRegion(id) == nil {
		return nil, notFound("region %d is not known", id)
	}
	s.cluster.controller.RegionGone(id, nil)
	s.cluster.events.add("region-forgotten", fmt.Sprintf("region %d, by an operator", id))
	s.cluster.health.Store(nil)
	s.cluster.planner.Wake()
	return map[string]any{"forgotten": id}, nil
}
