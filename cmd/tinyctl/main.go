// Command tinyctl is the command line of a TinyKV cluster.
package main

import (
	"os"

	"github.com/tinykv/tinykv/cmd/tinyctl/ctl"
)

func main() { os.Exit(ctl.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
