// Package config holds the options of a tinykv-server: their defaults, their validation, and the
// TOML file they are read from. It has no side effects besides reading that file.
package config

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/security"
)

// Config has all options of a tinykv-server. Flags override the environment, which overrides
// the file, which overrides Default.
type Config struct {
	// Scheduler lists the placement service's client addresses, host:port.
	Scheduler []string `toml:"scheduler"`
	// ClusterID is the only cluster that a store joins; 0 joins the one that the placement service
	// serves.
	ClusterID uint64 `toml:"cluster-id"`
	// Addr is bound exactly as given; AdvertiseAddr is the address that others use (default: Addr).
	Addr          string `toml:"addr"`
	AdvertiseAddr string `toml:"advertise-addr"`
	// StatusAddr serves /metrics, /status, /config and /debug/pprof; empty turns it off.
	StatusAddr          string            `toml:"status-addr"`
	AdvertiseStatusAddr string            `toml:"advertise-status-addr"`
	DataDir             string            `toml:"data-dir"`
	Labels              map[string]string `toml:"labels"`

	Log       log.Config `toml:"log"`
	Security  Security   `toml:"security"`
	Server    Server     `toml:"server"`
	Storage   Storage    `toml:"storage"`
	RaftLog   RaftLog    `toml:"raftlog"`
	Raftstore Raftstore  `toml:"raftstore"`
	GC        GC         `toml:"gc"`
}

// GC says how old versions of a cluster of transactions are removed. One store at a time does it
// for all.
type GC struct {
	// LifeTime is for how long a version is kept after it was overwritten, and how long a
	// transaction may take.
	LifeTime Duration `toml:"life-time"`
	// Interval is how often the safe point is raised, and the locks of dead clients are looked for;
	// 0: never.
	Interval Duration `toml:"interval"`
	// Rate bounds the bytes a second of deletes that it writes.
	Rate Size `toml:"max-bytes-per-sec"`
}

// Security says how the placement service is reached, and who reaches this store.
type Security struct {
	// CAPath, CertPath and KeyPath are this store's identity: with a certificate it serves TLS on
	// all ports, to those who show one of the same authorities, and shows it to the placement
	// service and to other stores. The CA alone is for a placement service with https addresses.
	// The files are read again when they have changed.
	CAPath   string `toml:"ca-path"`
	CertPath string `toml:"cert-path"`
	KeyPath  string `toml:"key-path"`
	// CertAllowedCN are the names of certificates that may connect; empty allows all of the
	// authorities. Those of this cluster's servers may in any case.
	CertAllowedCN []string `toml:"cert-allowed-cn"`
	// CertNodeCN, CertAdminCN and CertClientCN give roles by common names to certificates without
	// a role URI. Once one is set, a certificate with neither is refused.
	CertNodeCN   []string `toml:"cert-node-cn"`
	CertAdminCN  []string `toml:"cert-admin-cn"`
	CertClientCN []string `toml:"cert-client-cn"`
	// AllowPlain serves connections without TLS too: for the time in which a cluster changes to
	// TLS.
	AllowPlain bool `toml:"allow-plain"`
	// Insecure accepts that other machines are served without TLS.
	Insecure bool `toml:"insecure"`
	// AllowedHosts are further names of this store that may stand in the Host header at the status
	// port.
	AllowedHosts []string `toml:"allowed-hosts"`
	// RedactKeys replaces keys in the log by hashes under a secret of the process; answers to
	// clients stay as they are.
	RedactKeys bool `toml:"redact-keys"`
}

// Files are what the placement service's client needs.
func (s *Security) Files() security.Files {
	return security.Files{CA: s.CAPath, Cert: s.CertPath, Key: s.KeyPath}
}

// Names are the roles by common names.
func (s *Security) Names() *security.Names {
	return &security.Names{Node: s.CertNodeCN, Admin: s.CertAdminCN, Client: s.CertClientCN}
}

// TLS tells whether the store serves TLS.
func (s *Security) TLS() bool { return s.CertPath != "" }

