// Command tinyscheduler is the placement service of TinyKV.
package main

import (
	"os"

	"github.com/tinykv/tinykv/scheduler/server/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
