// Package cli turns the command line of tinykv-server into a configuration and runs the node.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/log"
	shared "github.com/tinykv/tinykv/pkg/cli"
	"github.com/tinykv/tinykv/pkg/descriptors"
	"github.com/tinykv/tinykv/pkg/goruntime"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// envPrefix begins the environment variables that override the file: TINYKV_DATA_DIR is --data-dir.
const envPrefix = "TINYKV_"

type options struct {
	set     *pflag.FlagSet
	file    string
	check   bool
	sample  bool
	version bool
	apply   map[string]func(*config.Config, string) error
}

// newOptions defines the flags. "pd", "pd-endpoints", "path" and "loglevel" are what users of TiKV
// and TinyKV type.
func newOptions() *options {
	o := &options{
		set:   pflag.NewFlagSet("tinykv-server", pflag.ContinueOnError),
		apply: map[string]func(*config.Config, string) error{},
	}
	o.set.SortFlags = false
	o.set.SetOutput(io.Discard)
	o.set.StringVarP(&o.file, "config", "C", "", "TOML configuration file")
	text := func(name, short, usage string, set func(*config.Config, string)) {
		o.set.StringP(name, short, "", usage)
		o.apply[name] = func(c *config.Config, v string) error { set(c, v); return nil }
	}
	alias := func(name, of string) {
		o.set.String(name, "", "same as --"+of)
		_ = o.set.MarkHidden(name) // exists: defined in the line above
		o.apply[name] = o.apply[of]
	}
	text("addr", "A", "address to listen on (default 127.0.0.1:20160)",
		func(c *config.Config, v string) { c.Addr = v })
	text("advertise-addr", "", "address told to others (default: addr)",
		func(c *config.Config, v string) { c.AdvertiseAddr = v })
	text("status-addr", "", "address of the status port, empty for none (default 127.0.0.1:20180)",
		func(c *config.Config, v string) { c.StatusAddr = v })
	text("advertise-status-addr", "", "status address told to others (default: status-addr)",
		func(c *config.Config, v string) { c.AdvertiseStatusAddr = v })
	text("scheduler", "",
		"addresses of the placement service, [https://]host:port[,...] (default 127.0.0.1:2379)",
		func(c *config.Config, v string) { c.Scheduler = splitList(v) })
	alias("pd", "scheduler")
	alias("pd-endpoints", "scheduler")
	o.set.Uint64("cluster-id", 0,
		"refuse a placement service of any other cluster (default: any, until the store has joined one)")
	o.apply["cluster-id"] = func(c *config.Config, v string) (err error) {
		c.ClusterID, err = strconv.ParseUint(v, 10, 64)
		return err
	}
	text("data-dir", "s", "data directory (default tinykv-data)", func(c *config.Config, v string) {
		c.DataDir = v
	})
	alias("path", "data-dir")
	alias("store", "data-dir")
	text("engine", "", "storage engine of a new data directory: badger or pebble",
		func(c *config.Config, v string) { c.Storage.Engine = v })
	text("ca", "", "file of the CA certificates for a placement service with https",
		func(c *config.Config, v string) { c.Security.CAPath = v })
	alias("cacert", "ca")
	text("cert", "", "file of the certificate shown to it", func(c *config.Config, v string) {
		c.Security.CertPath = v
	})
	text("key", "", "file of the certificate's private key", func(c *config.Config, v string) { c.Security.KeyPath = v })
	o.set.Bool("insecure", false, "accept that other machines are served without TLS")
	o.apply["insecure"] = func(c *config.Config, v string) (err error) {
		c.Security.Insecure, err = strconv.ParseBool(v)
		return err
	}
	text("log-level", "L", "debug, info, warn, error or fatal (default info)", func(c *config.Config, v string) { c.Log.Level = v })
	alias("loglevel", "log-level")
	text("log-file", "f", "log file (default standard error)", func(c *config.Config, v string) { c.Log.File.Filename = v })
	text("log-format", "", "text or json (default text)", func(c *config.Config, v string) { c.Log.Format = v })
	o.set.String("labels", "", "labels of this store: key=value[,key=value]")
	o.apply["labels"] = setLabels
	o.set.String("capacity", "", "size that the store reports, e.g. 100GiB (default: the disk's)")
	o.apply["capacity"] = func(c *config.Config, v string) error { return c.Storage.Capacity.UnmarshalText([]byte(v)) }
	o.set.String("memory", "", "memory for blocks and memtables, e.g. 2GiB (default: a quarter of what there is, at most 384MiB)")
	o.apply["memory"] = func(c *config.Config, v string) error { return c.Storage.Memory.UnmarshalText([]byte(v)) }
	o.set.BoolVar(&o.check, "config-check", false, "check the configuration and exit")
	o.set.BoolVar(&o.sample, "print-sample-config", false, "print a configuration file with all defaults and exit")
	o.set.BoolVarP(&o.version, "version", "V", false, "print the version and exit")
	return o
}