// PlacementFiles are the TLS files for the placement service: none for one without TLS, in a
// cluster that changes to it.
func (c *Config) PlacementFiles() security.Files {
	if c.Security.AllowPlain && !anyHTTPS(c.Scheduler) {
		return security.Files{}
	}
	return c.Security.Files()
}

// Server limits what clients may send.
type Server struct {
	// GRPCMaxMessage bounds one message; it must leave room above MaxEntry.
	GRPCMaxMessage Size   `toml:"grpc-max-message"`
	GRPCMaxStreams uint32 `toml:"grpc-max-streams"`
	// MaxConns bounds the connections to the service port, MaxConnsPerHost those of clients at one
	// address. An eighth of MaxConns, 256 at most, is for other stores.
	MaxConns        int `toml:"max-connections"`
	MaxConnsPerHost int `toml:"max-connections-per-host"`
	// MaxAnswerBytes bounds what is held of answers that clients have not taken.
	MaxAnswerBytes Size `toml:"max-answer-bytes"`
	// MaxRequestBytes bounds what is held of requests larger than a frame of 16 KiB, from their
	// first byte to their answer. StallTimeout is how long such a request may make no progress.
	MaxRequestBytes Size     `toml:"max-request-bytes"`
	StallTimeout    Duration `toml:"stall-timeout"`
	MaxKeySize      Size     `toml:"max-key-size"`
	MaxScanLimit    uint32   `toml:"max-scan-limit"`
	RequestTimeout  Duration `toml:"request-timeout"`
	ShutdownTimeout Duration `toml:"shutdown-timeout"`
	// SlowLog is from what time on requests, and writes by stage, are logged as slow; 0: none is.
	SlowLog              Duration `toml:"slow-log-threshold"`
	SnapshotSendLimit    int      `toml:"snapshot-send-limit"`
	SnapshotReceiveLimit int      `toml:"snapshot-receive-limit"`
	SnapshotTimeout      Duration `toml:"snapshot-timeout"`
	// SnapshotRate bounds the bytes a second of raft snapshots that are built, and of those
	// installed; 0 does not.
	SnapshotRate Size `toml:"snap-io-max-bytes-per-sec"`
}

// Storage chooses and sizes the embedded engine.
type Storage struct {
	// Raft false serves one unreplicated store, without a placement service.
	Raft   bool   `toml:"raft"`
	Engine string `toml:"engine"`
	// Memory is what blocks and memtables may take; 0 is a quarter of what the process may use, at
	// most 384 MiB. Cache and MemTable are the parts of it; 0 has them follow from it. See Fit.
	Memory   Size `toml:"memory"`
	Cache    Size `toml:"cache-size"`
	MemTable Size `toml:"memtable-size"`
	// ReserveSpace is kept free on the disk: below it writes are refused with DiskFull.
	ReserveSpace Size `toml:"reserve-space"`
	// Capacity caps what the store reports as its size; 0 means the whole disk.
	Capacity Size `toml:"capacity"`
}

// RaftLog sizes the raft log.
type RaftLog struct {
	SegmentSize Size `toml:"segment-size"`
	Cache       Size `toml:"cache-size"`
}

