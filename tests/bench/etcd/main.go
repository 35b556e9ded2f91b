// Command etcd is the etcd server of a pinned version, with etcd's own flags: what TinyKV is
// compared with. It is a module of its own, so that its dependencies do not mix with TinyKV's.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
