package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/tinykv/tinykv/pkg/cli"
)

// LoadFile overlays the TOML file on c. An unknown key is an error that names the nearest known one.
func (c *Config) LoadFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	md, err := toml.Decode(string(data), c)
	if err != nil {
		var perr toml.ParseError
		if errors.As(err, &perr) {
			return fmt.Errorf("config file %s, line %d: %s", path, perr.Position.Line, perr.Message)
		}
		return fmt.Errorf("config file %s: %w", path, err)
	}
	var errs []error
	for _, key := range md.Undecoded() {
		name := key.String()
		if strings.HasPrefix(name, "labels.") || slices.Contains(retired, name) {
			continue
		}
		errs = append(errs, fmt.Errorf("config file %s: unknown key %q%s", path, name, cli.DidYouMean("%q", name, Keys())))
	}
	return errors.Join(errs...)
}

// retired are keys of earlier versions without effect; a file that has them is still read.
var retired = []string{"server.max-clock-skew"}

// Sample is a configuration file with every key and its default.
func Sample() string {
	var buf bytes.Buffer
	buf.WriteString("# tinykv-server configuration. Every key with its default; flags override the file.\n\n")
	if err := toml.NewEncoder(&buf).Encode(Default()); err != nil {
		panic(fmt.Sprintf("config: default does not encode: %v", err))
	}
	return buf.String()
}

// Keys lists the known keys, dotted, in order.
func Keys() []string {
	var m map[string]any
	if _, err := toml.Decode(Sample(), &m); err != nil {
		panic(fmt.Sprintf("config: sample does not decode: %v", err))
	}
	var out []string
	var walk func(prefix string, m map[string]any)
	walk = func(prefix string, m map[string]any) {
		for k, v := range m {
			if sub, ok := v.(map[string]any); ok {
				walk(prefix+k+".", sub)
			}
			out = append(out, prefix+k)
		}
	}
	walk("", m)
	sort.Strings(out)
	return out
}
