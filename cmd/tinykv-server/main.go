// Command tinykv-server is a store of a TinyKV cluster.
package main

import (
	"os"

	"github.com/tinykv/tinykv/kv/node/cli"
	"github.com/tinykv/tinykv/kv/timerslack"
)

func main() {
	timerslack.CalmMonitor()
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
