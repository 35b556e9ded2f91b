package config

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// Duration is a time.Duration written as text ("30s") in TOML and JSON.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"500ms\", \"30s\" or \"1h\"", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// D returns the standard type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// Config is everything a member is started with.
type Config struct {
	Name                string `toml:"name"`
	DataDir             string `toml:"data-dir"`
	ClientUrls          string `toml:"client-urls"`
	AdvertiseClientUrls string `toml:"advertise-client-urls"`
	PeerUrls            string `toml:"peer-urls"`
	AdvertisePeerUrls   string `toml:"advertise-peer-urls"`
	InitialCluster      string `toml:"initial-cluster"`
	InitialClusterState string `toml:"initial-cluster-state"`
	InitialClusterToken string `toml:"initial-cluster-token"`
	Join                string `toml:"join"`
	ForceNewCluster     bool   `toml:"force-new-cluster"`
	// Recover is a file of tinyctl recover scheduler: an empty data directory takes over the
	// cluster that it describes instead of beginning a new one.
	Recover string `toml:"recover"`
	// Mode is what a new cluster holds: "raw" or "txn". One that exists keeps its mode.
	Mode string `toml:"mode"`

	// Lease is how long a leadership is valid without renewal, in seconds as TinyKV has it.
	// LeaseTTL is the same, finer, and wins unless it is 0.
	Lease    int64    `toml:"lease"`
	LeaseTTL Duration `toml:"lease-ttl"`

	TSOSaveInterval         Duration `toml:"tso-save-interval"`
	QuotaBackendBytes       int64    `toml:"quota-backend-bytes"`
	AutoCompactionMode      string   `toml:"auto-compaction-mode"`
	AutoCompactionRetention string   `toml:"auto-compaction-retention"`
	TickInterval            Duration `toml:"tick-interval"`
	ElectionInterval        Duration `toml:"election-interval"`
	// EnableGRPCGateway keeps TinyKV's files readable. etcd's gateway is never served: it has no
	// checks.
	EnableGRPCGateway bool `toml:"enable-grpc-gateway"`

	// MaxConnections bounds the connections to the client port, MaxConnectionsPerHost those from
	// one address; more are refused.
	MaxConnections        int `toml:"max-connections"`
	MaxConnectionsPerHost int `toml:"max-connections-per-host"`
	// MaxRequestBytes bounds what the calls by gRPC hold, in sum over all connections.
	MaxRequestBytes int64 `toml:"max-request-bytes"`

	// VerifyStores calls new stores back at the address that they tell before they get regions.
	VerifyStores bool `toml:"verify-stores"`

	LogLevel string `toml:"log-level"` // as in [log] level
	LogFile  string `toml:"log-file"`  // as in [log.file] filename

	Log         log.Config  `toml:"log"`
	Schedule    Schedule    `toml:"schedule"`
	Replication Replication `toml:"replication"`
	PDServer    PDServer    `toml:"pd-server"`
	Security    Security    `toml:"security"`
	Storage     Storage     `toml:"storage"`
	API         API         `toml:"api"`

	// Instance, if set, is sent with every HTTP answer: it tells the starter of this process that
	// it is this one that answers.
	Instance string `toml:"-"`
	// Version is the release of this program; "" if it is not known.
	Version string `toml:"-"`

	// UnsafeNoFsync is for tests: losing power loses acknowledged writes.
	UnsafeNoFsync bool `toml:"-"`
}

// Storage chooses where the hard state is kept.
type Storage struct {
	// Backend is "embedded" (etcd inside this process) or "etcd" (a cluster run by someone else).
	Backend   string   `toml:"backend"`
	Endpoints []string `toml:"endpoints"`
}

// API configures the HTTP interface.
type API struct {
	// Token, if set, must be sent as "Authorization: Bearer <token>" with every change.
	Token string `toml:"token"`
	// AllowedHosts are further names of this server that may stand in a request's Host header.
	AllowedHosts []string `toml:"allowed-hosts"`
	// AllowedOrigins are the origins of web pages, beside this server's own, that may use the API.
	AllowedOrigins []string `toml:"allowed-origins"`
}

