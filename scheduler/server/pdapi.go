package server

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pingcap/kvproto/pkg/pdpb"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/pdface"
	"github.com/tinykv/tinykv/scheduler/server/pdhttp"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// PD's HTTP interface, as far as its tools read it: the same paths, field names and errors. It
// changes nothing; changes have their own interface (api.go), with its own rules about who may make
// them.

const pdAPIPrefix = "/pd/api/v1"

// pdAPI serves the reads of PD's interface.
func (s *Server) pdAPI() http.Handler {
	mux, began := http.NewServeMux(), time.Now()
	pd := func(path string, leader bool, h handler) {
		var hh http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answerPD(w, r, h)
		})
		if leader {
			hh = s.onLeader(hh)
		}
		mux.Handle("GET "+pdAPIPrefix+path, hh)
	}
	// Answered by every member.
	pd("/ping", false, func(*http.Request) (any, error) { return nil, nil })
	pd("/version", false, func(*http.Request) (any, error) {
		return map[string]string{"version": pdhttp.Version}, nil
	})
	pd("/status", false, func(*http.Request) (any, error) {
		return pdhttp.Status{
			BuildTS: "None", Version: pdhttp.Version, GitHash: "None", StartTimestamp: began.Unix(),
		}, nil
	})
	pd("/members", false, func(*http.Request) (any, error) { return s.pdMembers(), nil })
	pd("/leader", false, func(*http.Request) (any, error) { return s.pdLeader() })
	pd("/health", false, func(r *http.Request) (any, error) { return s.pdHealth(r.Context()), nil })
	// Answered by the leader; followers pass them on.
	pd("/cluster", true, s.pdCluster)
	pd("/cluster/status", true, s.pdClusterStatus)
	pd("/stores", true, s.booted(s.pdStores))
	pd("/store/{id}", true, s.booted(s.pdStore))
	pd("/regions", true, s.booted(s.pdRegions))
	pd("/regions/key", true, s.booted(s.pdRegions))
	pd("/regions/store/{id}", true, s.booted(s.pdStoreRegions))
	pd("/regions/sibling/{id}", true, s.booted(pdSiblings(s)))
	pd("/regions/range-holes", true,
		s.booted(func(*http.Request) (any, error) { return pdhttp.Holes(allRegions(s)), nil }))
	pd("/regions/check/{kind}", true, s.booted(pdCheck(s)))
	for name, by := range pdhttp.Orders {
		pd("/regions/"+name, true, s.booted(pdTop(s, by)))
	}
	pd("/region/id/{id}", true, s.booted(s.pdRegionByID))
	pd("/region/key/{key...}", true, s.booted(s.pdRegionByKey))
	pd("/config", true, func(*http.Request) (any, error) { return s.pdConfig(), nil })
	pd("/config/schedule", true, func(*http.Request) (any, error) {
		return s.pdConfig().Schedule, nil
	})
	pd("/config/replicate", true, func(*http.Request) (any, error) {
		return s.pdConfig().Replication, nil
	})
	pd("/config/cluster-version", true, func(*http.Request) (any, error) {
		return pdface.SpokenVersion, nil
	})
	pd("/labels", true,
		s.booted(func(*http.Request) (any, error) {
			return pdhttp.Labels(s.cluster.newView().Stores()), nil
		}))
	pd("/labels/stores", true, s.booted(pdLabelled(s)))
	pd("/schedulers", true, s.pdSchedulers)
	pd("/operators", true, s.pdOperators)
	pd("/operators/{id}", true, pdOperator(s))
	pd("/operators/records", true, func(*http.Request) (any, error) {
		return nil, notFound("404 page not found")
	})
	mux.HandleFunc(pdAPIPrefix+"/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			writeJSON(w, http.StatusMethodNotAllowed, "PD's interface is read-only here: use "+apiPrefix+" or tinyctl")
			return
		}
		writeJSON(w, http.StatusNotFound, "404 page not found")
	})
	return mux
}

// answerPD writes an answer; errors are texts. Nil is an empty answer.
func answerPD(w http.ResponseWriter, r *http.Request, h handler) {
	out, err := h(r)
	list, isList := out.(regionList)
	switch {
	case err != nil:
		e := toAPIError(err)
		writeJSON(w, e.status, e.Message)
	case isList:
		list.write(w)
	case out != nil:
		writeJSON(w, http.StatusOK, out)
	}
}

