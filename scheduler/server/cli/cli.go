// Package cli turns the command line of tinyscheduler into a configuration and runs the server.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/log"
	shared "github.com/tinykv/tinykv/pkg/cli"
	"github.com/tinykv/tinykv/pkg/descriptors"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/pkg/tomlfile"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
)

// instanceEnv is how a program that starts tinyscheduler gives it the name that it shows in its
// answers.
const instanceEnv = "TINYKV_INSTANCE"

type flags struct {
	set        *pflag.FlagSet
	configFile string
	check      bool
	sample     bool
	version    bool
	values     config.Config // only flags that were given are taken over
}

func newFlags() *flags {
	f := &flags{set: pflag.NewFlagSet("tinyscheduler", pflag.ContinueOnError)}
	s, v := f.set, &f.values
	s.SortFlags = false
	s.SetOutput(io.Discard)
	s.StringVar(&v.Name, "name", "", "name of this member (default pd-<hostname>)")
	s.StringVar(&v.DataDir, "data-dir", "", "data directory (default default.<name>)")
	s.StringVar(&v.ClientUrls, "client-urls", "",
		"URLs to serve clients on (default http://127.0.0.1:2379)")
	s.StringVar(&v.AdvertiseClientUrls, "advertise-client-urls", "",
		"URLs told to clients (default client-urls)")
	s.StringVar(&v.PeerUrls, "peer-urls", "",
		"URLs to serve other members on (default http://127.0.0.1:2380)")
	s.StringVar(&v.AdvertisePeerUrls, "advertise-peer-urls", "",
		"URLs told to other members (default peer-urls)")
	s.StringVar(&v.InitialCluster, "initial-cluster", "",
		"all members of a new cluster: name=peer-url,...")
	s.StringVar(&v.Join, "join", "", "client URLs of a running cluster to join")
	s.StringVar(&v.Mode, "mode", "",
		"what a new cluster holds: raw keys or txn (transactions) (default raw)")
	s.StringVar(&f.configFile, "config", "", "TOML configuration file")
	s.BoolVar(&f.check, "config-check", false, "check the configuration and exit")
	s.BoolVar(&f.sample, "print-sample-config", false,
		"print a configuration file with all defaults and exit")
	s.StringVarP(&v.LogLevel, "log-level", "L", "",
		"debug, info, warn, error or fatal (default info)")
	s.StringVar(&v.LogFile, "log-file", "", "log file (default standard error)")
	s.StringVar(&v.Log.Format, "log-format", "", "text or json (default text)")
	s.StringVar(&v.Security.CACertPath, "cacert", "", "file of the CA certificates for TLS")
	s.StringVar(&v.Security.CertPath, "cert", "", "file of the certificate for TLS")
	s.StringVar(&v.Security.KeyPath, "key", "", "file of the private key for TLS")
	s.BoolVar(&v.Security.Insecure, "insecure", false,
		"accept that other machines are served without TLS")
	s.BoolVar(&v.ForceNewCluster, "force-new-cluster", false,
		"start a new cluster of one member from this data directory")
	s.StringVar(&v.Recover, "recover", "",
		"file of tinyctl recover scheduler: take over a cluster whose placement service is lost")
	s.BoolVarP(&f.version, "version", "V", false, "print the version and exit")
	return f
}

// build makes the configuration: defaults, then the file, then flags.
func (f *flags) build() (*config.Config, error) {
	cfg := config.Default()
	if f.configFile != "" {
		if err := cfg.LoadFile(f.configFile); err != nil {
			return nil, err
		}
	}
	v := &f.values
	for name, copyFlag := range map[string]func(){
		"name":                  func() { cfg.Name = v.Name },
		"data-dir":              func() { cfg.DataDir = v.DataDir },
		"client-urls":           func() { cfg.ClientUrls = v.ClientUrls },
		"advertise-client-urls": func() { cfg.AdvertiseClientUrls = v.AdvertiseClientUrls },
		"peer-urls":             func() { cfg.PeerUrls = v.PeerUrls },
		"advertise-peer-urls":   func() { cfg.AdvertisePeerUrls = v.AdvertisePeerUrls },
		"initial-cluster":       func() { cfg.InitialCluster = v.InitialCluster },
		"join":                  func() { cfg.Join = v.Join },
		"mode":                  func() { cfg.Mode = v.Mode },
		"log-level":             func() { cfg.LogLevel = v.LogLevel },
		"log-file":              func() { cfg.LogFile = v.LogFile },
		"log-format":            func() { cfg.Log.Format = v.Log.Format },
		"cacert":                func() { cfg.Security.CACertPath = v.Security.CACertPath },
		"cert":                  func() { cfg.Security.CertPath = v.Security.CertPath },
		"key":                   func() { cfg.Security.KeyPath = v.Security.KeyPath },
		"insecure":              func() { cfg.Security.Insecure = v.Security.Insecure },
		"force-new-cluster":     func() { cfg.ForceNewCluster = v.ForceNewCluster },
		"recover":               func() { cfg.Recover = v.Recover },
	} {
		if f.set.Changed(name) {
			copyFlag()
		}
	}
	if err := cfg.Adjust(); err != nil {
		return nil, err
	}
	return cfg, f.placed(cfg.Validate())
}

