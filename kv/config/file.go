package config

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// LoadFile overlays the TOML file on c. An unknown key is an error that names the nearest known
// one.
func (c *Config) LoadFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	free := func(key string) bool {
		return strings.HasPrefix(key, "labels.") || slices.Contains(retired, key)
	}
	if err := tomlfile.Decode(string(data), c, free); err != nil {
		return fmt.Errorf("config file %s, %w", path, err)
	}
	return nil
}

// retired are keys of earlier versions without effect; a file that has them is still read.
var retired = []string{"server.max-clock-skew"}

// Sample is a configuration file with every key, its default and what it is for.
func Sample() string {
	text, err := tomlfile.Sample(
		"tinykv-server configuration: every key with its default. Flags override the environment, which "+
			"overrides the file.", Default(), comments())
	if err != nil {
		panic(fmt.Sprintf("config: %v", err))
	}
	return text
}