// Raftstore times and bounds the replicas of a store.
type Raftstore struct {
	TickInterval   Duration `toml:"tick-interval"`
	HeartbeatTicks int      `toml:"heartbeat-ticks"`
	ElectionTicks  int      `toml:"election-ticks"`
	// ReadMode is "lease" or "read-index".
	ReadMode string `toml:"read-mode"`
	// LeaseDrift is the part of the election timeout, in percent, that a lease gives up for clocks
	// (20 is enough for one at 0.9 times the right rate beside one at 1.1 times)
	// that run at different speeds.
	LeaseDrift int `toml:"lease-drift-percent"`

	RaftWorkers  int `toml:"raft-workers"`
	ApplyWorkers int `toml:"apply-workers"`
	TurnRegions  int `toml:"turn-regions"`

	MaxEntry              Size `toml:"max-entry-size"`
	MaxBatchEntry         Size `toml:"max-batch-entry-size"`
	MaxMessageEntries     Size `toml:"max-message-entries"`
	MaxInflightMsgs       int  `toml:"max-inflight-messages"`
	MaxInflightBytes      Size `toml:"max-inflight-bytes"`
	MaxUncommitted        Size `toml:"max-uncommitted-bytes"`
	MaxPendingPerRegion   int  `toml:"max-pending-proposals"`
	MaxStoreInflight      Size `toml:"max-store-inflight-bytes"`
	TransferMaxLagEntries int  `toml:"transfer-max-lag-entries"`

	LogGCInterval   Duration `toml:"log-gc-interval"`
	LogGCCountLimit uint64   `toml:"log-gc-count-limit"`
	LogGCSizeLimit  Size     `toml:"log-gc-size-limit"`
	LogGCThreshold  uint64   `toml:"log-gc-threshold"`
	// LogGCKeep is how long entries stay that every replica has: writes that clients send again are
	// looked for in them. The limits on count and size come first.
	LogGCKeep Duration `toml:"log-gc-keep"`

	SplitCheckInterval Duration `toml:"split-check-interval"`
	RegionMaxSize      Size     `toml:"region-max-size"`
	RegionSplitSize    Size     `toml:"region-split-size"`

	RegionHeartbeatInterval Duration `toml:"region-heartbeat-interval"`
	StoreHeartbeatInterval  Duration `toml:"store-heartbeat-interval"`
	SchedulerTimeout        Duration `toml:"scheduler-timeout"`
	StalePeerCheck          Duration `toml:"stale-peer-check"`
	PeerDownAfter           Duration `toml:"peer-down-after"`
	SnapshotGCInterval      Duration `toml:"snapshot-gc-interval"`
	SnapshotMaxAge          Duration `toml:"snapshot-max-age"`
	// HibernateAfter is how long nothing must have happened in a region before it sleeps: no clocks
	// and no heartbeats until something comes; 0 never.
	HibernateAfter Duration `toml:"hibernate-after"`
	// SlowSync is how long a sync of the raft log may take before it counts as slow; 0 never. A
	// store whose syncs are slow says so in its heartbeats and is given no more replicas and
	// leaders.
	SlowSync Duration `toml:"slow-sync"`
	// CompareInterval is how often the data of a region's replicas are compared with each other; 0
	// never.
	CompareInterval Duration `toml:"compare-interval"`
	// CompareRate bounds the bytes a second that a store reads for that; 0 does not.
	CompareRate Size `toml:"compare-max-bytes-per-sec"`
	// ExpirySweep is how often the regions that this store leads are searched for keys that have
	// expired, to give back their space; 0 never.
	ExpirySweep Duration `toml:"expiry-sweep-interval"`
	// Merge allows this store's leaders to begin merges of regions. Experimental.
	Merge bool `toml:"region-merge"`
	// AsyncCommit allows stores to choose the timestamps of commits, for transactions that ask for
	// it: asynchronous commit and commit in one phase. It is in force once every store has it.
	AsyncCommit bool `toml:"async-commit"`
}

