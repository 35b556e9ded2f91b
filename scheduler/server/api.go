package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/http/pprof"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/pkg/strictjson"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/tso"
)

const apiPrefix = "/api/v1"

// apiError is the body of every answer that is not 2xx.
type apiError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  string `json:"detail,omitempty"`
	status  int
}

func (e *apiError) Error() string { return e.Message }

func badRequest(format string, args ...any) error {
	return &apiError{
		Code: "bad-request", Message: fmt.Sprintf(format, args...), status: http.StatusBadRequest,
	}
}

func notFound(format string, args ...any) error {
	return &apiError{
		Code: "not-found", Message: fmt.Sprintf(format, args...), status: http.StatusNotFound,
	}
}

// toAPIError gives any error its status.
func toAPIError(err error) *apiError {
	var e *apiError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, ErrUnknownStore):
		return &apiError{Code: "not-found", Message: err.Error(), status: http.StatusNotFound}
	case errors.Is(err, ErrNoRoom), errors.Is(err, schedule.ErrNotAdmitted):
		return &apiError{Code: "conflict", Message: err.Error(), status: http.StatusConflict}
	case errors.Is(err, errNotLeader):
		return &apiError{
			Code: "not-leader", Message: "no placement leader right now",
			status: http.StatusServiceUnavailable,
		}
	default:
		return &apiError{Code: "failed", Message: err.Error(), status: http.StatusConflict}
	}
}

// handler answers a request with something that becomes JSON.
type handler func(r *http.Request) (any, error)

// api serves HTTP on the client port.
func (s *Server) api() http.Handler {
	mux := http.NewServeMux()
	// Answered by every member.
	s.route(mux, "GET /members", false, s.getMembers)
	s.route(mux, "GET /version", false, s.getVersion)
	s.route(mux, "GET /ts/decode", false, decodeTS)
	s.route(mux, "PUT /log/level", false, s.putLogLevel)
	s.route(mux, "POST /reclaim", false, s.postReclaim)
	// Answered by the leader; followers pass them on.
	s.route(mux, "GET /health", true, s.getHealth)
	s.route(mux, "GET /cluster", true, s.getCluster)
	s.route(mux, "GET /stores", true, s.getStores)
	s.route(mux, "GET /stores/{id}", true, s.getStore)
	s.route(mux, "POST /stores/{id}/{action}", true, s.postStore)
	s.route(mux, "DELETE /stores/{id}", true, s.deleteStore)
	s.route(mux, "GET /regions", true, s.getRegions)
	s.route(mux, "GET /regions/{id}", true, s.getRegion)
	s.route(mux, "POST /regions/{id}/{action}", true, s.postRegion)
	s.route(mux, "DELETE /regions/{id}", true, s.deleteRegion)
	s.route(mux, "GET /holds", true, getHolds(s))
	s.route(mux, "POST /holds", true, postHold(s))
	s.route(mux, "DELETE /holds", true, deleteHold(s))
	s.route(mux, "GET /operators", true, s.getOperators)
	s.route(mux, "GET /operators/history", true, s.getHistory)
	s.route(mux, "GET /operators/{region}", true, s.getOperator)
	s.route(mux, "DELETE /operators/{region}", true, s.deleteOperator)
	s.route(mux, "GET /config", true, s.getConfig)
	s.route(mux, "PATCH /config", true, s.patchConfig)
	s.route(mux, "POST /config", true, s.patchConfig)
	s.route(mux, "GET /schedulers", true, s.getSchedulers)
	s.route(mux, "POST /schedulers/{name}/{action}", true, s.postScheduler)
	s.route(mux, "GET /explain", true, s.getExplain)
	s.route(mux, "GET /gc/safepoint", true, s.getSafePoint)
	s.route(mux, "GET /keymap", true, s.getKeymap)
	s.route(mux, "GET /hot", true, s.getHot)
	s.route(mux, "GET /history", true, getHistoryPoints(s.cluster))
	s.route(mux, "POST /leader/{action}", true, s.postLeader)
	s.route(mux, "POST /members", true, s.postMember)
	s.route(mux, "DELETE /members/{name}", true, s.deleteMember)
	s.route(mux, "POST /members/{name}/promote", true, s.promoteMember)
	mux.Handle("GET "+apiPrefix+"/events", s.onLeader(http.HandlerFunc(s.getEvents)))
	mux.HandleFunc(apiPrefix+"/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, notFound("no such route: %s %s", r.Method, r.URL.Path))
	})
	top := http.NewServeMux()
	top.Handle(apiPrefix+"/", s.whenReady(mux))
	top.Handle(pdAPIPrefix+"/", s.whenReady(s.pdAPI()))
	top.Handle("GET /metrics", s.metrics.handler())
	ui := pages{s.guard}
	top.Handle("GET /ui/", ui.page())
	top.Handle("POST "+loginPath, s.guard.Proven(http.HandlerFunc(ui.login)))
	top.Handle("POST "+logoutPath, s.guard.Proven(http.HandlerFunc(ui.logout)))
	top.Handle("GET /health", s.whenReady(http.HandlerFunc(s.plainHealth)))
	top.Handle("GET "+syncPath, s.whenReady(s.internal(s.serveRegions)))
	top.Handle("GET "+alivePath, s.whenReady(s.internal(s.serveAlive)))
	top.Handle("GET "+eventsPath, s.whenReady(s.internal(s.serveEvents)))
	for path, h := range map[string]http.HandlerFunc{
		"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol,
		"trace": pprof.Trace,
	} {
		top.Handle("GET /debug/pprof/"+path, s.guard.Private(h))
	}
	return s.named(s.guard.Wrap(top))
}

