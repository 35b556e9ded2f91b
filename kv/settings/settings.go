// Package settings changes options of a store while it runs. It holds the configuration that is in
// force and knows for each option that can change how it is put into force; the other options need
// a start of the store. It writes no file: a change lasts until the store's next start.
//
// Set validates the whole configuration with the changed option before anything is changed, so
// options that bound each other stay consistent.
package settings

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tinykv/tinykv/kv/config"
)

// ErrUnknown is returned by Set for a name that is no option, ErrNeedsRestart for one that only the
// configuration file and a start of the store change.
var (
	ErrUnknown      = errors.New("settings: no such setting")
	ErrNeedsRestart = errors.New("settings: a change needs a restart of the store")
)

// Adjustable are the settings of a replicated store that can change while it runs.
var Adjustable = []string{
	"log.level", "server.slow-log-threshold", "raftstore.max-store-inflight-bytes",
	"raftstore.region-max-size", "raftstore.region-split-size",
	"raftstore.compare-max-bytes-per-sec",
}

// Setting is an option with its value in force and the one of a store without any configuration.
type Setting struct {
	// Name has the section, as in raftstore.region-max-size.
	Name, Value, Default string
	// Before is the value before a change, from Set only.
	Before       string
	NeedsRestart bool
}

// Live is the configuration in force of a running store. Safe for concurrent use, once On has been
// called for all options that can change.
type Live struct {
	logger *zap.Logger
	apply  map[string]func(*config.Config)
	mu     struct {
		sync.Mutex
		cfg config.Config // replaced as a whole; never changed in place
	}
}

// New begins with the configuration that the store starts with, which it copies.
func New(cfg *config.Config, logger *zap.Logger) *Live {
	l := &Live{logger: logger, apply: map[string]func(*config.Config){}}
	l.mu.cfg = *cfg
	return l
}

// On has an option change while the store runs: apply puts a validated configuration's value into
// force. It must not wait for anything and must not use Live. To be called before Set. It panics
// for an option that is not in Adjustable.
func (l *Live) On(name string, apply func(*config.Config)) {
	if !slices.Contains(Adjustable, name) {
		panic("settings: " + name + " is not in Adjustable")
	}
	l.apply[name] = apply
}

// Config is a copy of the configuration in force.
func (l *Live) Config() *config.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	cfg := l.mu.cfg
	return &cfg
}

// List has all settings, in the order of the configuration file.
func (l *Live) List() []Setting {
	now, usual := l.Config().Values(), config.Default().Values()
	out := make([]Setting, len(now))
	for i, v := range now { // both are in the order of the type's fields
		out[i] = Setting{
			Name: v.Name, Value: v.Text, Default: usual[i].Text,
			NeedsRestart: l.apply[v.Name] == nil,
		}
	}
	return out
}

// Set changes a setting until the store starts again, and logs that. The name may be without its
// section where that is unambiguous. A value that does not fit changes nothing.
func (l *Live) Set(name, value string) (Setting, error) {
	s, err := l.find(name)
	if err != nil {
		return s, err
	}
	if s.NeedsRestart {
		return s, fmt.Errorf("%w: %s", ErrNeedsRestart, s.Name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.mu.cfg
	s.Before = text(&next, s.Name)
	if err := next.SetValue(s.Name, value); err != nil {
		return s, err
	}
	if err := next.ValidateValues(); err != nil {
		return s, err
	}
	s.Value = text(&next, s.Name)
	// The level that lets more through decides whether a change of the level is logged.
	line := l.logger.Check(zapcore.InfoLevel, "changed a setting until the next start")
	l.apply[s.Name](&next)
	l.mu.cfg = next
	if line == nil {
		line = l.logger.Check(zapcore.InfoLevel, "changed a setting until the next start")
	}
	if line != nil {
		line.Write(zap.String("setting", s.Name), zap.String("from", s.Before),
			zap.String("to", s.Value))
	}
	return s, nil
}

func (l *Live) find(name string) (Setting, error) {
	var found []Setting
	for _, s := range l.List() {
		if s.Name == name {
			return s, nil
		}
		if strings.HasSuffix(s.Name, "."+name) {
			found = append(found, s)
		}
	}
	if len(found) > 1 {
		return Setting{}, fmt.Errorf("settings: %q is in several sections, as %s", name,
			found[0].Name)
	}
	if len(found) == 0 {
		return Setting{}, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	return found[0], nil
}

func text(c *config.Config, name string) string {
	for _, v := range c.Values() {
		if v.Name == name {
			return v.Text
		}
	}
	return ""
}