// placed adds to faults of options that the file sets where it does.
func (f *flags) placed(err error) error {
	if err == nil || f.configFile == "" {
		return err
	}
	text, readErr := os.ReadFile(f.configFile)
	if readErr != nil {
		return err
	}
	return tomlfile.Place(err, f.configFile, string(text), func(key string) bool {
		return f.set.Changed(key[strings.LastIndexByte(key, '.')+1:])
	})
}

// Main runs the command and returns the exit code: 0 after SIGTERM or SIGINT, 1 on failure, 2 on a
// wrong command line or configuration.
func Main(args []string, stdout, stderr io.Writer) int {
	f := newFlags()
	if err := shared.Parse(f.set, args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			printf(stdout, "Usage: tinyscheduler [flags]\n\nThe placement service of TinyKV.\n\n%s",
				f.set.FlagUsages())
			return shared.ExitOK
		}
		return complain(stderr, err, shared.ExitUsage)
	}
	if f.version {
		printf(stdout, "%s", shared.VersionText("tinyscheduler"))
		return shared.ExitOK
	}
	if f.sample {
		sample, err := config.Sample()
		if err != nil {
			return complain(stderr, err, shared.ExitFail)
		}
		printf(stdout, "%s", sample)
		return shared.ExitOK
	}
	cfg, err := f.build()
	if err != nil {
		return complain(stderr, err, shared.ExitUsage)
	}
	cfg.Instance, cfg.Version = os.Getenv(instanceEnv), shared.Version
	if f.check {
		printf(stdout, "configuration is fine\n")
		return shared.ExitOK
	}
	private := []string{cfg.DataDir, cfg.Security.KeyPath}
	if cfg.API.Token != "" {
		private = append(private, f.configFile)
	}
	return run(cfg, private, stderr)
}

// run serves until a signal or a failure. private are files that only this user should read.
func run(cfg *config.Config, private []string, stderr io.Writer) int {
	logger, level, closeLog, err := log.New(cfg.Log, cfg.Security.RedactKeys)
	if err != nil {
		return complain(stderr, err, shared.ExitFail)
	}
	defer closeLog()
	if cfg.Security.RedactKeys {
		stderr = redact.New().Writer(stderr)
	}
	for _, wide := range security.Wide(private...) {
		logger.Warn("a private path is open to others", zap.String("path", wide))
	}
	files, err := descriptors.Prepare()
	if err != nil {
		return complain(stderr, err, shared.ExitFail)
	}
	cfg.MaxConnections = min(cfg.MaxConnections, files.Conns)
	s, err := server.New(cfg, logger)
	if err != nil {
		return complain(stderr, err, shared.ExitFail)
	}
	s.SetLogLevel(level)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt,
		syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	if err := s.Start(ctx); err != nil {
		if ctx.Err() != nil {
			return shared.ExitOK // told to stop while starting
		}
		return complain(stderr, err, shared.ExitFail)
	}
	defer s.Stop()
	tell(logger, shared.Ready)
	select {
	case <-ctx.Done():
		logger.Info("stopping")
		tell(logger, shared.Stopping)
		s.Stop()
		return shared.ExitOK
	case err := <-s.Failed():
		logger.Error("stopping after a failure", zap.Error(err))
		s.Stop()
		return complain(stderr, err, shared.ExitFail)
	}
}

// tell reports to the service manager. A report that is not sent is logged only: the member serves
// without it.
func tell(logger *zap.Logger, report func() error) {
	if err := report(); err != nil {
		logger.Warn("could not notify the service manager", zap.Error(err))
	}
}

// complain prints one clear line.
func complain(w io.Writer, err error, code int) int {
	printf(w, "tinyscheduler: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if code == shared.ExitUsage {
		printf(w, "Run 'tinyscheduler --help' for the flags.\n")
	}
	return code
}

// printf ignores errors: there is nowhere left to report them.
func printf(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