// instanceHeader carries Config.Instance.
const instanceHeader = "Tinykv-Instance"

func (s *Server) named(next http.Handler) http.Handler {
	if s.cfg.Instance == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(instanceHeader, s.cfg.Instance)
		next.ServeHTTP(w, r)
	})
}

// newGuard checks the requests of the client port as the configuration says.
func newGuard(cfg *config.Config) *security.Guard {
	g := &security.Guard{
		Token: cfg.API.Token, Sessions: security.NewSessions(time.Now),
		Names:    cfg.Security.Names(),
		Attempts: security.NewAttempts(time.Now),
		Loopback: true, Hosts: cfg.API.AllowedHosts, Origins: cfg.API.AllowedOrigins,
		Refuse: func(w http.ResponseWriter, f *security.Refusal) {
			writeError(w,
				&apiError{Code: f.Code, Message: f.Message, Detail: f.Detail, status: f.Status})
		},
	}
	for _, urls := range []string{cfg.ClientUrls, cfg.AdvertiseClientUrls} {
		parsed, _ := config.ParseURLs(urls) // Validate has checked them
		for _, u := range parsed {
			g.Hosts = append(g.Hosts, u.Host)
			// What is advertised to other machines comes in from them, through a proxy at least.
			g.Loopback = g.Loopback &&
				(security.LoopbackHost(u.Host) || strings.HasPrefix(u.Scheme, "unix"))
		}
	}
	return g
}

// plainHealth is for probes that know etcd's.
func (s *Server) plainHealth(w http.ResponseWriter, _ *http.Request) {
	if err := s.leaderKnown(); err != nil {
		writeJSON(w, http.StatusServiceUnavailable,
			map[string]string{"health": "false", "reason": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"health": "true"})
}

func (s *Server) route(mux *http.ServeMux, pattern string, leader bool, h handler) {
	method, path, _ := strings.Cut(pattern, " ")
	var hh http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := h(r)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	})
	if method != http.MethodGet {
		hh = s.noted(hh)
	}
	if leader {
		hh = s.onLeader(hh)
	}
	if method != http.MethodGet {
		// before anything is passed on: the leader cannot tell who asked a follower
		hh = s.guard.Admin(hh)
	}
	mux.Handle(method+" "+apiPrefix+path, hh)
}

func (s *Server) whenReady(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-s.ready:
			next.ServeHTTP(w, r)
		default:
			writeError(w,
				&apiError{
					Code: "starting", Message: "server is starting",
					status: http.StatusServiceUnavailable,
				})
		}
	})
}

// maxBody bounds what a request that changes something may carry.
const maxBody = 1 << 20

// noted makes every change an event.
func (s *Server) noted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.cluster.events.add("request",
			fmt.Sprintf("%s %s by %s", r.Method, r.URL.Path, r.RemoteAddr))
		// All of it is read before anything is answered: a client that is still sending would see
		// its connection break.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.bodies.Add(1)
			writeError(w, badRequest("body: %v (at most %d bytes)", err, maxBody))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// onLeader serves the request here if this member leads, else passes it on to the leader.
func (s *Server) onLeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.IsLeader() {
			next.ServeHTTP(w, r)
			return
		}
		m, _ := s.elector.Leader()
		if len(m.GetClientUrls()) == 0 || m.MemberId == s.self.MemberId ||
			r.Header.Get(forwardedHeader) != "" {
			writeError(w, s.noLeaderAPI())
			return
		}
		target, err := url.Parse(m.ClientUrls[0])
		if err != nil {
			writeError(w, err)
			return
		}
		proxy := httputil.ReverseProxy{
			FlushInterval: -1, // events stream
			Transport:     s.transport,
			Rewrite: func(p *httputil.ProxyRequest) {
				p.SetURL(target)
				p.Out.Header.Set(forwardedHeader, "1")
				// The origin was checked here; for the leader it is this member that asks.
				for _, h := range []string{
					"Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest",
				} {
					p.Out.Header.Del(h)
				}
				p.Out.Header.Set(security.ProofHeader, "1")
				s.guard.PassOn(p.In, p.Out)
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				writeError(w, &apiError{
					Code: "leader-unreachable", Message: "the placement leader does not answer",
					Detail: err.Error(),
					status: http.StatusBadGateway,
				})
			},
		}
		proxy.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client is gone; nobody to tell
}

