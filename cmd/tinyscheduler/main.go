// Command tinyscheduler is the placement service of TinyKV.
package main

import (
	"os"

	shared "github.com/tinykv/tinykv/pkg/cli"
	"github.com/tinykv/tinykv/scheduler/server/cli"
)

func main() {
	shared.PrivateFiles()
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
