//go:build !linux

package slack

// Execute returns: there is no timer slack.
func Execute(...string) {}