// Replication is how many replicas a region gets and how they are spread.
type Replication struct {
	MaxReplicas    int      `toml:"max-replicas" json:"max-replicas"`
	LocationLabels []string `toml:"location-labels" json:"location-labels"`
}

// PDServer keeps a section of TinyKV's file readable.
type PDServer struct {
	MaxResetTSGap Duration `toml:"max-reset-ts-gap"`
}

// Security names the TLS files.
type Security struct {
	// Insecure accepts that other machines are served without TLS.
	Insecure bool `toml:"insecure"`

	CACertPath string `toml:"cacert-path"`
	CertPath   string `toml:"cert-path"`
	KeyPath    string `toml:"key-path"`
	// CertAllowedCN are the names of certificates that may connect to the client port; empty allows
	// all of the authorities. Those of this cluster's servers may in any case.
	CertAllowedCN []string `toml:"cert-allowed-cn"`
	// CertNodeCN, CertAdminCN and CertClientCN give roles by common names to certificates without
	// a role URI. Once one is set, a certificate with neither is refused.
	CertNodeCN   []string `toml:"cert-node-cn"`
	CertAdminCN  []string `toml:"cert-admin-cn"`
	CertClientCN []string `toml:"cert-client-cn"`
	// AllowPlain serves connections without TLS on the client port too: for the time in which a
	// cluster changes to TLS.
	AllowPlain bool `toml:"allow-plain"`
	// RedactKeys replaces keys in the log by hashes under a secret of the process; answers to
	// clients stay as they are.
	RedactKeys bool `toml:"redact-keys"`
}

// Files are the paths.
func (s *Security) Files() security.Files {
	return security.Files{CA: s.CACertPath, Cert: s.CertPath, Key: s.KeyPath}
}

// Names are the roles by common names.
func (s *Security) Names() *security.Names {
	return &security.Names{Node: s.CertNodeCN, Admin: s.CertAdminCN, Client: s.CertClientCN}
}

// Default returns a configuration that works with no flag at all.
func Default() *Config {
	return &Config{
		ClientUrls:              "http://127.0.0.1:2379",
		PeerUrls:                "http://127.0.0.1:2380",
		InitialClusterState:     "new",
		InitialClusterToken:     "tinykv-cluster",
		Lease:                   3,
		LeaseTTL:                Duration(1500 * time.Millisecond),
		TSOSaveInterval:         Duration(3 * time.Second),
		QuotaBackendBytes:       1 << 30,
		AutoCompactionMode:      "periodic",
		AutoCompactionRetention: "1h",
		TickInterval:            Duration(200 * time.Millisecond),
		ElectionInterval:        Duration(time.Second),
		MaxConnections:          8192,
		MaxConnectionsPerHost:   4096,
		MaxRequestBytes:         DefaultRequestBytes,
		VerifyStores:            true,
		Log:                     log.DefaultConfig(),
		Schedule:                DefaultSchedule(),
		Replication:             Replication{MaxReplicas: 3},
		Mode:                    string(clustermode.Raw),
		PDServer:                PDServer{MaxResetTSGap: Duration(24 * time.Hour)},
		Storage:                 Storage{Backend: "embedded"},
	}
}

// LoadFile reads a TOML file over what is already in c. Unknown keys are errors.
func (c *Config) LoadFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	if err := c.Load(string(data)); err != nil {
		return fmt.Errorf("config file %s, %w", path, err)
	}
	return nil
}

// Load reads TOML over what is already in c.
func (c *Config) Load(data string) error {
	// The table of scheduler arguments is free-form.
	return tomlfile.Decode(data, c, func(key string) bool {
		return strings.HasPrefix(key, "schedule.schedulers.")
	})
}

// Adjust fills what depends on other values. Call it once after the file and the flags.
func (c *Config) Adjust() error {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name: not given and the host name is unknown: %w", err)
		}
		c.Name = "pd-" + host
	}
	if c.DataDir == "" {
		c.DataDir = "default." + c.Name
	}
	if c.AdvertiseClientUrls == "" {
		c.AdvertiseClientUrls = c.ClientUrls
	}
	if c.AdvertisePeerUrls == "" {
		c.AdvertisePeerUrls = c.PeerUrls
	}
	if c.InitialCluster == "" {
		parts := strings.Split(c.AdvertisePeerUrls, ",")
		for i := range parts {
			parts[i] = c.Name + "=" + parts[i]
		}
		c.InitialCluster = strings.Join(parts, ",")
	}
	if c.LogLevel != "" {
		c.Log.Level = c.LogLevel
	}
	if c.LogFile != "" {
		c.Log.File.Filename = c.LogFile
	}
	return nil
}