// Default is what a tinykv-server does without any option.
func Default() *Config {
	return &Config{
		Scheduler:  []string{"127.0.0.1:2379"},
		Addr:       "127.0.0.1:20160",
		StatusAddr: "127.0.0.1:20180",
		DataDir:    "tinykv-data",
		Labels:     map[string]string{},
		Log:        log.DefaultConfig(),
		Server: Server{
			GRPCMaxMessage: 16 * MiB, GRPCMaxStreams: 4096, MaxConns: 4096, MaxConnsPerHost: 2048,
			MaxRequestBytes: 32 * MiB, MaxAnswerBytes: 64 * MiB,
			StallTimeout: Dur(30 * time.Second),
			MaxKeySize:   4 * KiB, MaxScanLimit: 10240,
			RequestTimeout: Dur(20 * time.Second), ShutdownTimeout: Dur(10 * time.Second),
			SlowLog:           Dur(time.Second),
			SnapshotSendLimit: 4, SnapshotReceiveLimit: 4, SnapshotTimeout: Dur(5 * time.Minute),
			SnapshotRate: 32 * MiB,
		},
		Storage: Storage{
			Raft: true, Engine: "pebble", ReserveSpace: 1 * GiB,
		},
		RaftLog: RaftLog{SegmentSize: 32 * MiB, Cache: 16 * MiB},
		Raftstore: Raftstore{
			TickInterval: Dur(50 * time.Millisecond), HeartbeatTicks: 2, ElectionTicks: 10,
			ReadMode: "lease", LeaseDrift: 20,
			RaftWorkers: 2, ApplyWorkers: 2, TurnRegions: 256,
			MaxEntry: 8 * MiB, MaxBatchEntry: 256 * KiB, MaxMessageEntries: 1 * MiB,
			MaxInflightMsgs: 256, MaxInflightBytes: 32 * MiB, MaxUncommitted: 64 * MiB,
			MaxPendingPerRegion: 8192, MaxStoreInflight: 256 * MiB, TransferMaxLagEntries: 128,
			LogGCInterval: Dur(3 * time.Second), LogGCCountLimit: 128000, LogGCSizeLimit: 72 * MiB,
			LogGCThreshold: 50, LogGCKeep: Dur(10 * time.Second),
			SplitCheckInterval: Dur(2 * time.Second), RegionMaxSize: 144 * MiB,
			RegionSplitSize:         96 * MiB,
			RegionHeartbeatInterval: Dur(10 * time.Second),
			StoreHeartbeatInterval:  Dur(10 * time.Second),
			SchedulerTimeout:        Dur(3 * time.Second), StalePeerCheck: Dur(5 * time.Minute),
			PeerDownAfter: Dur(5 * time.Minute), SnapshotGCInterval: Dur(1 * time.Minute),
			SnapshotMaxAge: Dur(4 * time.Hour), SlowSync: Dur(500 * time.Millisecond),
			HibernateAfter: Dur(time.Second), AsyncCommit: true,
			CompareInterval: Dur(24 * time.Hour), CompareRate: 16 * MiB,
			ExpirySweep: Dur(time.Minute),
		},
		GC: GC{LifeTime: Dur(time.Hour), Interval: Dur(10 * time.Minute), Rate: 4 * MiB},
	}
}

// EnsureDefaults fills what follows from other options.
func (c *Config) EnsureDefaults() {
	if c.AdvertiseAddr == "" {
		c.AdvertiseAddr = c.Addr
	}
	if c.AdvertiseStatusAddr == "" {
		c.AdvertiseStatusAddr = c.StatusAddr
	}
}