// regionList is an answer of any length: PD's tools ask for all regions at once, and do not notice
// a list that is cut. It is written region by region, so that it need not fit into memory as text.
type regionList []*core.RegionInfo

func (l regionList) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, "{\n  \"count\": %d,\n  \"regions\": [", len(l))
	for i, r := range l {
		text, err := json.Marshal(pdhttp.RegionOf(r))
		if err != nil {
			return // the client sees that the answer is no JSON
		}
		if i > 0 {
			_ = out.WriteByte(',')
		}
		_, _ = out.WriteString("\n    ")
		if _, err := out.Write(text); err != nil {
			return // the client is gone
		}
	}
	_, _ = out.WriteString("\n  ]\n}\n")
	_ = out.Flush() // the client is gone; nobody to tell
}

// booted refuses what makes no sense before the first store.
func (s *Server) booted(h handler) handler {
	return func(r *http.Request) (any, error) {
		if ok, _ := s.bootstrapped(); !ok {
			return nil, &apiError{
				Message: "[PD:cluster:ErrNotBootstrapped]TiKV cluster not bootstrapped, please start TiKV first",
				status:  http.StatusInternalServerError,
			}
		}
		return h(r)
	}
}

func (s *Server) pdMembers() *pdpb.GetMembersResponse {
	leader, _ := s.elector.Leader()
	quorum := s.node.quorumLeader()
	out := &pdpb.GetMembersResponse{
		Header: &pdpb.ResponseHeader{ClusterId: s.clusterID}, Leader: pdface.Member(leader),
	}
	for _, m := range s.members() {
		p := pdface.Member(m.Member)
		p.BinaryVersion = pdhttp.Version
		out.Members = append(out.Members, p)
		if m.MemberId == quorum {
			out.EtcdLeader = p
		}
	}
	return out
}

func (s *Server) pdLeader() (any, error) {
	leader, _ := s.elector.Leader()
	if leader == nil {
		return nil, s.noLeaderAPI()
	}
	return pdface.Member(leader), nil
}

// pdHealthTimeout is how long another member has to answer.
const pdHealthTimeout = time.Second

// pdHealth asks all members at the same time.
func (s *Server) pdHealth(ctx context.Context) []pdhttp.Health {
	ctx, cancel := context.WithTimeout(ctx, pdHealthTimeout)
	defer cancel()
	members := s.members()
	out := make([]pdhttp.Health, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		out[i] = pdhttp.Health{
			Name: m.Name, MemberID: m.MemberId, ClientUrls: m.ClientUrls,
			Health: m.MemberId == s.self.MemberId,
		}
		if out[i].Health {
			continue
		}
		wg.Add(1)
		go func() { // ends with ctx; waited for below
			defer wg.Done()
			out[i].Health = s.answers(ctx, m.ClientUrls)
		}()
	}
	wg.Wait()
	return out
}

// answers tells whether a member answers at one of its addresses.
func (s *Server) answers(ctx context.Context, urls []string) bool {
	client := &http.Client{Transport: s.transport}
	for _, u := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u+pdAPIPrefix+"/ping", nil)
		if err != nil {
			continue
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return true
			}
		}
	}
	return false
}

func (s *Server) pdCluster(*http.Request) (any, error) {
	return map[string]any{
		"id": s.clusterID, "max_peer_count": s.cluster.Settings().Replication.MaxReplicas,
	}, nil
}

func (s *Server) pdClusterStatus(r *http.Request) (any, error) {
	ctx, cancel := requestContext(r)
	defer cancel()
	out := pdhttp.ClusterStatus{}
	if out.IsInitialized, _ = s.bootstrapped(); !out.IsInitialized {
		return out, nil
	}
	boot, err := s.storage.Get(ctx, s.keys.BootstrapTime())
	if err != nil {
		return nil, err
	}
	ns, err := storage.ParseUint64(boot.Value)
	if err != nil {
		return nil, fmt.Errorf("decode the time of bootstrap: %w", err)
	}
	out.RaftBootstrapTime = time.Unix(0, int64(ns)).UTC()
	return out, nil
}

