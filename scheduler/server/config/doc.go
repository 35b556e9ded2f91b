// Package config holds the options of the placement service: defaults, the TOML file, checks.
//
// Values come from defaults, then the file, then flags. Reading has no side effects; unknown keys
// are errors that name the nearest known key.
package config
