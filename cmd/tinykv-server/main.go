// Command tinykv-server is a store of a TinyKV cluster.
package main

import (
	"os"

	"github.com/tinykv/tinykv/kv/node/cli"
	shared "github.com/tinykv/tinykv/pkg/cli"
	"github.com/tinykv/tinykv/pkg/goruntime"
	// executes the program again, before the packages above are initialized
	_ "github.com/tinykv/tinykv/pkg/goruntime/early"
)

func main() {
	shared.PrivateFiles()
	goruntime.CalmMonitor()
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