func writeError(w http.ResponseWriter, err error) {
	e := toAPIError(err)
	writeJSON(w, e.status, e)
}

func pathID(r *http.Request, name string) (uint64, error) {
	id, err := strconv.ParseUint(r.PathValue(name), 10, 64)
	if err != nil || id == 0 {
		return 0, badRequest("%q is not an id", r.PathValue(name))
	}
	return id, nil
}

func queryInt(r *http.Request, name string, def, most int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, badRequest("%s: %q is not a number", name, text)
	}
	return min(n, most), nil
}

func (s *Server) getVersion(*http.Request) (any, error) {
	return map[string]any{"name": s.cfg.Name, "cluster_id": s.clusterID}, nil
}

func decodeTS(r *http.Request) (any, error) {
	ts, err := strconv.ParseUint(r.URL.Query().Get("ts"), 10, 64)
	if err != nil {
		return nil, badRequest("ts: %q is not a timestamp", r.URL.Query().Get("ts"))
	}
	physical, logical := tso.Parse(ts)
	return map[string]any{
		"physical": physical.UTC(), "physical_ms": physical.UnixMilli(), "logical": logical,
	}, nil
}

func (s *Server) putLogLevel(r *http.Request) (any, error) {
	level, err := log.ParseLevel(r.URL.Query().Get("level"))
	if err != nil {
		return nil, badRequest("%v", err)
	}
	if s.logLevel == nil {
		return nil, badRequest("the log level of this process is fixed")
	}
	s.logLevel.SetLevel(level)
	return map[string]any{"level": level.String()}, nil
}

// getEvents lists events after a sequence number, or streams them (stream=1 or an event-stream
// client).
func (s *Server) getEvents(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	stream := r.URL.Query().Get("stream") != "" ||
		strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	events, more := s.cluster.events.after(after)
	if !stream {
		if limit, err := queryInt(r, "limit", 1000, eventCapacity); err == nil &&
			len(events) > limit {
			events = events[len(events)-limit:]
		}
		writeJSON(w, http.StatusOK, map[string]any{"events": nonNil(events)})
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	flusher, _ := w.(http.Flusher)
	ctx := s.leaderContext()
	if ctx == nil {
		ctx = s.ctx
	}
	for {
		for _, e := range events {
			data, err := json.Marshal(e)
			if err != nil {
				return
			}
			if _, err := fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Kind,
				data); err != nil {
				return
			}
			after = e.Seq
		}
		if flusher != nil {
			flusher.Flush()
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		case <-ctx.Done():
			return
		case <-time.After(15 * time.Second):
			if _, err := fmt.Fprint(w, ": alive\n\n"); err != nil {
				return
			}
		}
		events, more = s.cluster.events.after(after)
	}
}

func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (s *Server) getSafePoint(r *http.Request) (any, error) {
	sp, _, err := s.gcSafePoint(r.Context())
	return map[string]any{"safe_point": sp}, err
}

// jsonSpace is what JSON takes for white space.
const jsonSpace = " \t\r\n"

// decodeBody reads a JSON object; an empty body is an empty object. Unknown fields, fields that
// stand twice, bytes that are no UTF-8 and anything behind the object are errors: what a client did
// not mean must not change anything.
func decodeBody(r *http.Request, into any) error {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return badRequest("body: %v (at most %d bytes)", err, maxBody)
	}
	if len(bytes.Trim(body, jsonSpace)) == 0 {
		return nil
	}
	if err := strictjson.Object(body); err != nil {
		return badRequest("body: %v", err)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return badRequest("body: %v", err)
	}
	return nil
}

// decodeFields is decodeBody for the action of a path, which takes those of the fields of into that
// of names: another one is an error. An action that is not in of is for the caller to refuse.
func decodeFields(r *http.Request, into any, of map[string][]string) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return badRequest("body: %v", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := decodeBody(r, into); err != nil || len(bytes.Trim(body, jsonSpace)) == 0 {
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return badRequest("body: %v", err)
	}
	action := r.PathValue("action")
	takes, known := of[action]
	for name := range fields {
		if known &&
			!slices.ContainsFunc(takes, func(k string) bool { return strings.EqualFold(k, name) }) {
			return badRequest("body: %q takes no field %q", action, name)
		}
	}
	return nil
}

// region finds the region of a path.
func (s *Server) regionOf(r *http.Request) (*core.RegionInfo, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	reg := s.cluster.Core().Region(id)
	if reg == nil {
		return nil, notFound("region %d is not known", id)
	}
	return reg, nil
}

func requestContext(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), requestTimeout)
}
