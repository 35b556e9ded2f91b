// Command tinyctl is the command line of a TinyKV cluster.
package main

import (
	"os"

	"github.com/tinykv/tinykv/cmd/tinyctl/ctl"
	"github.com/tinykv/tinykv/pkg/goruntime"
)

func main() {
	// A load generator leaves the CPU to the servers; for other commands this would only take time.
	if ctl.GeneratesLoad(os.Args[1:]) {
		goruntime.CalmMonitor()
	}
	os.Exit(ctl.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