// pdStores lists stores; without state=, those that are not tombstone.
func (s *Server) pdStores(r *http.Request) (any, error) {
	v := s.cluster.newView()
	states := r.URL.Query()["state"]
	out := pdhttp.Stores{Stores: []pdhttp.Store{}}
	for _, st := range v.Stores() {
		if len(states) == 0 && st.IsTombstone() ||
			len(states) > 0 && !slices.Contains(states, fmt.Sprint(int32(st.State()))) {
			continue
		}
		out.Stores = append(out.Stores, pdhttp.StoreOf(st, s.stateName(st), v.Load(st)))
	}
	out.Count = len(out.Stores)
	return out, nil
}

func (s *Server) pdStore(r *http.Request) (any, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	v := s.cluster.newView()
	st := v.Store(id)
	if st == nil {
		return nil, notFound("[PD:core:ErrStoreNotFound]store %d not found", id)
	}
	return pdhttp.StoreOf(st, s.stateName(st), v.Load(st)), nil
}

// pdRegions lists regions in the order of their keys, from key= up to end_key=, at most limit=; 0
// and less are all. With format=hex the keys are in hexadecimal.
func (s *Server) pdRegions(r *http.Request) (any, error) {
	q, limit := r.URL.Query(), 0
	if text := q.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil {
			return nil, badRequest("limit: %q is not a number", text)
		}
	}
	start, err := pdKey(r, q.Get("key"))
	if err != nil {
		return nil, err
	}
	end, err := pdKey(r, q.Get("end_key"))
	if err != nil {
		return nil, err
	}
	return regionList(s.cluster.Core().ScanRegions(start, end, max(limit, 0))), nil
}

func (s *Server) pdStoreRegions(r *http.Request) (any, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	var list regionList
	for _, reg := range s.cluster.Core().ScanRegions(nil, nil, 0) {
		if _, ok := reg.StorePeer(id); ok {
			list = append(list, reg)
		}
	}
	return list, nil
}

func (s *Server) pdRegionByID(r *http.Request) (any, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	return regionOrNull(s.cluster.Core().Region(id)), nil
}

func (s *Server) pdRegionByKey(r *http.Request) (any, error) {
	// Tools escape the key as they would in a query: a space is a plus.
	text, err := url.QueryUnescape(strings.TrimPrefix(r.URL.EscapedPath(),
		pdAPIPrefix+"/region/key/"))
	if err != nil {
		return nil, badRequest("%v", err)
	}
	key, err := pdKey(r, text)
	if err != nil {
		return nil, err
	}
	return regionOrNull(s.cluster.Core().RegionByKey(key)), nil
}

// regionOrNull is null for a region that is not known, as with PD.
func regionOrNull(r *core.RegionInfo) *pdhttp.Region {
	if r == nil {
		return nil
	}
	out := pdhttp.RegionOf(r)
	return &out
}

func pdKey(r *http.Request, text string) ([]byte, error) {
	if r.URL.Query().Get("format") != "hex" {
		return []byte(text), nil
	}
	key, err := hex.DecodeString(text)
	if err != nil {
		return nil, badRequest("%q is not hexadecimal", text)
	}
	return key, nil
}

func (s *Server) pdConfig() pdhttp.Config {
	set := s.cluster.Settings()
	return pdhttp.Config{
		ClientUrls: s.cfg.ClientUrls, PeerUrls: s.cfg.PeerUrls,
		AdvertiseClientUrls: s.cfg.AdvertiseClientUrls,
		AdvertisePeerUrls:   s.cfg.AdvertisePeerUrls, Name: s.cfg.Name, Lease: s.cfg.Lease,
		Schedule: set.Schedule,
		Replication: pdhttp.Replication{
			MaxReplicas:        uint64(set.Replication.MaxReplicas),
			LocationLabels:     strings.Join(set.Replication.LocationLabels, ","),
			StrictlyMatchLabel: "false", EnablePlacementRules: "false",
		},
		ClusterVersion: pdface.SpokenVersion,
	}
}