func splitList(v string) []string {
	var out []string
	for _, p := range strings.Split(v, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

func setLabels(c *config.Config, v string) error {
	for _, pair := range strings.Split(v, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is not key=value", pair)
		}
		c.Labels[key] = value
	}
	return nil
}

// build makes the configuration: defaults, file, environment, flags.
func (o *options) build(env func(string) (string, bool)) (*config.Config, error) {
	cfg := config.Default()
	if o.file != "" {
		if err := cfg.LoadFile(o.file); err != nil {
			return nil, err
		}
	}
	var errs []error
	o.set.VisitAll(func(f *pflag.Flag) {
		set := o.apply[f.Name]
		if set == nil {
			return
		}
		if f.Changed {
			if err := set(cfg, f.Value.String()); err != nil {
				errs = append(errs, fmt.Errorf("--%s: %w", f.Name, err))
			}
			return
		}
		name := envName(f.Name)
		if v, ok := env(name); ok && !f.Hidden {
			if err := set(cfg, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	// Flags win over the environment, whatever the order of aliases: apply given ones again, last.
	o.set.Visit(func(f *pflag.Flag) {
		if set := o.apply[f.Name]; set != nil {
			_ = set(cfg, f.Value.String()) // reported above
		}
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	cfg.EnsureDefaults()
	return cfg, o.placed(cfg.Validate(), env)
}

// placed adds to faults of options that the file sets where it does.
func (o *options) placed(err error, env func(string) (string, bool)) error {
	if err == nil || o.file == "" {
		return err
	}
	text, readErr := os.ReadFile(o.file)
	if readErr != nil {
		return err
	}
	return tomlfile.Place(err, o.file, string(text), func(key string) bool {
		f := o.set.Lookup(key[strings.LastIndexByte(key, '.')+1:])
		if f == nil {
			return false
		}
		_, inEnv := env(envName(f.Name))
		return f.Changed || inEnv
	})
}

// envName is the environment variable of a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Main runs the command and returns the exit code: 0 after SIGTERM or SIGINT, 1 on failure, 2 on a
// wrong command line or configuration.
func Main(args []string, stdout, stderr io.Writer) int {
	o := newOptions()
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "tinykv-server: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return code
	}
	if err := shared.Parse(o.set, args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			fmt.Fprintf(stdout,
				"Usage: tinykv-server [flags]\n\n%s\nEvery flag can be given as an environment variable, e.g. %sDATA_DIR.\n",
				o.set.FlagUsages(), envPrefix)
			return shared.ExitOK
		}
		return fail(shared.ExitUsage, err)
	}
	switch {
	case o.version:
		fmt.Fprint(stdout, shared.VersionText("tinykv-server"))
		return shared.ExitOK
	case o.sample:
		fmt.Fprint(stdout, config.Sample())
		return shared.ExitOK
	}
	cfg, err := o.build(os.LookupEnv)
	if err != nil {
		return fail(shared.ExitUsage, err)
	}
	if o.check {
		fmt.Fprintln(stdout, "configuration is fine")
		return shared.ExitOK
	}
	logger, level, closeLog, err := log.New(cfg.Log, cfg.Security.RedactKeys)
	if err != nil {
		return fail(shared.ExitUsage, err)
	}
	defer closeLog()
	if cfg.Security.RedactKeys {
		stderr = redact.New().Writer(stderr)
	}
	for _, wide := range security.Wide(cfg.DataDir, cfg.Security.KeyPath) {
		logger.Warn("a private path is open to others", zap.String("path", wide))
	}
	if err := run(cfg, logger, level); err != nil {
		return fail(shared.ExitFail, err)
	}
	return shared.ExitOK
}

// run serves until a signal or a failure.
func run(cfg *config.Config, logger *zap.Logger, level zap.AtomicLevel) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer goruntime.SetHeapFloor(goruntime.ServerHeap).Stop()
	logger.Info("prepared the runtime", zap.Bool("calm-monitor", goruntime.MonitorIsCalm()),
		zap.Int("heap-floor-bytes", goruntime.ServerHeap))
	files, err := descriptors.Prepare()
	if err != nil {
		return err
	}
	n := node.New(cfg, shared.Version, logger)
	n.SetFiles(files)
	n.SetLogLevel(level)
	started := make(chan error, 1)
	// Ends with Start, or with the process: what failed meanwhile may keep Start from returning.
	go func() { started <- n.Start(ctx) }()
	select {
	case err = <-started:
		if err != nil && ctx.Err() != nil {
			return nil // stopped by a signal while it waited
		}
		if err != nil {
			return err
		}
	case err = <-n.Failed():
		logger.Error("stopping after a failure", zap.Error(err))
		return err
	}
	tell(logger, shared.Ready)
	select {
	case <-ctx.Done():
		logger.Info("stopping")
		tell(logger, shared.Stopping)
	case err = <-n.Failed():
		// What failed must not be asked to hand anything over: end at once, others take over.
		logger.Error("stopping after a failure", zap.Error(err))
		return err
	}
	stop() // a second signal ends the process at once
	n.Stop()
	logger.Info("stopped")
	return err
}

// tell reports to the service manager. A report that is not sent is logged only: the store serves
// without it.
func tell(logger *zap.Logger, report func() error) {
	if err := report(); err != nil {
		logger.Warn("could not notify the service manager", zap.Error(err))
	}
}