// TTL returns how long a leadership is valid without renewal.
func (c *Config) TTL() time.Duration {
	if c.LeaseTTL > 0 {
		return c.LeaseTTL.D()
	}
	return time.Duration(c.Lease) * time.Second
}

const (
	// DefaultRequestBytes is room for 16 of the largest requests, or for 16,384 calls.
	DefaultRequestBytes = 256 << 20
	// minRequestBytes is room for two of the largest requests.
	minRequestBytes = 32 << 20
)

// Validate reports every fault at once. Call it after Adjust.
func (c *Config) Validate() error {
	errs := []error{
		c.Log.Validate(), c.Schedule.Validate(), c.validateURLs(), c.validateInitialCluster(),
		c.validateDoors(),
	}
	if c.MaxConnections < 8 {
		errs = append(errs, fmt.Errorf("max-connections: %d is below 8", c.MaxConnections))
	}
	if c.MaxConnectionsPerHost < 1 {
		errs = append(errs,
			fmt.Errorf("max-connections-per-host: %d is not positive", c.MaxConnectionsPerHost))
	}
	if c.MaxRequestBytes < minRequestBytes {
		errs = append(errs, fmt.Errorf("max-request-bytes: %d is below %d", c.MaxRequestBytes,
			minRequestBytes))
	}
	if _, err := clustermode.Parse(c.Mode); err != nil {
		errs = append(errs, fmt.Errorf("mode: %w", err))
	}
	if c.Replication.MaxReplicas < 1 || c.Replication.MaxReplicas > 15 {
		errs = append(errs,
			fmt.Errorf("replication.max-replicas: %d is not between 1 and 15",
				c.Replication.MaxReplicas))
	}
	if c.TTL() < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("lease: %v is shorter than 100ms", c.TTL()))
	}
	if c.TickInterval <= 0 || c.ElectionInterval < 5*c.TickInterval {
		errs = append(errs,
			fmt.Errorf("election-interval: %v is less than 5 times tick-interval %v",
				c.ElectionInterval.D(), c.TickInterval.D()))
	}
	switch c.Storage.Backend {
	case "embedded", "memory":
	case "etcd":
		if len(c.Storage.Endpoints) == 0 {
			errs = append(errs, errors.New("storage.endpoints: needed with backend \"etcd\""))
		}
	default:
		errs = append(errs,
			fmt.Errorf("storage.backend: %q is not \"embedded\" or \"etcd\"", c.Storage.Backend))
	}
	if c.InitialClusterState != "new" && c.InitialClusterState != "existing" {
		errs = append(errs,
			fmt.Errorf("initial-cluster-state: %q is not \"new\" or \"existing\"",
				c.InitialClusterState))
	}
	if f := c.Log.File.Filename; f != "" && inside(f, c.DataDir) {
		errs = append(errs,
			fmt.Errorf("log-file: %s lies inside the data directory %s", f, c.DataDir))
	}
	return errors.Join(errs...)
}

func inside(file, dir string) bool {
	f, err1 := filepath.Abs(file)
	d, err2 := filepath.Abs(dir)
	return err1 == nil && err2 == nil && strings.HasPrefix(f, d+string(filepath.Separator))
}

func (c *Config) validateURLs() error {
	var errs []error
	for _, u := range []struct{ key, urls string }{
		{"client-urls", c.ClientUrls},
		{"advertise-client-urls", c.AdvertiseClientUrls},
		{"peer-urls", c.PeerUrls},
		{"advertise-peer-urls", c.AdvertisePeerUrls},
	} {
		if _, err := ParseURLs(u.urls); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.key, err))
		}
	}
	return errors.Join(errs...)
}