// pdSchedulers lists those that are switched on, by PD's names; with status=paused, those that are
// paused.
func (s *Server) pdSchedulers(r *http.Request) (any, error) {
	p, paused := s.cluster.Planner(), r.URL.Query().Get("status") == "paused"
	out := []string{}
	for _, name := range p.Schedulers() {
		if !s.cluster.Settings().Schedule.Enabled(name) ||
			paused && !time.Now().Before(p.PausedUntil(name)) {
			continue
		}
		out = append(out, name+"-scheduler")
	}
	return out, nil
}

func (s *Server) pdOperators(*http.Request) (any, error) {
	out := []string{}
	for _, op := range s.cluster.Controller().Running() {
		out = append(out, op.String())
	}
	slices.Sort(out)
	return out, nil
}

// pdOperator is the operator of a region that is under way, or the last one that ended.
func pdOperator(s *Server) handler {
	return func(r *http.Request) (any, error) {
		id, err := pathID(r, "id")
		if err != nil {
			return nil, err
		}
		rec, ok := s.cluster.Controller().Find(id)
		if !ok {
			return nil,
				notFound("[PD:schedule:ErrOperatorNotFound]operator of region %d not found", id)
		}
		return fmt.Sprintf("status: %s, operator: %s r%d (%s): %s",
			strings.ToUpper(rec.Status.String()), rec.Desc, rec.RegionID, rec.Kind,
			strings.Join(rec.Steps, ", ")), nil
	}
}

func allRegions(s *Server) []*core.RegionInfo { return s.cluster.Core().ScanRegions(nil, nil, 0) }

// number reads a number of a query; empty is the usual one.
func number(r *http.Request, name string, usual int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return usual, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, badRequest("%s: %q is no number above 0", name, text)
	}
	return n, nil
}

// pdTop lists the first regions of an order, 16 unless limit= says otherwise.
func pdTop(s *Server, by func(*core.RegionInfo) uint64) handler {
	return func(r *http.Request) (any, error) {
		n, err := number(r, "limit", pdhttp.UsualTop)
		return regionList(pdhttp.Top(allRegions(s), by, min(n, pdhttp.MostTop))), err
	}
}

// Histograms have bars of so many MiB and keys, unless bound= says otherwise.
const (
	usualSizeBar = 1
	usualKeysBar = 1000
)

// pdCheck lists the regions in a condition, or counts them by size or keys.
func pdCheck(s *Server) handler {
	return func(r *http.Request) (any, error) {
		kind := r.PathValue("kind")
		switch kind {
		case "hist-size":
			bound, err := number(r, "bound", usualSizeBar)
			if err != nil {
				return nil, err
			}
			return pdhttp.Histogram(allRegions(s), pdhttp.Orders["size"], int64(bound)), nil
		case "hist-keys":
			bound, err := number(r, "bound", usualKeysBar)
			if err != nil {
				return nil, err
			}
			return pdhttp.Histogram(allRegions(s), pdhttp.Orders["keys"], int64(bound)), nil
		}
		is, ok := pdhttp.Checks[kind]
		if !ok {
			return nil, notFound("404 page not found")
		}
		v := s.cluster.newView()
		return regionList(pdhttp.Check(allRegions(s), is, pdhttp.Facts{
			Replicas: int(s.cluster.Settings().Replication.MaxReplicas),
			Offline: func(id uint64) bool {
				st := v.Store(id)
				return st != nil && st.IsOffline()
			},
		})), nil
	}
}

func pdSiblings(s *Server) handler {
	return func(r *http.Request) (any, error) {
		id, err := pathID(r, "id")
		if err != nil {
			return nil, err
		}
		of := s.cluster.Core().Region(id)
		if of == nil {
			return nil, notFound("[PD:core:ErrRegionNotFound]region %d not found", id)
		}
		return regionList(pdhttp.Siblings(allRegions(s), of)), nil
	}
}

// pdLabelled lists the stores that have a label, name= with value=.
func pdLabelled(s *Server) handler {
	return func(r *http.Request) (any, error) {
		v, q := s.cluster.newView(), r.URL.Query()
		out := pdhttp.Stores{Stores: []pdhttp.Store{}}
		for _, st := range v.Stores() {
			if value := st.Label(q.Get("name")); value != "" &&
				strings.EqualFold(value, q.Get("value")) {
				out.Stores = append(out.Stores, pdhttp.StoreOf(st, s.stateName(st), v.Load(st)))
			}
		}
		out.Count = len(out.Stores)
		return out, nil
	}
}