// Validate reports every fault at once, each naming its option.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Storage.Raft && len(c.Scheduler) == 0 {
		bad("scheduler: at least one address of the placement service is needed")
	}
	for _, a := range c.Scheduler {
		if _, host, ok := strings.Cut(a, "://"); ok {
			a = strings.TrimSuffix(host, "/")
		}
		checkAddr(bad, "scheduler", a)
	}
	if _, err := security.ClientTLS(c.Scheduler, c.PlacementFiles()); err != nil {
		bad("scheduler: %v", err)
	}
	switch {
	case c.Security.TLS():
		if err := c.Security.Files().CheckServer(); err != nil {
			bad("security: %v", err)
		}
	case len(c.Security.CertAllowedCN) > 0 || c.Security.AllowPlain || !c.Security.Names().Empty():
		bad("security: cert-allowed-cn, cert-node-cn, cert-admin-cn, cert-client-cn and " +
			"allow-plain need a certificate (cert-path)")
	}
	if err := c.Security.Names().Validate(); err != nil {
		bad("security: %w", err)
	}
	checkAddr(bad, "addr", c.Addr)
	if c.AdvertiseAddr != "" {
		checkAddr(bad, "advertise-addr", c.AdvertiseAddr)
	}
	if c.StatusAddr != "" {
		checkAddr(bad, "status-addr", c.StatusAddr)
	}
	c.validateDoors(bad)
	if c.DataDir == "" {
		bad("data-dir: must not be empty")
	}
	if err := c.ValidateValues(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// validateDoors checks who can reach this store, and what it tells others about where it is.
func (c *Config) validateDoors(bad func(string, ...any)) {
	for _, a := range []struct{ option, listen, told string }{
		{"addr", c.Addr, orElse(c.AdvertiseAddr, c.Addr)},
		{"status-addr", c.StatusAddr, orElse(c.AdvertiseStatusAddr, c.StatusAddr)},
	} {
		if a.listen == "" {
			continue // no status port
		}
		secure := c.Security.TLS() && !c.Security.AllowPlain
		if err := security.CheckListen(a.option, a.listen, secure,
			c.Security.Insecure); err != nil {
			bad("%v", err)
		}
		if security.AnyHost(a.told) {
			bad("advertise-%s: other machines cannot reach %q; give the host they can", a.option,
				a.told)
		}
	}
}

// InTheClear lists the addresses that other machines reach without TLS.
func (c *Config) InTheClear() []string {
	var out []string
	for _, a := range []string{c.Addr, c.StatusAddr} {
		if c.Security.TLS() && !c.Security.AllowPlain {
			break
		}
		if a != "" && !security.LoopbackHost(a) {
			out = append(out, a)
		}
	}
	return out
}

func (s *Server) validate(bad func(string, ...any), maxEntry Size) {
	if s.GRPCMaxMessage < maxEntry+maxEntry/4 {
		bad(
			"server.grpc-max-message: %s is too small for raftstore.max-entry-size %s (a quarter more is needed)",
			s.GRPCMaxMessage, maxEntry)
	}
	if s.GRPCMaxStreams == 0 || s.MaxKeySize <= 0 || s.MaxKeySize > 60*KiB || s.MaxScanLimit == 0 {
		bad(
			"server: grpc-max-streams and max-scan-limit must be positive, max-key-size within 1B and 60KiB")
	}
	if s.MaxConns < 16 || s.MaxConnsPerHost <= 0 {
		bad("server: max-connections must be at least 16, max-connections-per-host positive")
	}
	if s.MaxRequestBytes < 2*s.GRPCMaxMessage || s.StallTimeout.Duration <= 0 {
		bad(
			"server: max-request-bytes must be at least twice grpc-max-message, stall-timeout positive")
	}
	if s.MaxAnswerBytes < 4*s.GRPCMaxMessage {
		bad("server.max-answer-bytes: %s is less than four times grpc-max-message",
			s.MaxAnswerBytes)
	}
	if s.RequestTimeout.Duration <= 0 || s.ShutdownTimeout.Duration <= 0 ||
		s.SnapshotTimeout.Duration <= 0 {
		bad("server: timeouts must be positive")
	}
	if s.SlowLog.Duration < 0 {
		bad("server.slow-log-threshold: %s is negative; 0 means never", s.SlowLog)
	}
	if s.SnapshotRate < 0 {
		bad("server.snap-io-max-bytes-per-sec: %s is negative", s.SnapshotRate)
	}
	if s.SnapshotSendLimit <= 0 || s.SnapshotReceiveLimit <= 0 {
		bad("server: snapshot limits must be positive")
	}
}

func (g *GC) validate(bad func(string, ...any)) {
	if g.LifeTime.Duration < 2*time.Minute || g.Interval.Duration < 0 || g.Rate < 64*KiB {
		bad(
			"gc: life-time must be at least 2m, interval not negative, max-bytes-per-sec at least 64KiB")
	}
}

func (s *Storage) validate(bad func(string, ...any)) {
	if s.Engine != "badger" && s.Engine != "pebble" {
		bad("storage.engine: %q is neither \"badger\" nor \"pebble\"", s.Engine)
	}
	s.validateSizes(bad)
}

func (r *Raftstore) validate(bad func(string, ...any)) {
	if r.TickInterval.Duration < time.Millisecond {
		bad("raftstore.tick-interval: %s is below 1ms", r.TickInterval)
	}
	if r.HeartbeatTicks <= 0 || r.ElectionTicks <= r.HeartbeatTicks+1 {
		bad(
			"raftstore: election-ticks (%d) must exceed heartbeat-ticks (%d) by more than one, and both be positive",
			r.ElectionTicks, r.HeartbeatTicks)
	}
	if r.ReadMode != "lease" && r.ReadMode != "read-index" {
		bad("raftstore.read-mode: %q is neither \"lease\" nor \"read-index\"", r.ReadMode)
	}
	if r.LeaseDrift < 0 || r.LeaseDrift > 90 {
		bad("raftstore.lease-drift-percent: %d is not within 0 and 90", r.LeaseDrift)
	}
	if r.RaftWorkers <= 0 || r.ApplyWorkers <= 0 || r.TurnRegions <= 0 {
		bad("raftstore: raft-workers, apply-workers and turn-regions must be positive")
	}
	if r.MaxEntry <= 0 || r.MaxBatchEntry <= 0 || r.MaxMessageEntries <= 0 ||
		r.MaxInflightMsgs <= 0 ||
		r.MaxInflightBytes <= 0 || r.MaxUncommitted < r.MaxEntry || r.MaxPendingPerRegion <= 0 ||
		r.MaxStoreInflight <= 0 {
		bad(
			"raftstore: sizes and limits must be positive, max-uncommitted-bytes at least max-entry-size")
	}
	if r.RegionSplitSize <= 0 || r.RegionMaxSize < r.RegionSplitSize {
		bad(
			"raftstore: region-max-size (%s) must be at least region-split-size (%s), both positive",
			r.RegionMaxSize, r.RegionSplitSize)
	}
	for _, d := range []struct {
		name string
		d    Duration
	}{
		{"log-gc-interval", r.LogGCInterval}, {"log-gc-keep", r.LogGCKeep},
		{"split-check-interval", r.SplitCheckInterval},
		{"region-heartbeat-interval", r.RegionHeartbeatInterval},
		{"store-heartbeat-interval", r.StoreHeartbeatInterval},
		{"scheduler-timeout", r.SchedulerTimeout}, {"stale-peer-check", r.StalePeerCheck},
		{"peer-down-after", r.PeerDownAfter}, {"snapshot-gc-interval", r.SnapshotGCInterval},
		{"snapshot-max-age", r.SnapshotMaxAge},
	} {
		if d.d.Duration <= 0 {
			bad("raftstore.%s: %s is not positive", d.name, d.d)
		}
	}
	if r.HibernateAfter.Duration < 0 {
		bad("raftstore.hibernate-after: %s is negative; 0 means never", r.HibernateAfter)
	}
	if r.SlowSync.Duration < 0 {
		bad("raftstore.slow-sync: %s is negative; 0 means never", r.SlowSync)
	}
	if c := r.CompareInterval.Duration; c < 0 || c > 0 && c < time.Second || r.CompareRate < 0 {
		bad(
			"raftstore: compare-interval (%s) must be at least 1s, or 0 for never, and compare-max-bytes-per-sec not negative",
			r.CompareInterval)
	}
	if e := r.ExpirySweep.Duration; e < 0 || e > 0 && e < 10*time.Millisecond {
		bad("raftstore.expiry-sweep-interval: %s must be at least 10ms, or 0 for never",
			r.ExpirySweep)
	}
	if r.LogGCCountLimit == 0 || r.LogGCSizeLimit <= 0 {
		bad("raftstore: log-gc limits must be positive")
	}
}

// ElectionTimeout is the smallest election timeout of this configuration.
func (r *Raftstore) ElectionTimeout() time.Duration {
	return time.Duration(r.ElectionTicks) * r.TickInterval.Duration
}

// LeaseDuration is how long a leader may serve reads after sending a heartbeat round that a quorum
// answered. One tick is given up because a follower's first tick may come right after the
// heartbeat.
func (r *Raftstore) LeaseDuration() time.Duration {
	d := time.Duration(r.ElectionTicks-1) * r.TickInterval.Duration
	return d * time.Duration(100-r.LeaseDrift) / 100
}

func checkAddr(bad func(string, ...any), name, addr string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		bad("%s: %q is not host:port", name, addr)
		return
	}
	if _, err := net.LookupPort("tcp", port); err != nil || strings.ContainsAny(host, " /") {
		bad("%s: %q is not host:port", name, addr)
	}
}

func anyHTTPS(addrs []string) bool {
	return slices.ContainsFunc(addrs, func(a string) bool {
		return strings.HasPrefix(a, "https://")
	})
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
