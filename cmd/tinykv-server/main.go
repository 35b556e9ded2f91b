// Command tinykv-server is a store of a TinyKV cluster.
package main

import (
	"os"

	"github.com/tinykv/tinykv/kv/node/cli"
	"github.com/tinykv/tinykv/pkg/goruntime"
	_ "github.com/tinykv/tinykv/pkg/goruntime/early" // executes the program again, before the packages above are initialized
)

func main() {
	goruntime.CalmMonitor()
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
