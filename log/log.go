// Package log builds the zap logger of a process and names the fields that log lines of this
// project carry, so that one thing has one spelling everywhere.
//
// Loggers are injected, never global: a component receives a *zap.Logger and narrows it once with
// the fields of what it owns (log.RegionID, log.PeerID). Keys are logged as redact.Key writes them,
// in hex or, with redact-keys, as hashes; values never.
package log

import (
	"errors"
	"fmt"
	"io"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/tinykv/tinykv/pkg/redact"
)

// Config says where log lines go and what they look like.
type Config struct {
	Level  string     `toml:"level"`
	Format string     `toml:"format"`
	File   FileConfig `toml:"file"`
}

// FileConfig makes lines go to a rotated file instead of standard error.
type FileConfig struct {
	Filename   string `toml:"filename"`
	MaxSizeMB  int    `toml:"max-size"`
	MaxDays    int    `toml:"max-days"`
	MaxBackups int    `toml:"max-backups"`
}

// DefaultConfig is text at level info on standard error.
func DefaultConfig() Config {
	return Config{Level: "info", Format: "text", File: FileConfig{MaxSizeMB: 300}}
}

// Validate reports a level or format that New would refuse.
func (c *Config) Validate() error {
	var errs []error
	if _, err := ParseLevel(c.Level); err != nil {
		errs = append(errs, err)
	}
	if c.Format != "text" && c.Format != "json" {
		errs = append(errs, fmt.Errorf("log.format: %q is neither \"text\" nor \"json\"", c.Format))
	}
	if c.File.MaxSizeMB < 0 || c.File.MaxDays < 0 || c.File.MaxBackups < 0 {
		errs = append(errs, errors.New("log.file: sizes and counts must not be negative"))
	}
	return errors.Join(errs...)
}

// ParseLevel accepts zap's level names and "warning".
func ParseLevel(s string) (zapcore.Level, error) {
	if s == "warning" {
		s = "warn"
	}
	level, err := zapcore.ParseLevel(s)
	if err != nil {
		return 0, fmt.Errorf("log.level: %q is not one of debug, info, warn, error, fatal", s)
	}
	return level, nil
}

// New builds the logger. The returned level can be changed while the process runs; close flushes
// and closes the log file, if there is one. With redactKeys all keys in all lines are replaced by
// hashes, whose secret lives as long as the logger.
func New(
	cfg Config, redactKeys bool,
) (logger *zap.Logger, level zap.AtomicLevel, closeLog func(), err error) {
	if err := cfg.Validate(); err != nil {
		return nil, level, nil, err
	}
	parsed, err := ParseLevel(cfg.Level)
	if err != nil {
		return nil, level, nil, err
	}
	level = zap.NewAtomicLevelAt(parsed)
	var out io.Writer = os.Stderr
	closer := func() {}
	if cfg.File.Filename != "" {
		rotated := &lumberjack.Logger{
			Filename: cfg.File.Filename, MaxSize: cfg.File.MaxSizeMB,
			MaxAge: cfg.File.MaxDays, MaxBackups: cfg.File.MaxBackups,
		}
		// An unusable path must be an error at start, not lost lines later.
		if _, err := rotated.Write(nil); err != nil {
			return nil, level, nil, fmt.Errorf("log.file %s: %w", cfg.File.Filename, err)
		}
		out = rotated
		closer = func() { _ = rotated.Close() }
	}
	if redactKeys {
		out = redact.New().Writer(out)
	}
	core := zapcore.NewCore(encoder(cfg.Format), zapcore.AddSync(out), level)
	logger = zap.New(core, zap.AddCaller(), zap.AddStacktrace(zapcore.DPanicLevel))
	return logger, level, func() { _ = logger.Sync(); closer() }, nil
}

func encoder(format string) zapcore.Encoder {
	ec := zap.NewProductionEncoderConfig()
	ec.EncodeTime = zapcore.TimeEncoderOfLayout("2006/01/02 15:04:05.000 -07:00")
	ec.EncodeDuration = zapcore.StringDurationEncoder
	if format == "json" {
		return zapcore.NewJSONEncoder(ec)
	}
	ec.EncodeLevel = zapcore.CapitalLevelEncoder
	return zapcore.NewConsoleEncoder(ec)
}

// Fields with a fixed spelling.

// ClusterID is the field of a cluster.
func ClusterID(id uint64) zap.Field { return zap.Uint64("cluster-id", id) }

// StoreID is the field of a store.
func StoreID(id uint64) zap.Field { return zap.Uint64("store-id", id) }

// RegionID is the field of a region.
func RegionID(id uint64) zap.Field { return zap.Uint64("region-id", id) }

// PeerID is the field of a peer.
func PeerID(id uint64) zap.Field { return zap.Uint64("peer-id", id) }

// Term is the field of a raft term.
func Term(t uint64) zap.Field { return zap.Uint64("term", t) }

// Index is the field of an index of a raft log.
func Index(i uint64) zap.Field { return zap.Uint64("index", i) }

// Reason is the field of why something was done or refused.
func Reason(r string) zap.Field { return zap.String("reason", r) }

// Key logs a key under the given field name (start-key, end-key, key).
func Key(name string, key []byte) zap.Field { return zap.Stringer(name, redact.Key(key)) }
