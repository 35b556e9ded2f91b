// Package tomlfile is what the configuration files of the servers have in common: errors that name
// line and column, the known keys, and samples in which every key has its default and a comment. It
// reads no files.
package tomlfile
