package config

import (
	"slices"

	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// Sample is a configuration file with every key, its default and what it is for. A member that
// reads it is the one that starts without any option: what follows from other values, such as the
// name, is left open.
func Sample() (string, error) {
	return tomlfile.Sample(
		"tinyscheduler configuration: every key with its default. Flags override the file.",
		Default(), comments())
}

func known(list []string, s string) bool { return slices.Contains(list, s) }