// validateDoors checks who can reach this member, and what it tells others about where it is.
func (c *Config) validateDoors() error {
	var errs []error
	for _, u := range []struct {
		key, urls string
		listen    bool
	}{
		{"client-urls", c.ClientUrls, true},
		{"peer-urls", c.PeerUrls, true},
		{"advertise-client-urls", c.AdvertiseClientUrls, false},
		{"advertise-peer-urls", c.AdvertisePeerUrls, false},
	} {
		parsed, err := ParseURLs(u.urls)
		if err != nil {
			continue // validateURLs says so
		}
		for _, p := range parsed {
			secure := p.Scheme == "https"
			switch {
			case strings.HasPrefix(p.Scheme, "unix"):
			case u.listen:
				errs = append(errs,
					security.CheckListen(u.key, p.Host, secure, c.Security.Insecure))
			case security.AnyHost(p.Host):
				errs = append(errs,
					fmt.Errorf(
						"%s: nobody can connect to %s: give an address of this machine that the others "+
							"reach with --%s", u.key, p.Host, u.key))
			}
			if secure && (c.Security.CertPath == "" || c.Security.KeyPath == "") {
				errs = append(errs,
					fmt.Errorf("%s: %s needs a certificate: give --cert and --key", u.key,
						p.String()))
			}
		}
	}
	if names := c.Security.Names(); !names.Empty() && c.Security.CertPath == "" {
		errs = append(errs, errors.New(
			"security: cert-node-cn, cert-admin-cn and cert-client-cn need a certificate "+
				"(cert-path)"))
	}
	if err := c.Security.Names().Validate(); err != nil {
		errs = append(errs, fmt.Errorf("security: %w", err))
	}
	for _, o := range c.API.AllowedOrigins {
		if err := security.ValidOrigin(o); err != nil {
			errs = append(errs, fmt.Errorf("api.allowed-origins: %w", err))
		}
	}
	return errors.Join(errs...)
}

// InTheClear lists the addresses that other machines reach without TLS.
func (c *Config) InTheClear() []string {
	var out []string
	for _, urls := range []string{c.ClientUrls, c.PeerUrls} {
		parsed, _ := ParseURLs(urls) // Validate has checked them
		for _, u := range parsed {
			if u.Scheme == "http" && !security.LoopbackHost(u.Host) {
				out = append(out, u.Host)
			}
		}
	}
	return out
}

func (c *Config) validateInitialCluster() error {
	if c.Join != "" {
		return nil
	}
	names := map[string]bool{}
	var errs []error
	seen := map[string]string{}
	for part := range strings.SplitSeq(c.InitialCluster, ",") {
		name, u, ok := strings.Cut(part, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("initial-cluster: %q is not name=url", part))
			continue
		}
		names[name] = true
		if other, dup := seen[u]; dup {
			errs = append(errs,
				fmt.Errorf("initial-cluster: %s is the address of both %q and %q", u, other, name))
		}
		seen[u] = name
		if _, err := ParseURLs(u); err != nil {
			errs = append(errs, fmt.Errorf("initial-cluster: %w", err))
		}
	}
	if len(errs) == 0 && !names[c.Name] {
		errs = append(errs,
			fmt.Errorf("initial-cluster: %q does not name this member %q", c.InitialCluster,
				c.Name))
	}
	return errors.Join(errs...)
}

// EvenMembers tells whether the initial cluster has an even number of members, which tolerates no
// more failures than one member less.
func (c *Config) EvenMembers() bool { return c.Join == "" && c.members()%2 == 0 }

// Alone tells whether a new cluster begins with one member.
func (c *Config) Alone() bool { return c.Join == "" && c.members() == 1 }

// members counts the names in initial-cluster, each of which may have several URLs.
func (c *Config) members() int {
	names := map[string]bool{}
	for part := range strings.SplitSeq(c.InitialCluster, ",") {
		name, _, _ := strings.Cut(part, "=")
		names[name] = true
	}
	return len(names)
}

// ParseURLs splits and checks comma-separated URLs.
func ParseURLs(s string) ([]url.URL, error) {
	var out []url.URL
	for part := range strings.SplitSeq(s, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is not a URL", part)
		}
		if !slices.Contains([]string{"http", "https", "unix", "unixs"}, u.Scheme) || u.Host == "" {
			return nil, fmt.Errorf("%q is not a URL such as http://127.0.0.1:2379", part)
		}
		out = append(out, *u)
	}
	return out, nil
}
