package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"github.com/tinykv/tinykv/pkg/security"
)

// statusServer serves metrics, status, configuration and profiles over HTTP.
type statusServer struct {
	n        *Node
	listener net.Listener
	http     *http.Server
	done     chan struct{}
}

func newStatusServer(n *Node) (*statusServer, error) {
	l, err := net.Listen("tcp", n.cfg.StatusAddr)
	if err != nil {
		return nil, err
	}
	return &statusServer{n: n, listener: l, done: make(chan struct{})}, nil
}

func (s *statusServer) addr() string { return s.listener.Addr().String() }

func (s *statusServer) start() {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registerMetrics(reg, s.n)
	s.http = &http.Server{
		Handler:           s.handler(promhttp.HandlerFor(reg, promhttp.HandlerOpts{})),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       10 * time.Second, WriteTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
	}
	// Owned by the status server; ends in stop.
	go func() {
		defer close(s.done)
		l := s.n.secured(netutil.LimitListener(s.listener, statusConns), "http/1.1")
		if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.n.logger.Error("status server failed", zap.Error(err))
		}
	}()
}

// handler serves reads only: other methods are answered with 405.
func (s *statusServer) handler(metrics http.Handler) http.Handler {
	cfg := s.n.cfg
	guard := &security.Guard{Hosts: append([]string{
		cfg.StatusAddr, cfg.AdvertiseStatusAddr, cfg.Addr, cfg.AdvertiseAddr,
	},
		cfg.Security.AllowedHosts...)}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	for path, h := range map[string]http.HandlerFunc{
		"status": s.status, "config": s.config, "regions": s.regions, "hash": s.hash,
		"health": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) },
	} {
		mux.Handle("GET /"+path, h)
	}
	for path, h := range map[string]http.HandlerFunc{
		"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol,
		"trace": pprof.Trace,
	} {
		mux.Handle("GET /debug/pprof/"+path, guard.Private(h))
	}
	return guard.Wrap(mux)
}

func (s *statusServer) stop() {
	if s.http == nil {
		_ = s.listener.Close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	<-s.done
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client is gone if this fails
}

// Status is what /status answers.
type Status struct {
	Version    string `json:"version"`
	ClusterID  uint64 `json:"cluster_id"`
	StoreID    uint64 `json:"store_id"`
	Addr       string `json:"addr"`
	Engine     string `json:"engine"`
	StatusAddr string `json:"status_addr"`
	Mode       string `json:"mode,omitempty"`
	// TLS and AllowPlain say how the ports are reached.
	TLS        bool              `json:"tls,omitempty"`
	AllowPlain bool              `json:"allow_plain,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	// MaxID is the largest id of a region, peer or store that the store knows; UnixMS is its wall
	// clock.
	MaxID      uint64 `json:"max_id"`
	UnixMS     int64  `json:"unix_ms"`
	UptimeSecs int64  `json:"uptime_seconds"`
	Regions    int    `json:"regions"`
	Leaders    int    `json:"leaders"`
	// Features are those that the store knows to be in force.
	Features    []string          `json:"features,omitempty"`
	DiskTotal   uint64            `json:"disk_total"`
	DiskFree    uint64            `json:"disk_free"`
	DiskFull    bool              `json:"disk_full"`
	ReadErrors  uint64            `json:"read_errors,omitempty"`
	Quarantined map[uint64]string `json:"quarantined,omitempty"`
}

func (s *statusServer) status(w http.ResponseWriter, _ *http.Request) {
	n := s.n
	st := Status{
		Version: n.version, ClusterID: n.ident.ClusterId, StoreID: n.ident.StoreId,
		Addr:   n.cfg.AdvertiseAddr,
		Engine: n.cfg.Storage.Engine, UptimeSecs: int64(time.Since(n.started).Seconds()),
		DiskFull: n.space.full(),
	}
	st.StatusAddr, st.Labels, st.UnixMS = n.cfg.AdvertiseStatusAddr, n.cfg.Labels,
		time.Now().UnixMilli()
	st.Mode = n.ident.Mode
	st.TLS, st.AllowPlain = n.identity != nil, n.cfg.Security.AllowPlain
	st.DiskTotal, st.DiskFree = n.space.disk()
	st.Features = n.features.inForce().Names()
	if n.store != nil {
		c := n.store.Counts()
		st.Regions, st.Leaders, st.ReadErrors = c.Regions, c.Leaders, c.ReadErrors
		st.Quarantined = n.store.Quarantined()
		st.MaxID = n.store.MaxKnownID()
	}
	writeJSON(w, st)
}

func (s *statusServer) config(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/toml")
	_ = toml.NewEncoder(w).Encode(s.n.live.Config()) // the client is gone if this fails
}

func (s *statusServer) regions(w http.ResponseWriter, r *http.Request) {
	if s.n.store == nil {
		writeJSON(w, []struct{}{})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	infos, err := s.n.store.Peers(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	writeJSON(w, infos)
}

// hash answers with a hash of a region's data and the applied index it stands for: replicas at the
// same index must agree.
func (s *statusServer) hash(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.URL.Query().Get("region"), 10, 64)
	if err != nil || s.n.store == nil {
		http.Error(w, "give the id of a region: /hash?region=2", http.StatusBadRequest)
		return
	}
	h, err := s.n.store.HashRegion(id)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	writeJSON(w, h)
}
