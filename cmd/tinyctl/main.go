// Command tinyctl is the command line of a TinyKV cluster.
package main

import (
	"os"
	"slices"

	"github.com/tinykv/tinykv/cmd/tinyctl/ctl"
	"github.com/tinykv/tinykv/kv/timerslack"
)

func main() {
	// A load generator leaves the CPU to the servers; for other commands this would only take time.
	if slices.Contains(os.Args, "bench") {
		timerslack.CalmMonitor()
	}
	os.Exit(ctl.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
